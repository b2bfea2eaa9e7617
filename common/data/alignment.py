# SPDX-License-Identifier: Apache-2.0
"""Affine pre-alignment of two scans of any grids: rigid, then twelve parameters, by mutual information.

Deformable networks expect heads (or bodies) that lie alike. Mutual information makes no assumption about the contrasts
(Viola and Wells 1997; Maes et al. 1997); the smooth histogram of Mattes et al. (2003) gives it a gradient. It is
measured at a fixed random set of points, on block means of the scans: an affine needs no full resolution.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.checks import InputError
from common.spatial.grid import identity_grid
from common.spatial.warp import warp
from common.spatial.world import Grid

_BINS = 32
_LEVELS = ((20, 16), (30, 24), (60, 30))
"""Per resolution: voxels along an average side of the fixed scan, and the cube root of the number of points."""
_START_ROTATION = math.radians(20)
_START_ITERATIONS, _ITERATIONS = 15, 100
_TOLERANCE = 1e-6
_SMALLEST_OVERLAP = 0.1
_SMALLEST_SIMILARITY = 0.3
"""Unrelated scans reach about 0.2 by chance, brains of different people 0.8."""
_SCALES = (0.5, 2.0)


@dataclass(frozen=True, eq=False)
class Alignment:
    """Where the moving scan lies in the world of the fixed one.

    Attributes:
        matrix: (4, 4) float64 on the CPU, fixed world to moving world, millimetres RAS+.
        similarity_before: informational correlation of the scans where their headers put them, at the points of the
            fixed scan's foreground: 0 is unrelated, 1 is determined by each other whatever the contrasts
            (sqrt(1 - exp(-2 MI)), Linfoot 1957; the absolute correlation for normally distributed values).
        similarity_after: the same with ``matrix``.
        converged: False when the result should not be trusted; ``warning`` says why.
        seconds: time taken.
        warning: one sentence for the user, None when ``converged``.
    """

    matrix: Tensor
    similarity_before: float
    similarity_after: float
    converged: bool
    seconds: float
    warning: str | None = None


def align(
    fixed: Tensor,
    fixed_grid: Grid,
    moving: Tensor,
    moving_grid: Grid,
    *,
    fixed_name: str = "the fixed image",
    moving_name: str = "the moving image",
    seed: int = 0,
) -> Alignment:
    """Find the affine map that carries the fixed scan's world to the moving scan's.

    Several starts (the headers, the centres of mass, the centres of the grids, each also turned by 20 degrees) are
    tried at the coarsest resolution; the best one is refined rigidly, then with all twelve parameters. The same input
    gives the same result on the same number of threads.

    Args:
        fixed: (1, *fixed_grid.shape), any numeric dtype, finite.
        fixed_grid: grid of ``fixed``.
        moving: (1, *moving_grid.shape), of any contrast, on the device of ``fixed``.
        moving_grid: grid of ``moving``.
        fixed_name: what messages call the fixed scan, best its file.
        moving_name: what messages call the moving scan.
        seed: of the points.

    Returns:
        The matrix and how good it is; a failure that leaves something to work with is no exception but a ``warning``.

    Raises:
        InputError: when a scan is constant, not finite or does not fit its grid.
    """
    started = time.perf_counter()
    _check(fixed, fixed_grid, fixed_name)
    _check(moving, moving_grid, moving_name)
    spacings = [_mean_side(fixed_grid) / voxels for voxels, _ in _LEVELS]
    pairs = [
        _Pair(_Scan(fixed, fixed_grid, spacing), _Scan(moving, moving_grid, spacing), points, seed)
        for spacing, (_, points) in zip(spacings, _LEVELS, strict=True)
    ]
    rigid = _best_start(pairs[0])
    for pair in pairs[1:]:
        rigid, _ = _refined(pair, rigid, "rigid")
    affine = rigid
    for pair in pairs[1:]:
        affine, settled = _refined(pair, affine, "affine")
    before, _ = pairs[-1].similarity(torch.eye(4, dtype=torch.float64))
    matrix, after, reason = _judged(pairs[-1], before, rigid, affine, settled)
    warning = None
    if reason:
        warning = (
            f"The affine alignment of {moving_name} to {fixed_name} did not converge: {reason} (similarity {before:.2f} "
            f"by the headers, {after:.2f} with the result; 1 is best, below {_SMALLEST_SIMILARITY} is chance). Look at "
            "the warped image, or align the scans with another tool first."
        )
    return Alignment(matrix, before, after, reason is None, time.perf_counter() - started, warning)


def _check(image: Tensor, grid: Grid, name: str) -> None:
    if tuple(image.shape) != (1, *grid.shape):
        raise InputError(f"An image of shape {tuple(image.shape)} was given for {name}, whose grid is {grid.shape}.")
    if not bool(torch.isfinite(image).all()):
        raise InputError(f"There are values that are not finite in {name}: replace them, for example by 0.")
    if bool(image.min() == image.max()):
        raise InputError(f"All voxels of {name} have the same value: there is nothing to align.")


def _mean_side(grid: Grid) -> float:
    """Side in millimetres of the cube that has the volume of the grid."""
    volume = torch.linalg.det(grid.affine[:3, :3]).abs() * math.prod(grid.shape)
    return float(volume) ** (1 / 3)


class _Scan:
    """Block means of a scan, and what of it is background."""

    def __init__(self, image: Tensor, grid: Grid, spacing: float) -> None:
        blocks = [min(n, max(1, round(spacing / mm))) for n, mm in zip(grid.shape, grid.spacing, strict=True)]
        self.values = F.avg_pool3d(image.float()[None], blocks, blocks)
        to_first = torch.eye(4, dtype=torch.float64)
        for axis, block in enumerate(blocks):
            to_first[axis, axis], to_first[axis, 3] = block, (block - 1) / 2
        self.affine = grid.affine @ to_first
        self.low, self.high = self._range()
        self.foreground = self.values > self.low + 0.02 * (self.high - self.low)
        self.shape = tuple(self.values.shape[2:])

    def _range(self) -> tuple[float, float]:
        """Robust smallest and largest value; the largest counts only what is not the smallest, often most of a scan."""
        low = float(torch.quantile(self.values, 0.005))
        above = self.values[self.values > low]
        return low, float(torch.quantile(above, 0.995)) if above.numel() else low + 1

    def in_bins(self) -> Tensor:
        """(1, 1, *spatial) values in units of histogram bins, a bin of room at either end for the smooth histogram."""
        unit = (self.values.clamp(self.low, self.high) - self.low) / (self.high - self.low)
        return 1 + unit * (_BINS - 3)

    def open_faces(self) -> Iterator[tuple[bool, bool]]:
        """Per axis, whether the object is cut off at the first and at the last plane."""
        for axis in range(3):
            for_axis = self.foreground.float().movedim(2 + axis, 0)
            yield bool(for_axis[0].mean() > 0.02), bool(for_axis[-1].mean() > 0.02)

    def centre_of_mass(self) -> Tensor:
        """(3,) world position."""
        weights = (self.values.clamp(self.low, self.high) - self.low).double()[0, 0]
        sums = [weights.movedim(axis, 0).flatten(1).sum(1) for axis in range(3)]
        centre = [float((line * torch.arange(len(line)).to(line)).sum() / line.sum()) for line in sums]
        return self._world(centre)

    def centre(self) -> Tensor:
        """(3,) world position of the grid's centre."""
        return self._world([(n - 1) / 2 for n in self.shape])

    def _world(self, voxel: list[float]) -> Tensor:
        return self.affine[:3, :3] @ torch.tensor(voxel, dtype=torch.float64) + self.affine[:3, 3]


