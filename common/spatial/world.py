# SPDX-License-Identifier: Apache-2.0
"""Grids in the world of a scanner: images and fields carried from one grid to another by their headers.

World coordinates are those of NIfTI, RAS+ millimetres. Everything here is three-dimensional, as the headers are: an
image of two dimensions has a flat grid, see :mod:`common.spatial.plane`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from common.checks import InputError
from common.spatial.places import GRID_TOLERANCE, voxels_apart
from common.spatial.plane import plane_affine
from common.spatial.rounding import TIE, between_affines
from common.spatial.upright import closest_axes
from common.spatial.warp import warp

_FLATTEST = 1e-6
"""Ratio of a voxel's smallest to its largest extent below which a header's affine is taken for singular."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of an image lie.

    Attributes:
        shape: number of voxels per array axis.
        affine: (4, 4), voxel indices to millimetres RAS+; kept in float64 on the CPU.
        flat: whether the image has two dimensions. Its shape is then (W, H, 1), and of the affine the plane counts, see
            :func:`common.spatial.plane.plane_affine`. A volume of one slice is not flat.

    Raises:
        InputError: when the shape is not three-dimensional or the affine cannot be inverted.
    """

    shape: tuple[int, int, int]
    affine: Tensor
    flat: bool = False

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        affine = torch.as_tensor(self.affine).detach().to("cpu", torch.float64)
        if len(shape) != 3 or min(shape) < 1 or (self.flat and shape[2] != 1):
            raise InputError(f"A grid in world coordinates has three axes, but the shape is {shape}.")
        is_whole = affine.shape == (4, 4) and bool(torch.isfinite(affine).all())
        affine = plane_affine(affine) if self.flat and is_whole else affine
        if not is_whole or not self._is_invertible(affine):
            raise InputError(f"The affine {affine.tolist()} cannot be inverted: the image's header is damaged.")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @classmethod
    def of(cls, shape: Sequence[int], affine: Tensor) -> Grid:
        """The grid of an array of two or three axes."""
        i, j, k = shape if len(shape) == 3 else (*shape, 1)
        return cls((i, j, k), affine, flat=len(shape) == 2)

    @staticmethod
    def _is_invertible(affine: Tensor) -> bool:
        largest, _, smallest = torch.linalg.svdvals(affine[:3, :3]).tolist()
        return bool(smallest > _FLATTEST * largest)

    @property
    def dims(self) -> int:
        """Number of dimensions of the image."""
        return 2 if self.flat else 3

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres per voxel, per array axis."""
        i, j, k = self.affine[:3, :3].norm(dim=0).tolist()
        return i, j, k

    def cropped(self, start: Sequence[int], stop: Sequence[int]) -> Grid:
        """The part of the grid from voxel ``start`` up to, not including, ``stop``."""
        affine = self.affine.clone()
        affine[:3, 3] += affine[:3, :3] @ torch.tensor(list(start), dtype=torch.float64)
        i, j, k = (last - first for first, last in zip(start, stop, strict=True))
        return Grid((i, j, k), affine, self.flat)

    def same_as(self, other: Grid, tolerance: float = GRID_TOLERANCE) -> bool:
        """Whether two grids have one shape, and their voxels lie within ``tolerance`` voxels of each other.

        What rounding to float32 explains, in which headers store affines, does not count.
        """
        return self.shape == other.shape and voxels_apart(self.shape, self.affine, other.affine) <= tolerance


def working_grid(image: Grid, spacing: Sequence[float] | None) -> Grid:
    """The grid that a network trained on RAS+ arrays wants for an image.

    The axes of the image are reordered and flipped to be nearest to RAS+ (its obliqueness stays), and the voxels get
    the network's size; the volume covered is that of the image, up to part of a voxel. Of two dimensions there is no
    usual order: the axes of a flat grid stay as they are, as networks see them in training.

    Args:
        image: grid of the scan.
        spacing: millimetres per voxel along right, anterior, superior, or along the axes of a flat grid; of what is not
            given, and with None, the scan's own are kept.

    Returns:
        The grid.
    """
    linear = image.affine[:3, :3]
    order: tuple[int, ...] = (0, 1, 2)
    directions = linear
    if not image.flat:
        order = closest_axes(linear)
        directions = torch.stack([linear[:, axis] * linear[row, axis].sign() for row, axis in enumerate(order)], dim=1)
    own = directions.norm(dim=0)
    given = () if spacing is None else tuple(spacing[: image.dims])
    wanted = torch.tensor([*given, *own[len(given) :]], dtype=torch.float64)
    extent = torch.tensor([image.shape[axis] for axis in order], dtype=torch.float64) * own
    # Voxel sizes of a header are rounded.
    size = (extent / wanted - 1e-4).ceil().clamp(min=1)
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = directions / own * wanted
    return _about_centre(image, affine, size)


