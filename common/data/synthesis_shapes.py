# SPDX-License-Identifier: Apache-2.0
"""Label maps of random shapes, that nobody has to acquire or to draw.

Hoffmann et al., SynthMorph, IEEE TMI 41 (2022) 543-558, section III.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.checks import InputError
from common.data.synthesis_image import check_scales
from common.data.synthesis_noise import draw_grids, enlarged_sum
from common.spatial import warp

_MOST_LABELS = 256
_STEEPNESS = 8.0
"""Of the height of label 0 over the radius, where shapes lie within a ball: noise has one of about 1."""


@dataclass(frozen=True)
class ShapesRecipe:
    """How label maps of random shapes are drawn; lengths in voxels.

    Attributes:
        size: voxels per axis, two or three numbers.
        labels: number of labels, background included; of those a map may lack some.
        scales: distances of the noise that the labels compete with: the larger, the larger the shapes.
        warp_scales: distances of the noise that deforms each label's noise.
        warp_std: largest standard deviation of this deformation.
        within: radius, as a share of half the size along each axis, of the rough ball that the shapes lie within; what
            is around it has label 0, as scans without a skull have it. None, as published: shapes are everywhere.

    Raises:
        InputError: a number out of its range.
    """

    size: tuple[int, ...]
    labels: int = 26
    scales: tuple[float, ...] = (32, 64)
    warp_scales: tuple[float, ...] = (16, 32, 64)
    warp_std: float = 16.0
    within: float | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        if len(self.size) not in (2, 3) or min(self.size) < 2:
            raise InputError(f"The size of shapes is {list(self.size)}; give two or three numbers of 2 voxels or more.")
        if not isinstance(self.labels, int) or not 2 <= self.labels <= _MOST_LABELS:
            raise InputError(f"The number of labels of shapes is {self.labels!r}; give 2 to {_MOST_LABELS}.")
        if not self.warp_std >= 0:
            raise InputError(f"The recipe of shapes has warp_std {self.warp_std}; give 0 voxels or more.")
        if self.within is not None and not self.within > 0:
            raise InputError(f"The recipe of shapes has within {self.within}; give a radius above 0, or None.")
        check_scales("scales", self.scales)
        check_scales("warp_scales", self.warp_scales)


def draw_shapes(generator: torch.Generator, recipe: ShapesRecipe) -> Tensor:
    """A label map: each voxel has the label whose smooth, deformed noise is largest there.

    Never more than one label's noise is in memory.

    Args:
        generator: of the random numbers, on the device of the result.
        recipe: see there.

    Returns:
        (1, *size), uint8, 0 to labels - 1.
    """
    size, dims = recipe.size, len(recipe.size)
    shapes = torch.zeros((1, *size), dtype=torch.uint8, device=generator.device)
    largest: Tensor | None = None
    for label in range(recipe.labels):
        noise = enlarged_sum(draw_grids(generator, size, recipe.scales, 1.0, 1), size)
        if label == 0 and recipe.within is not None:
            noise += _STEEPNESS * (_radius(size, noise.device) - recipe.within)
        ddf = enlarged_sum(draw_grids(generator, size, recipe.warp_scales, recipe.warp_std, dims), size)
        height = warp(noise, ddf)[0]
        if largest is not None:
            shapes.masked_fill_(height > largest, label)
        largest = height if largest is None else torch.maximum(largest, height)
    return shapes


def _radius(size: Sequence[int], device: torch.device) -> Tensor:
    """(*size), distance from the centre, 1 in the middle of each face."""
    axes = [torch.linspace(-1, 1, n, device=device).square() for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).sum(0).sqrt()