class _Pair:
    """Two scans at one resolution and the points at which they are compared."""

    def __init__(self, fixed: _Scan, moving: _Scan, side: int, seed: int) -> None:
        self.fixed, self.moving = fixed, moving
        # Two voxels around the object, so that its outline counts.
        near = F.max_pool3d(fixed.foreground.float(), 5, 1, 2)[0, 0].nonzero()
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(len(near), (side**3,), generator=generator).to(near.device)
        # Points on voxel centres would favour maps that put grids onto each other, where interpolation blurs nothing.
        jitter = torch.rand(side**3, 3, generator=generator, dtype=torch.float64).to(near.device) - 0.5
        voxels = (near[chosen] + jitter).T.reshape(1, 3, side, side, side)
        self._identity = identity_grid((side,) * 3, near.device, torch.float64)
        self._at_fixed = _smooth_bins(warp(fixed.in_bins(), (voxels - self._identity).float()).flatten())
        self._moving_values = moving.in_bins()
        self._from_world = torch.linalg.inv(moving.affine).to(near.device)
        self._faces = list(moving.open_faces())
        self._points = fixed.affine[:3, :3].to(near.device) @ voxels.flatten(2)[0]
        self._points += fixed.affine[:3, 3:].to(near.device)
        self.centre = self._points.mean(1).cpu()
        self.radius = float((self._points - self._points.mean(1, keepdim=True)).square().sum(0).mean().sqrt())

    def information(self, matrix: Tensor) -> tuple[Tensor, float]:
        """Mutual information in nats under a map of the world, and the overlap.

        Args:
            matrix: (4, 4) float64, fixed world to moving world; may require a gradient.

        Returns:
            A scalar, and the fraction of the points that meet the moving scan.
        """
        total = self._from_world @ matrix.to(self._from_world)
        voxels = (total[:3, :3] @ self._points + total[:3, 3:]).view_as(self._identity)
        values = warp(self._moving_values, (voxels - self._identity).float())
        seen = self._seen(voxels)
        joint = (self._at_fixed * seen[:, None]).T @ _smooth_bins(values.flatten())
        joint = joint / joint.sum().clamp(min=1e-6)
        information = _entropy(joint.sum(0)) + _entropy(joint.sum(1)) - _entropy(joint)
        return information, float(seen.detach().mean())

    def _seen(self, voxels: Tensor) -> Tensor:
        """(points,) weight of each point: 0 where the moving scan was cut off, falling within one voxel.

        Beyond a face that shows background only, there is more of it: such points count.
        """
        seen = torch.ones_like(voxels[0, 0])
        for axis, (first, last) in enumerate(self._faces):
            position = voxels[0, axis]
            if first:
                seen = seen * (1 + position).clamp(0, 1)
            if last:
                seen = seen * (self.moving.shape[axis] - position).clamp(0, 1)
        return seen.flatten().float()

    def similarity(self, matrix: Tensor) -> tuple[float, float]:
        """Informational correlation in [0, 1], 0 where the scans hardly meet; and the overlap."""
        with torch.no_grad():
            information, overlap = self.information(matrix)
        value = math.sqrt(max(0.0, 1 - math.exp(-2 * max(0.0, float(information)))))
        return (value if overlap >= _SMALLEST_OVERLAP else 0.0), overlap