def divided_grid(image: Grid, shape: tuple[int, int, int]) -> Grid:
    """The grid of another number of voxels whose volume, to the outer faces of its voxels, is that of an image.

    It is where the voxels of an array lie that was resized with ``align_corners=False``, as for a network that takes
    images of one size alone.

    Args:
        image: grid of the scan.
        shape: number of voxels per axis of the scan.
    """
    size = torch.tensor(shape, dtype=torch.float64)
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = image.affine[:3, :3] * (torch.tensor(image.shape, dtype=torch.float64) / size)
    return _about_centre(image, affine, size)


def _about_centre(image: Grid, affine: Tensor, size: Tensor) -> Grid:
    """The grid with the linear part of ``affine``, of so many voxels, whose centre is that of the image."""
    centre = image.affine[:3, :3] @ ((torch.tensor(image.shape, dtype=torch.float64) - 1) / 2) + image.affine[:3, 3]
    affine[:3, 3] = centre - affine[:3, :3] @ ((size - 1) / 2)
    i, j, k = (int(n) for n in size)
    return Grid((i, j, k), affine, image.flat)


def between_grids(moving: Grid, fixed: Grid, alignment: Tensor | None = None) -> Tensor:
    """(4, 4) float64, voxels of the fixed grid to voxels of the moving grid: the identity, exactly, on one grid.

    Args:
        moving: grid where the voxels end.
        fixed: grid where they start.
        alignment: (4, 4), fixed world to moving world in millimetres RAS+; None for one world.

    Returns:
        See :func:`common.spatial.rounding.between_affines`.
    """
    if alignment is not None:
        alignment = alignment.detach().to("cpu", torch.float64)
    identity = torch.eye(4, dtype=torch.float64)
    if (alignment is None or torch.equal(alignment, identity)) and fixed.same_as(moving):
        return identity
    return between_affines(moving.affine, fixed.affine, alignment)


def displacement_to_moving(
    moving: Grid, fixed: Grid, ddf: Tensor | None = None, alignment: Tensor | None = None
) -> Tensor:
    """What :func:`common.spatial.warp` needs to sample an array on the moving grid for every fixed voxel.

    Args:
        moving: grid of the array that is going to be sampled.
        fixed: grid of the result.
        ddf: (1, 3, *fixed.shape), displacement in voxels of the fixed grid, applied first.
        alignment: (4, 4), fixed world to moving world in millimetres RAS+, applied after it.

    Returns:
        (1, 3, *fixed.shape), float32: position in voxels of the moving grid minus the index of the fixed voxel.
    """
    between = between_grids(moving, fixed, alignment)
    device = torch.device("cpu") if ddf is None else ddf.device
    difference = between - torch.eye(4, dtype=torch.float64)
    result = torch.empty(1, 3, *fixed.shape, device=device)
    for row in range(3):
        # One axis after the other in double precision: a full grid of coordinates is never made.
        lines = [
            difference[row, axis].to(device) * torch.arange(n, dtype=torch.float64, device=device)
            for axis, n in enumerate(fixed.shape)
        ]
        lines[0] += difference[row, 3].to(device)
        plane = (lines[1][:, None] + lines[2]).float()
        torch.add(lines[0].float()[:, None, None], plane, out=result[0, row])
    if ddf is not None:
        result += _turned(ddf.float(), between[:3, :3])
    return result


