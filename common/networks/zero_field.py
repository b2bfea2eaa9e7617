# SPDX-License-Identifier: Apache-2.0
"""The network that there is none of: every pair is registered as it is, until it is optimised on."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal, overload

from torch import Tensor, nn

from common.checks import InputError
from common.networks.contract import Details, check_pair, wants


class ZeroField(nn.Module):
    """Says that nothing moves: where an optimisation on the pair itself begins, and what it is compared with.

    It has no weights, so there is nothing to train and nothing to load.

    Args:
        spatial_dims: of the images; None takes those of two and of three dimensions.

    Raises:
        InputError: for another number of dimensions.
    """

    levels = 1

    def __init__(self, spatial_dims: int | None = None) -> None:
        super().__init__()
        if spatial_dims not in (None, 2, 3):
            raise InputError(f"spatial_dims is {spatial_dims!r}; give 2, 3 or None for both.")
        self.spatial_dims = spatial_dims
        self.arguments: dict[str, Any] = {"spatial_dims": spatial_dims}

    @overload
    def forward(self, image: Tensor, details: Literal[False] = False) -> Tensor: ...

    @overload
    def forward(self, image: Tensor, details: Literal[True] | Collection[str]) -> dict[str, Tensor]: ...

    def forward(self, image: Tensor, details: Details = False) -> Tensor | dict[str, Tensor]:
        """Register a pair.

        Args:
            image: (B, 2, *spatial), channel 0 moving, channel 1 fixed.
            details: further outputs that are wanted, by name, or True for all.

        Returns:
            The ``ddf`` (B, d, *spatial), float32, 0; with ``details`` a dict of it and, where asked for,
            ``inverse_ddf``, which is 0, too.

        Raises:
            ValueError: when ``image`` has not two channels or not ``spatial_dims`` spatial axes.
        """
        dims = self.spatial_dims or min(max(image.ndim - 2, 2), 3)
        check_pair(image, dims)
        ddf = image.new_zeros((len(image), dims, *image.shape[2:])).float()
        if not details:
            return ddf
        return {"ddf": ddf} | ({"inverse_ddf": ddf.clone()} if wants(details, "inverse_ddf") else {})


CONFIGURATIONS: dict[str, dict[str, Any]] = {"tiny": {}}
"""It cannot be smaller than it is."""