def _smooth_bins(values: Tensor) -> Tensor:
    """(N, bins) cubic B-spline weights of values in units of bins (Mattes et al. 2003, eq. 11)."""
    distance = (values[:, None] - torch.arange(_BINS, device=values.device)).abs()
    far = (2 - distance).clamp(min=0)
    near = (1 - distance).clamp(min=0)
    return (far * far * far - 4 * near * near * near) / 6


def _entropy(probabilities: Tensor) -> Tensor:
    return -(probabilities * probabilities.clamp(min=1e-12).log()).sum()


def _about(centre: Tensor, linear: Tensor, shift: Tensor) -> Tensor:
    """(4, 4) map ``centre + linear (x - centre) + shift``."""
    top = torch.cat([linear, (centre + shift - linear @ centre)[:, None]], 1)
    return torch.cat([top, torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)])


def _turn(angles: Tensor) -> Tensor:
    """(3, 3) rotation about the axis ``angles`` by its length in radians."""
    x, y, z = angles
    zero = torch.zeros_like(x)
    return torch.linalg.matrix_exp(torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).view(3, 3))


def _starts(pair: _Pair) -> Iterator[Tensor]:
    """Maps to begin with; the headers' comes first."""
    still = torch.zeros(3, dtype=torch.float64)
    shifts = (
        still,
        pair.moving.centre_of_mass() - pair.fixed.centre_of_mass(),
        pair.moving.centre() - pair.fixed.centre(),
    )
    turns = [still, *(sign * _START_ROTATION * axis for axis, sign in product(torch.eye(3).double(), (1, -1)))]
    for turn, shift in product(turns, shifts):
        yield _about(pair.centre, _turn(turn), shift)