def resample_ddf(ddf: Tensor, source: Grid, target: Grid, padding_mode: str = "border") -> Tensor:
    """The same displacements on another grid of the same world, in voxels of that grid.

    Args:
        ddf: (1, 3, *source.shape), in voxels of ``source``.
        source: grid of the field.
        target: grid of the result.
        padding_mode: displacement outside the source grid: that of the nearest voxel ("border") or none ("zeros").

    Returns:
        (1, 3, *target.shape), float32.
    """
    to_source = displacement_to_moving(moving=source, fixed=target).to(ddf.device)
    sampled = warp(ddf.float(), to_source, padding_mode=padding_mode)
    return _turned(sampled, between_grids(moving=target, fixed=source)[:3, :3])


def resample(
    image: Tensor,
    source: Grid,
    target: Grid,
    alignment: Tensor | None = None,
    mode: str = "bilinear",
    outside: float | None = None,
) -> Tensor:
    """An image on another grid.

    Linear sampling onto coarser voxels is preceded by the blur that makes each of them the mean of what it covers.

    Args:
        image: (1, C, *source.shape).
        source: grid of the image.
        target: grid of the result.
        alignment: (4, 4), target world to source world; None where both are one.
        mode: "bilinear" or "nearest".
        outside: value outside the image; None takes its smallest.

    Returns:
        (1, C, *target.shape), float32.
    """
    displacement = displacement_to_moving(moving=source, fixed=target, alignment=alignment).to(image.device)
    if mode == "bilinear":
        coarser = torch.linalg.inv(source.affine[:3, :3]) @ target.affine[:3, :3]
        image = _blurred(image.float(), coarser.norm(dim=1).tolist())
    return warp_within(image.float(), displacement, mode, float(image.detach().min()) if outside is None else outside)


def warp_within(image: Tensor, ddf: Tensor, mode: str = "bilinear", outside: float = 0.0) -> Tensor:
    """:func:`common.spatial.warp` with a value for what lies outside the image, by the rule of ITK.

    A point is inside up to half a voxel beyond the centres of the outermost voxels, whose value it then gets; rounding
    does not decide, see :data:`common.spatial.rounding.TIE`.

    Args:
        image: (B, C, *spatial').
        ddf: (B, d, *spatial), in voxels of ``image``.
        mode: as in :func:`common.spatial.warp`.
        outside: the value.

    Returns:
        (B, C, *spatial), float32 or float64.
    """
    # Half precision cannot tell positions in large images apart.
    ddf = ddf.to(torch.promote_types(ddf.dtype, torch.float32))
    warped = warp(image, ddf, mode=mode)
    for axis, size in enumerate(image.shape[2:]):
        steps = torch.arange(ddf.shape[2 + axis], dtype=ddf.dtype, device=ddf.device)
        position = ddf[:, axis] + steps.view([-1 if k == axis else 1 for k in range(ddf.shape[1])])
        beyond = (position < -0.5 - TIE) | (position > size - 0.5 + TIE)
        warped.masked_fill_(beyond[:, None], outside)
    return warped


def _turned(ddf: Tensor, linear: Tensor) -> Tensor:
    """Every displacement multiplied by a matrix (3, 3)."""
    return torch.einsum("rc,bcijk->brijk", linear.to(ddf.device, ddf.dtype), ddf)


def _blurred(image: Tensor, factors: list[float]) -> Tensor:
    """Gaussian blur of the variance that a box of ``factor`` voxels has beyond one voxel, per axis."""
    for axis, factor in enumerate(factors):
        sigma = math.sqrt(max(factor * factor - 1, 0) / 12)
        if sigma < 0.2:
            continue
        radius = math.ceil(3 * sigma)
        weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=image.dtype) / sigma) ** 2)
        taps = (weights / weights.sum()).tolist()
        sides = [radius if other == axis else 0 for other in (2, 1, 0) for _ in range(2)]
        padded, n = F.pad(image, sides, mode="replicate"), image.shape[2 + axis]
        # Whole slices weighted and added: a convolution of one channel along lines takes six times as long.
        image = padded.narrow(2 + axis, 0, n) * taps[0]
        for step, tap in enumerate(taps[1:], 1):
            image.add_(padded.narrow(2 + axis, step, n), alpha=tap)
    return image
