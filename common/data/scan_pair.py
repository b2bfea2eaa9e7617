# SPDX-License-Identifier: Apache-2.0
"""Two scans on grids of their own as a pair: how they lie to each other, and what is seen of both on one grid.

Sides are "moving" and "fixed". Scans are volumes (1, *spatial), images of two dimensions slices of one voxel
(:mod:`common.spatial.plane`); names are what messages call the scans, best their files.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from common.alignment.affine import align
from common.checks import InputError
from common.data.dataset import plain_affine, plain_tensor
from common.data.intensity import fit_intensity
from common.spatial import Grid, resample
from common.spatial.foreground import background, foreground
from common.spatial.plane import laid

logger = logging.getLogger(__name__)
MARGIN_MM = 16.0
"""How far the working grid reaches beyond the fixed image's foreground."""
WORTH_CROPPING = 0.7
"""Share of the scan's volume below which only the foreground is registered: memory and time follow the volume."""


def grids_of(images: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Grid]:
    """Grids of the images of both sides, which have to be of as many dimensions.

    Args:
        images: (C, *spatial), with the affine of their header where they have one.
        names: of the images.

    Raises:
        InputError: for a header that cannot be inverted, and for an image of two dimensions with a volume.
    """
    grids = {}
    for side, image in images.items():
        try:
            grids[side] = Grid.of(image.shape[1:], plain_affine(image))
        except InputError as error:
            raise InputError(f"{names[side]}: {error}") from error
    if len({grid.flat for grid in grids.values()}) > 1:
        said = " and ".join(f"{names[side]} is {grid.dims}D" for side, grid in grids.items())
        raise InputError(f"{said}: a pair is two images or two volumes, so take the slice that is meant.")
    return grids


def overlap(moving: Grid, fixed: Grid) -> bool:
    """Whether the boxes around two grids in the world have a common part."""
    boxes = []
    for grid in (moving, fixed):
        corners = torch.cartesian_prod(*[torch.tensor([-0.5, n - 0.5], dtype=torch.float64) for n in grid.shape])
        world = corners @ grid.affine[:3, :3].T + grid.affine[:3, 3]
        boxes.append((world.amin(0), world.amax(0)))
    return bool((torch.maximum(boxes[0][0], boxes[1][0]) < torch.minimum(boxes[0][1], boxes[1][1])).all())


def align_scans(
    scans: Mapping[str, Tensor], grids: Mapping[str, Grid], names: Mapping[str, str]
) -> tuple[Tensor, dict[str, Any]]:
    """Where the moving scan lies, by :func:`common.alignment.affine.align`; what it says of itself is logged.

    Returns:
        (4, 4) float64, fixed world to moving world; and the figures of the alignment, by name.
    """
    found = align(
        scans["moving"], grids["moving"], scans["fixed"], grids["fixed"],
        moving_name=names["moving"], fixed_name=names["fixed"],
    )  # fmt: skip
    if found.warning:
        logger.warning(found.warning)
    logger.info(
        "%s to %s: affine alignment in %.1f s, similarity %.3f -> %.3f.",
        names["moving"], names["fixed"], found.seconds, found.similarity_before, found.similarity_after,
    )  # fmt: skip
    figures = ("similarity_before", "similarity_after", "converged", "seconds")
    return found.matrix, {figure: getattr(found, figure) for figure in figures}


def alone(scan: Tensor, mask: Tensor) -> Tensor:
    """What of a scan (1, *grid) lies in a mask of its shape, not 0 there, on the scan's own background."""
    return torch.where(mask != 0, scan, background(scan))


def registered_part(scan: Tensor, grid: Grid) -> Grid:
    """The part of a grid that is registered: the scan's foreground with a margin, or all of it where that is most."""
    start, stop = [], []
    above = foreground(scan)[0]
    for axis, size in enumerate(grid.spacing):
        others = tuple(k for k in range(3) if k != axis)
        occupied = above.any(others[1]).any(others[0]).nonzero()
        margin = round(MARGIN_MM / size)
        start.append(max(int(occupied.min()) - margin, 0))
        stop.append(min(int(occupied.max()) + 1 + margin, above.shape[axis]))
    box = math.prod(last - first for first, last in zip(start, stop, strict=True))
    return grid.cropped(start, stop) if box < WORTH_CROPPING * above.numel() else grid


def seen(
    scan: Tensor,
    grid: Grid,
    working: Grid,
    name: str,
    alignment: Tensor | None = None,
    intensity: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """A scan as networks and losses see it.

    Args:
        scan: (1, *grid.shape).
        grid: of the scan.
        working: grid that it is sampled on.
        name: of the scan.
        alignment: (4, 4), world of the working grid to that of the scan; None where both are one.
        intensity: applied to it there, before it is brought to scale.

    Returns:
        (1, *spatial) float32, without the third axis where the grid is flat.

    Raises:
        InputError: as :func:`common.data.intensity.fit_intensity`.
    """
    return fit_intensity(scaled(laid(resample(scan[None], grid, working, alignment)[0], grid.dims), intensity), name)


def scaled(image: Tensor, intensity: Callable[[Tensor], Tensor] | None) -> Tensor:
    """An image after the window or scale of a recipe, where there is one."""
    return image if intensity is None else plain_tensor(intensity(image))