def _best_start(pair: _Pair) -> Tensor:
    starts = list(_starts(pair))
    order = sorted(range(len(starts)), key=lambda k: -pair.similarity(starts[k])[0])
    # The headers may be right though their overlap is poor, so they are always tried.
    chosen = dict.fromkeys([0, *order[:4]])
    refined = [_refined(pair, starts[k], "rigid", _START_ITERATIONS)[0] for k in chosen]
    return max(refined, key=lambda matrix: pair.similarity(matrix)[0])


def _refined(pair: _Pair, matrix: Tensor, kind: str, iterations: int = _ITERATIONS) -> tuple[Tensor, bool]:
    """The map after gradient ascent on the mutual information, and whether it settled.

    A parameter is the distance in millimetres by which it moves a typical point: all have the same weight.
    """
    from scipy.optimize import minimize

    def moved(parameters: Tensor) -> Tensor:
        if kind == "rigid":
            linear = _turn(parameters[:3] / pair.radius)
        else:
            linear = torch.eye(3, dtype=torch.float64) + parameters[:9].view(3, 3) / pair.radius
        return matrix @ _about(pair.centre, linear, parameters[-3:])

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        information, _ = pair.information(moved(parameters))
        (gradient,) = torch.autograd.grad(-information, parameters)
        return -float(information.detach()), gradient.numpy()

    size = 6 if kind == "rigid" else 12
    options = {"maxiter": iterations, "ftol": _TOLERANCE, "gtol": 0.0}
    result = minimize(loss, np.zeros(size), jac=True, method="L-BFGS-B", options=options)
    # Status 1 is the limit of iterations; a line search at the end of float32's precision (2) has nowhere to go.
    return moved(torch.tensor(result.x, dtype=torch.float64)), result.status != 1


def _judged(
    pair: _Pair, before: float, rigid: Tensor, affine: Tensor, settled: bool
) -> tuple[Tensor, float, str | None]:
    """The map to return, its similarity, and why it should not be trusted."""
    scales = torch.linalg.svdvals(affine[:3, :3])
    low, high = float(scales.min()), float(scales.max())
    after, overlap = pair.similarity(affine)
    if not _SCALES[0] <= low <= high <= _SCALES[1] or float(torch.linalg.det(affine[:3, :3])) <= 0:
        after, _ = pair.similarity(rigid)
        return rigid, after, f"it scales by {low:.2f} to {high:.2f}, so only the rigid part is kept"
    if after < before - 1e-3:
        return torch.eye(4, dtype=torch.float64), before, "nothing better than the headers was found, so they are kept"
    if overlap < _SMALLEST_OVERLAP:
        return affine, after, f"only {overlap:.0%} of the fixed scan meets the moving one"
    if after < _SMALLEST_SIMILARITY:
        return affine, after, "the scans do not resemble each other"
    return affine, after, None if settled else f"it was still moving after {_ITERATIONS} steps"
