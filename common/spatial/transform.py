# SPDX-License-Identifier: Apache-2.0
"""Chains of affine maps, displacement fields and functions between the worlds of two scans.

World coordinates are those of NIfTI, RAS+ millimetres. A transform maps points of the fixed scan to the moving scan, as
resampling the moving scan on the fixed grid needs it. Those of two dimensions are written on slices, whose third
coordinate stays as it is (:mod:`common.spatial.plane`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from common.checks import InputError
from common.spatial.coordinates import identity_grid
from common.spatial.invert import invert, solve
from common.spatial.points import sample_at
from common.spatial.rounding import TIE
from common.spatial.world import Grid, displacement_to_moving, warp_within

_LOGGER = logging.getLogger(__name__)
_UNSOLVED = 0.05
"""Voxels; where the inverse of a field comes back less near, the field folds."""


@dataclass(frozen=True, eq=False)
class Affine:
    """An affine map of the world.

    Attributes:
        matrix: (4, 4) float64, RAS+ millimetres.
    """

    matrix: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix", torch.as_tensor(self.matrix).detach().to("cpu", torch.float64))

    def points(self, points: Tensor) -> Tensor:
        """Where points (N, 3) go."""
        return points @ self.matrix[:3, :3].T + self.matrix[:3, 3]

    def inverse_points(self, points: Tensor) -> Tensor:
        """Where points (N, 3) come from."""
        return self.inverse().points(points)

    def inverse(self) -> Affine:
        """The inverse map."""
        return Affine(torch.linalg.inv(self.matrix))


@dataclass(frozen=True, eq=False)
class Field:
    """A displacement field with its place in the world; by ITK's rule, points outside its grid stay where they are.

    Attributes:
        grid: of the field.
        ddf: (1, 3, *grid.shape), voxels of the grid.
    """

    grid: Grid
    ddf: Tensor

    def __post_init__(self) -> None:
        if self.ddf.shape != (1, 3, *self.grid.shape):
            raise ValueError(f"A field on a grid of {self.grid.shape} has no shape {tuple(self.ddf.shape)}.")

    def points(self, points: Tensor) -> Tensor:
        """Where points (N, 3) go."""
        voxels = self._voxels(points)
        moved = voxels + sample_at(self.ddf.cpu(), voxels[None])[0].T
        return self._world(torch.where(self._inside(voxels), moved, voxels))

    def inverse_points(self, points: Tensor) -> Tensor:
        """Where points (N, 3) come from: each is solved for, without an inverse field.

        A warning is logged of points that nothing maps to, as there are where the field folds.
        """
        voxels = self._voxels(points)
        start = voxels - self._shift()
        inside = self._inside(start)
        found, left = solve(self._rows(), torch.Size(self.grid.shape), voxels, start, tolerance=1e-6)
        _warn_of_folds(left[inside[:, 0]], "points")
        return self._world(torch.where(inside, found, voxels))

    def inverse(self) -> Field:
        """The inverse field, on the grid moved along with the field as a whole.

        A field that folds has no inverse everywhere, of which a warning is logged.
        """
        shift = self._shift()
        offset = shift.to(self.ddf).view(1, 3, 1, 1, 1)
        inverse, residual = invert(self.ddf - offset)
        _warn_of_folds(residual, "voxels")
        affine = self.grid.affine.clone()
        affine[:3, 3] += affine[:3, :3] @ shift
        return Field(replace(self.grid, affine=affine), inverse - offset)

    def displacement_at(self, place: Tensor) -> Tensor:
        """The displacement (1, 3, *spatial) where voxels of an array are displaced to by ``place``, of this shape."""
        return warp_within(self.ddf.float(), place.to(self.ddf.device)).to(place)

    def _shift(self) -> Tensor:
        """(3,) float64, the mean displacement in whole voxels.

        A field may hold the way from one scan's world to the other's, so that its values lie far from its grid. Whole
        voxels, because the moved grid then has the points at which the field is known.
        """
        return self.ddf.mean(dim=(0, 2, 3, 4)).round().to("cpu", torch.float64)

    def _rows(self) -> Tensor:
        return self.ddf[0].flatten(1).T.contiguous().cpu()

    def _voxels(self, points: Tensor) -> Tensor:
        return _from_world(points, self.grid)

    def _world(self, voxels: Tensor) -> Tensor:
        return Affine(self.grid.affine).points(voxels)

    def _inside(self, voxels: Tensor) -> Tensor:
        last = torch.tensor(self.grid.shape, dtype=voxels.dtype) - 0.5 + TIE
        return ((voxels >= -0.5 - TIE) & (voxels <= last)).all(dim=1, keepdim=True)


def _warn_of_folds(residual: Tensor, what: str) -> None:
    unsolved = int((residual > _UNSOLVED).sum())
    if unsolved:
        largest = float(residual.max())
        _LOGGER.warning(
            "The field folds: its inverse is not exact at %d %s, off by up to %.1f voxels.", unsolved, what, largest
        )


@dataclass(frozen=True, eq=False)
class Function:
    """A displacement as a function of points, and that of the way back, each evaluated where a point lies.

    Beyond the grid, where a network has seen no point, the displacement is that of the nearest place on its border.

    Attributes:
        grid: in whose voxels points are given to the functions.
        displacement: of points (1, N, d) in voxels, float64 or float32, of the fixed image: (1, N, d).
        inverse_displacement: likewise, of points of the moving image.
    """

    grid: Grid
    displacement: Callable[[Tensor], Tensor]
    inverse_displacement: Callable[[Tensor], Tensor]

    def points(self, points: Tensor) -> Tensor:
        """Where points (N, 3) go."""
        voxels = _from_world(points, self.grid)
        return Affine(self.grid.affine).points(voxels + self._at(voxels))

    def inverse_points(self, points: Tensor) -> Tensor:
        """Where points (N, 3) come from, by the function of the way back: nothing is solved for."""
        return self.inverse().points(points)

    def inverse(self) -> Function:
        """The way back."""
        return Function(self.grid, self.inverse_displacement, self.displacement)

    def displacement_at(self, place: Tensor) -> Tensor:
        """The displacement (1, 3, *spatial) where voxels of an array are displaced to by ``place``, of this shape."""
        positions = identity_grid(place.shape[2:], place.device, place.dtype).add_(place)
        return self._at(positions[0].flatten(1).T).T.reshape(place.shape)

    @torch.no_grad()
    def _at(self, voxels: Tensor) -> Tensor:
        last = torch.tensor(self.grid.shape, dtype=voxels.dtype) - 1
        return self.displacement(voxels.clamp(torch.zeros_like(last), last)[None])[0].to(voxels)


def _from_world(points: Tensor, grid: Grid) -> Tensor:
    """Points (N, 3) of the world in voxels, float64."""
    return Affine(torch.linalg.inv(grid.affine)).points(points.to("cpu", torch.float64))


@dataclass(frozen=True, eq=False)
class Transform:
    """Fixed world to moving world.

    Attributes:
        stages: in the order in which a point of the fixed scan goes through them.
        flat: whether it is one of images of two dimensions, and so are its affine maps; where there are fields, their
            grids say so.

    Raises:
        InputError: when fields of two and of three dimensions are mixed.
    """

    stages: tuple[Affine | Field | Function, ...]
    flat: bool = False

    def __post_init__(self) -> None:
        kinds = {stage.grid.flat for stage in self.stages if not isinstance(stage, Affine)}
        if kinds == {True, False} or (self.flat and False in kinds):
            raise InputError("A transform in two dimensions cannot be joined to one in three.")
        object.__setattr__(self, "flat", self.flat or True in kinds)

    def points(self, points: Tensor) -> Tensor:
        """Where points (N, 3) of the fixed scan lie in the moving scan, RAS+ millimetres, float64."""
        points = points.to("cpu", torch.float64)
        for stage in self.stages:
            points = stage.points(points)
        return points

    def inverse_points(self, points: Tensor) -> Tensor:
        """Where points (N, 3) of the moving scan lie in the fixed scan, RAS+ millimetres, float64."""
        points = points.to("cpu", torch.float64)
        for stage in reversed(self.stages):
            points = stage.inverse_points(points)
        return points

    def inverse(self) -> Transform:
        """Moving world to fixed world."""
        return Transform(tuple(stage.inverse() for stage in reversed(self.stages)), self.flat)

    def then(self, other: Transform) -> Transform:
        """The chain of this transform and, after it, another."""
        return Transform((*self.stages, *other.stages), self.flat or other.flat)

    def ddf(self, fixed: Grid) -> Tensor:
        """The whole chain as one field of displacements on a grid.

        Args:
            fixed: grid of the field.

        Returns:
            (1, 3, *fixed.shape), float32, voxels of ``fixed``: voxel x corresponds to the point of the moving world at
            ``fixed.affine`` (x + ddf(x)).
        """
        total: Tensor | None = None
        pending: Tensor | None = None
        for stage in self.stages:
            if isinstance(stage, Affine):
                pending = stage.matrix if pending is None else stage.matrix @ pending
            elif isinstance(stage, Field) and total is None and pending is None and stage.grid.same_as(fixed, 0):
                total = stage.ddf.float()
            else:
                place = displacement_to_moving(stage.grid, fixed, total, pending)
                place += stage.displacement_at(place)
                # The same positions, from voxels of the stage's grid back to those of the fixed grid.
                total = displacement_to_moving(moving=fixed, fixed=Grid(fixed.shape, stage.grid.affine), ddf=place)
                pending = None
        if pending is not None:
            total = displacement_to_moving(fixed, fixed, total, pending)
        return torch.zeros(1, 3, *fixed.shape) if total is None else total
