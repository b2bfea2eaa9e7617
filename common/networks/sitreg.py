# SPDX-License-Identifier: Apache-2.0
"""SITReg: symmetric, inverse consistent, topology preserving registration.

Paper: J. Honkamaa and P. Marttinen, "SITReg: multi-resolution architecture for symmetric, inverse consistent, and
topology preserving image registration", MELBA 2024:026, arXiv 2303.10211.
Repository: honkamj/SITReg (MIT). Official weights: :mod:`common.weights.sitreg`.

On purpose different from the published code: level 0 is the finest also where coarse levels predict nothing; both
hidden layers of the affine stage are used; each pair of a batch is solved by itself; the gradient of an inverse is
exact; two-dimensional images and any size (but for the affine stage, whose layers are made for one).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from common.blocks.memory_format import channels_last
from common.blocks.sitreg import AffineExtraction, FeatureExtractor, UpdateExtraction
from common.checks import InputError
from common.networks.contract import Details, check_pair, wants
from common.spatial import bspline_bound, bspline_field, compose, warp
from common.spatial.affine import affine_in_voxels, followed_by_affine
from common.spatial.fixed_point import SOLVERS
from common.spatial.symmetric import Halves, advance, at_level
from common.tracing import without_autocast

MULTIPLIER = 0.99
"""Of the bound of the control points, so that the updates stay invertible after rounding."""

_LUMIR: dict[str, Any] = {
    "channels": (12, 32, 64, 128, 128, 128),
    "update_channels": (12, 64, 128, 256, 256, 256),
    "groups": 4,
    "update_groups": 4,
}
_OASIS: dict[str, Any] = {
    "channels": (8, 40, 40, 40),
    "update_channels": (16, 72, 72, 72),
    "groups": 2,
    "update_groups": None,
}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "lumir": _LUMIR,
    "nlst": {**_LUMIR, "groups": 2, "update_groups": 2},
    "ixi": {**_LUMIR, "channels": (12, 16, 32, 64, 128, 128), "groups": 2},
    "oasis": _OASIS,
    "oasis_2023": {**_OASIS, "rectify_first": True},
    "oasis_deep": {**_OASIS, "channels": (8, *[36] * 4), "update_channels": (16, *[62] * 4)},
    "oasis_raw": {
        **_OASIS,
        "channels": (8, *[36] * 5, 48, 64, 88),
        "update_channels": (16, *[62] * 5, None, None, None),
        "affine_size": (256, 256, 256),
    },
    "lpba40": {**_OASIS, "channels": (8, *[36] * 3), "update_channels": (16, *[62] * 3)},
    "lung250m": {**_OASIS, "channels": (8, *[36] * 5), "update_channels": (16, *[62] * 5)},
    "tiny": {
        "channels": (2, 4, 4),
        "update_channels": (2, 4, 4),
        "convolutions": (1, 1, 1),
        "update_convolutions": (1, 1, 1),
        "groups": 2,
        "update_groups": 2,
        "solver": "tight",
    },
}
"""Arguments of the published networks, and those that make any of them small enough for tests."""


class SITReg(nn.Module):
    """A shared feature pyramid, and from coarse to fine updates that move both images towards each other.

    Each update is a B-spline whose control points are so small that it can be inverted. Either image gets one update
    and the inverse of the other, so that exchanging the images exchanges the results. The default is the network for
    LUMIR.

    Args:
        spatial_dims: 2 or 3.
        channels: of the features of each level, finest first.
        update_channels: hidden channels of the updates of each level; None for coarse levels without one.
        convolutions: of the features' block of each level; None for 2 each.
        update_convolutions: of the updates' block of each level; None for 2 each.
        groups: of the normalisation of features.
        update_groups: of the normalisation in the updates, None for none.
        rectify_first: whether ReLU comes before the normalisation, as in the revision of 2023 (OASIS).
        affine_size: spatial size of the images of an affine stage, which then take no other; None for no such stage.
        affine_hidden_layers: of the affine stage: 2, or 1 for weights of the published code of today.
        spacing: voxel size along each axis, for the affine stage; None for 1.
        solver: of the inverses, "default" or "tight" (:data:`common.spatial.fixed_point.SOLVERS`).

    Raises:
        InputError: for another number of dimensions, an unknown solver, or lists that differ in length.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        *,
        channels: Sequence[int] = _LUMIR["channels"],
        update_channels: Sequence[int | None] = _LUMIR["update_channels"],
        convolutions: Sequence[int] | None = None,
        update_convolutions: Sequence[int] | None = None,
        groups: int = 4,
        update_groups: int | None = 4,
        rectify_first: bool = False,
        affine_size: Sequence[int] | None = None,
        affine_hidden_layers: int = 2,
        spacing: Sequence[float] | None = None,
        solver: str = "default",
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "spatial_dims": spatial_dims,
            "channels": [*channels],
            "update_channels": [*update_channels],
            "convolutions": [*(convolutions or [2] * len(channels))],
            "update_convolutions": [*(update_convolutions or [2] * len(channels))],
            "groups": groups,
            "update_groups": update_groups,
            "rectify_first": rectify_first,
            "affine_size": None if affine_size is None else [*affine_size],
            "affine_hidden_layers": affine_hidden_layers,
            "spacing": None if spacing is None else [*spacing],
            "solver": solver,
        }
        self.spatial_dims = spatial_dims
        _check(self.arguments)
        self.solver = SOLVERS[solver]
        self.levels = sum(n is not None for n in update_channels)
        self.extractor = FeatureExtractor(spatial_dims, channels, self.arguments["convolutions"], groups, rectify_first)
        self.updates = nn.ModuleList(
            UpdateExtraction(spatial_dims, c, t, n, update_groups, finest=level == 0)
            for level, (c, t, n) in enumerate(
                zip(channels, update_channels, self.arguments["update_convolutions"], strict=True)
            )
            if t is not None
        )
        self.bounds = [MULTIPLIER * bspline_bound((2**level,) * spatial_dims) for level in range(self.levels)]
        self.affine: AffineExtraction | None = None
        if affine_size is not None:
            voxels = math.prod(math.ceil(n / 2 ** (len(channels) - 1)) for n in affine_size)
            self.affine = AffineExtraction(spatial_dims, channels[-1] * voxels, affine_hidden_layers)
        channels_last(self, spatial_dims)

    @overload
    def forward(self, image: Tensor, details: Literal[False] = False) -> Tensor: ...

    @overload
    def forward(self, image: Tensor, details: Literal[True] | Collection[str]) -> dict[str, Any]: ...

    def forward(self, image: Tensor, details: Details = False) -> Tensor | dict[str, Any]:
        """Register a pair.

        Args:
            image: (B, 2, *spatial), channel 0 moving, channel 1 fixed, any spatial size without an affine stage.
            details: further outputs that are wanted, by name, or True for all.

        Returns:
            The ``ddf`` (B, d, *spatial), float32 voxels; with ``details`` a dict of it and, where asked for,

            - ``inverse_ddf``: the way back, which equals the ``ddf`` of the exchanged images;
            - ``pyramid`` and ``inverse_pyramid``: the same after the update of each level, finest first, all on the
              grid and in voxels of the image.

        Raises:
            ValueError: when ``image`` has not two channels or not ``spatial_dims`` spatial axes.
            InputError: with an affine stage, for images of another size than it is made for.
        """
        check_pair(image, self.spatial_dims)
        size = image.shape[2:]
        if self.affine is not None and list(size) != self.arguments["affine_size"]:
            raise InputError(
                f"The affine stage is made for images of {self.arguments['affine_size']} voxels and got {list(size)}; "
                "resample them, or make the network with another affine_size."
            )
        # One image after the other: the same numbers as a joint batch, at half the transient memory.
        first, second = (self.extractor(image[:, c : c + 1]) for c in (0, 1))
        with without_autocast(image):
            affine = self._affine(first[-1], second[-1], size)
        halves = self._coarse_to_fine(first, second, size, affine, _all_levels(details))
        if not details:
            return self._between(halves[0], affine)[0]
        levels = [self._between(half, affine) for half in halves]
        pyramid, inverse_pyramid = ([level[side] for level in levels] for side in (0, 1))
        outputs = {"inverse_ddf": inverse_pyramid[0], "pyramid": pyramid, "inverse_pyramid": inverse_pyramid}
        return {"ddf": pyramid[0], **{name: output for name, output in outputs.items() if wants(details, name)}}

    def _affine(self, first: Tensor, second: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """Maps in voxels from the second to the first image and back."""
        if self.affine is None:
            return None
        there, back = self.affine(first, second)
        spacing = self.arguments["spacing"]
        return affine_in_voxels(there, size, spacing), affine_in_voxels(back, size, spacing)

    def _coarse_to_fine(
        self,
        first: list[Tensor],
        second: list[Tensor],
        size: Sequence[int],
        affine: tuple[Tensor, Tensor] | None,
        all_levels: bool,
    ) -> list[Halves]:
        """The halves after each update, finest first, or the last ones alone; takes features out of their lists."""
        halves: list[Halves] = []
        for features in (first, second):
            del features[self.levels :]
        for level in reversed(range(self.levels)):
            known = halves[0] if halves else None
            z1, z2 = first.pop(), second.pop()
            if known is not None or affine is not None:
                z1, z2 = (_sampled(z, known, affine, side, 2**level) for side, z in enumerate((z1, z2)))
            fields = self.updates[level](z1, z2)
            with without_autocast(z1):
                first_update, second_update = (self._update(field, size, level) for field in fields)
                advanced = advance(known, first_update, second_update, self.solver)
            halves = [advanced, *(halves if all_levels else ())]
        return halves

    def _update(self, field: Tensor, size: Sequence[int], level: int) -> Tensor:
        """An invertible displacement (B, d, *size) of what the network extracted."""
        field = field.float() if field.dtype.itemsize < 4 else field
        return bspline_field(self.bounds[level] * field.tanh(), size, 2**level)

    def _between(self, halves: Halves, affine: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """Displacements from the second image's grid to the first image and back."""
        if affine is None:
            return halves.between()
        nowhere = torch.zeros_like(halves.left)
        there, back = (followed_by_affine(nowhere, matrix) for matrix in affine)
        there = compose(halves.left, compose(halves.right_inverse, there))
        back = compose(halves.right, compose(halves.left_inverse, back))
        return followed_by_affine(there, affine[0]), followed_by_affine(back, affine[1])


def _all_levels(details: Details) -> bool:
    # An exported network is called with a tensor that is false.
    return bool(details) and (wants(details, "pyramid") or wants(details, "inverse_pyramid"))


def _sampled(
    features: Tensor, known: Halves | None, affine: tuple[Tensor, Tensor] | None, side: int, factor: int
) -> Tensor:
    """Features of one image where its half of the map points, on their own grid."""
    ddf = features.new_zeros(features.shape[0], features.ndim - 2, *features.shape[2:]).float()
    if known is not None:
        ddf = at_level(known[side], factor)
    if affine is not None:
        ddf = followed_by_affine(ddf * factor, affine[side], factor) / factor
    return warp(features, ddf).to(features.dtype)


def _check(arguments: dict[str, Any]) -> None:
    dims, updates = arguments["spatial_dims"], arguments["update_channels"]
    lengths = {len(arguments[name]) for name in ("channels", "update_channels", "convolutions", "update_convolutions")}
    if dims not in (2, 3):
        raise InputError(f"spatial_dims is {dims}; expected 2 or 3.")
    if len(lengths) > 1:
        raise InputError("channels, update_channels, convolutions and update_convolutions differ in length.")
    predicted = [n is not None for n in updates]
    if not predicted[0] or predicted != sorted(predicted, reverse=True):
        raise InputError(f"update_channels is {updates}; only the coarsest levels may be None.")
    if arguments["solver"] not in SOLVERS:
        raise InputError(f"solver is {arguments['solver']!r}; expected one of {sorted(SOLVERS)}.")
    for name in ("affine_size", "spacing"):
        if arguments[name] is not None and len(arguments[name]) != dims:
            raise InputError(f"{name} is {arguments[name]}; expected {dims} numbers.")
