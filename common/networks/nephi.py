# SPDX-License-Identifier: Apache-2.0
"""NePhi: deformation as a function of points, a network of sines that a code of the pair modulates.

Paper: L. Tian et al., "NePhi: Neural Deformation Fields for Approximately Diffeomorphic Medical Image Registration",
ECCV 2024, arXiv 2309.07322. Repository: uncbiag/NePhi (MIT). Official weights: :mod:`common.weights.nephi`.

On purpose different from the published code: points are in voxels; images of another size than the encoder is made for
are resampled to it, while the field is evaluated on their own grid; features of sines are no parameters, so that no
optimiser takes them; the derivative of a field is computed with it.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from common.blocks.field_map import FieldMap
from common.blocks.hybrid_code import CodeTable, HybridCode, HybridEncoder, halved, random_code
from common.blocks.nephi import ModulatedField
from common.checks import InputError
from common.networks.contract import Details, check_numbers, check_pair, names_field, wants

_PUBLISHED: dict[str, Any] = {"size": (175, 175, 175)}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "lung": _PUBLISHED,
    "tiny": {"size": 24, "channels": (2, 4, 4), "local_level": 1, "latent": 4, "hidden": 8, "frequencies": 4},
}
"""Arguments of the published network, and those that make any of them small enough for tests."""


class NePhi(nn.Module):
    """An encoder reads a code off the pair, of which one field makes the map there and another one the way back.

    That the two are inverse to each other is a matter of the loss. The default is the published network.

    Args:
        spatial_dims: 2 or 3.
        size: of the images that the encoder is made for, a number for each axis or one for all.
        channels: of the encoder's blocks, each of which halves the image.
        local_level: the block that the local code comes from, 0 the first.
        latent: channels of the code that all points share, and of the local one.
        hidden: channels of the fields' layers.
        layers: of the fields' networks after the first.
        frequencies: of the features of points.
        pairs: None, or how many pairs there are whose codes are trained in the place of the encoder (auto-decoder).

    Raises:
        InputError: for another number of dimensions or of sizes, a number below 1, a level that there is not, or an
            encoder whose last block is left with one voxel, which batch normalisation cannot train with.
    """

    levels = 1

    def __init__(
        self,
        spatial_dims: int = 3,
        *,
        size: int | Sequence[int] = (175, 175, 175),
        channels: Sequence[int] = (8, 16, 32, 64, 128, 256),
        local_level: int = 2,
        latent: int = 32,
        hidden: int = 128,
        layers: int = 2,
        frequencies: int = 128,
        pairs: int | None = None,
    ) -> None:
        super().__init__()
        size = [size] * spatial_dims if isinstance(size, int) else [*size]
        self.arguments: dict[str, Any] = {
            "spatial_dims": spatial_dims,
            "size": size,
            "channels": [*channels],
            "local_level": local_level,
            "latent": latent,
            "hidden": hidden,
            "layers": layers,
            "frequencies": frequencies,
            "pairs": pairs,
        }
        _check(self.arguments)
        self.spatial_dims, self.pairs = spatial_dims, pairs
        self.codes: HybridEncoder | CodeTable = (
            HybridEncoder(size, channels, local_level, latent)
            if pairs is None
            else CodeTable(random_code(pairs, latent, halved(size, local_level + 1)))
        )
        self.field, self.inverse_field = (
            ModulatedField(spatial_dims, (latent, latent), hidden, layers, frequencies) for _ in range(2)
        )

    @overload
    def forward(self, image: Tensor, details: Literal[False] = False, index: Tensor | None = None) -> Tensor: ...

    @overload
    def forward(
        self, image: Tensor, details: Literal[True] | Collection[str], index: Tensor | None = None
    ) -> dict[str, Any]: ...

    def forward(self, image: Tensor, details: Details = False, index: Tensor | None = None) -> Tensor | dict[str, Any]:
        """Register a pair.

        Args:
            image: (B, 2, *spatial), channel 0 moving, channel 1 fixed, any spatial size. Intensities as in training.
            details: further outputs that are wanted, by name, or True for all.
            index: (B,), numbers of the pairs where their codes are trained; None for the first B.

        Returns:
            The ``ddf`` (B, d, *spatial), float32 voxels; with ``details`` a dict of it and, where asked for,

            - ``map`` and ``inverse_map``: the functions themselves, of points (B, N, d) in voxels;
            - ``inverse_ddf``: the way back on the grid of the image;
            - ``latent`` (B, g) and ``local_latent`` (B, l, *grid): the code.

            In training fields are left out that only stand in for the maps
            (:func:`common.networks.contract.names_field`).

        Raises:
            ValueError: when ``image`` has not two channels or not ``spatial_dims`` spatial axes.
            InputError: for pairs that there are no codes of.
        """
        check_pair(image, self.spatial_dims)
        code, size = self.code(image, index), image.shape[2:]
        there, back = self.maps(code, size)
        if not details:
            return there.on_grid()
        outputs: dict[str, Any] = {"map": there, "inverse_map": back, "latent": code.shared, "local_latent": code.local}
        outputs = {name: output for name, output in outputs.items() if wants(details, name)}
        if not self.training or names_field(details, "ddf"):
            outputs["ddf"] = there.on_grid()
        if names_field(details, "inverse_ddf") if self.training else wants(details, "inverse_ddf"):
            outputs["inverse_ddf"] = back.on_grid()
        return outputs

    def code(self, image: Tensor, index: Tensor | None = None) -> HybridCode:
        """The code of pairs: what the encoder reads off the images, or rows of the table.

        Args:
            image: (B, 2, *spatial).
            index: (B,), rows of the table; None for the first B.

        Raises:
            InputError: for more pairs than the table has rows.
        """
        if isinstance(self.codes, HybridEncoder):
            code: HybridCode = self.codes(image)
            return code
        assert self.pairs is not None
        if index is None and len(image) > self.pairs:
            raise InputError(
                f"This network holds codes of {self.pairs} pair(s) and got {len(image)}: set pairs higher."
            )
        code = self.codes(torch.arange(len(image), device=image.device) if index is None else index)
        return code

    def auto_decoder(self, image: Tensor) -> NePhi:
        """A copy in training of which the codes of some pairs are parameters, in the place of the encoder.

        Args:
            image: (B, 2, *spatial), the pairs; in evaluation they have the same fields there as here.

        Raises:
            InputError: for more pairs than a table of codes has rows.
        """
        with torch.no_grad():
            table = CodeTable(self.code(image))
        # To the copy the encoder is copied already: its table stands for it.
        decoder = copy.deepcopy(self, {id(self.codes): table})
        decoder.pairs = decoder.arguments["pairs"] = len(image)
        return decoder.train()

    def maps(self, code: HybridCode, size: Sequence[int]) -> tuple[FieldMap, FieldMap]:
        """The map and the way back that codes stand for.

        Args:
            code: of B pairs.
            size: spatial size of the images, in whose voxels points are given.
        """
        return FieldMap(self.field, code, size), FieldMap(self.inverse_field, code, size)


def _check(arguments: dict[str, Any]) -> None:
    dims, size, channels, level = (arguments[name] for name in ("spatial_dims", "size", "channels", "local_level"))
    if dims not in (2, 3):
        raise InputError(f"spatial_dims is {dims!r}; expected 2 or 3.")
    if len(size) != dims:
        raise InputError(f"size is {size}; give {dims} numbers, or one for all axes.")
    names = ("latent", "hidden", "layers", "frequencies")
    numbers = {f"{name} {k}": n for name in ("size", "channels") for k, n in enumerate(arguments[name])}
    check_numbers(1, **numbers, **{name: arguments[name] for name in names})
    if arguments["pairs"] is not None:
        check_numbers(1, pairs=arguments["pairs"])
    if level not in range(len(channels)):
        raise InputError(f"local_level is {level!r}; there are levels 0 to {len(channels) - 1}.")
    if arguments["pairs"] is None and set(halved(size, len(channels))) == {1}:
        raise InputError(
            f"{len(channels)} blocks leave one voxel of {size}, of which batch normalisation has no deviation: shorten "
            "channels, or give a larger size."
        )
