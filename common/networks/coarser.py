# SPDX-License-Identifier: Apache-2.0
"""A network on images with finer voxels than it was trained for, or than its memory allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from common.checks import InputError
from common.networks.contract import Details
from common.spatial import resize_ddf, resize_image
from common.spatial.resize import shrunk_image

_FIELDS = ("ddf", "inverse_ddf", "deviation")


class Coarser(nn.Module):
    """A network that sees a pair with larger voxels, and whose fields are brought to the grid of the images.

    Blurred and resampled corner to corner, like the levels of an optimisation, which goes on from there with the
    images as they are.

    Args:
        network: of the contract.
        factors: how many times larger the voxels that it sees are, per axis of the images, 1 or more; for images of two
            dimensions the first two count, and volumes of one slice may have two alone.

    Raises:
        InputError: for a factor below 1.
    """

    levels = 1

    def __init__(self, network: Any, factors: Sequence[float]) -> None:
        super().__init__()
        if any(not factor >= 1 for factor in factors):
            raise InputError(f"The network would see voxels {list(factors)} times as large; give numbers from 1 on.")
        self.network = network
        self.factors = tuple(factors)
        self.arguments: dict[str, Any] = {**network.arguments, "coarser": list(factors)}

    def forward(self, image: Tensor, details: Details = False) -> Tensor | dict[str, Any]:
        """Register a pair.

        Args:
            image: (B, 2, *spatial), channel 0 moving, channel 1 fixed.
            details: further outputs that are wanted, by name, or True for all.

        Returns:
            The ``ddf`` (B, d, *spatial), voxels of the images; with ``details`` a dict of it and, where asked for and
            the network has them, ``inverse_ddf``, ``deviation`` and images that end in ``_map``. Of other outputs there
            is no form for another grid.

        Raises:
            InputError: what the network raises.
        """
        size = image.shape[2:]
        small = [1 + round((n - 1) / factor) for n, factor in zip(size, (*self.factors, 1.0), strict=False)]
        found = self.network(shrunk_image(image, small), details=details)
        if isinstance(found, Tensor):
            return resize_ddf(found, size)
        fields = {name: resize_ddf(found[name], size) for name in _FIELDS if name in found}
        maps = {name: value for name, value in found.items() if name.endswith("_map") and isinstance(value, Tensor)}
        return fields | {name: resize_image(value, size) for name, value in maps.items()}


def seen_with(network: nn.Module, spacing: Sequence[float] | None, images: Sequence[float] | None) -> nn.Module:
    """A network that sees its own voxel size, whatever that of the images.

    Args:
        network: of the contract.
        spacing: millimetres per voxel that it was trained with, per axis.
        images: those of the images that it is called with; None for the same.

    Returns:
        The network itself for the same, else :class:`Coarser`.

    Raises:
        InputError: where only the second size is given, or is the larger one.
    """
    if images is None:
        return network
    pairs = [] if spacing is None else [*zip(spacing, images, strict=False)]
    if not pairs or any(own < finer for own, finer in pairs):
        raise InputError(
            f"--io_spacing is {list(images)}, but the network sees voxels of {spacing} mm: give finer ones than those, "
            "axis by axis."
        )
    return Coarser(network, [own / finer for own, finer in pairs])
