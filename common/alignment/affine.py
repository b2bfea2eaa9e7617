# SPDX-License-Identifier: Apache-2.0
"""Affine pre-alignment of two scans of any grids: rigid, then twelve parameters, by mutual information.

Deformable networks expect heads (or bodies) that lie alike. Mutual information makes no assumption about the contrasts
(Viola and Wells 1997; Maes et al. 1997). It is measured on block means of the scans: an affine needs no full
resolution. Images of two dimensions move in their plane alone: a turn and a shift, then six parameters.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from common.alignment.mutual_information import SMALLEST_OVERLAP, BlockScan, ScanPair
from common.alignment.orientation import CLEAR, best_orientation
from common.checks import InputError
from common.spatial.finite import all_finite
from common.spatial.upright import upright
from common.spatial.world import Grid

_LEVELS = ((20, 16), (30, 24), (60, 30))
"""Per resolution: voxels along an average side of the fixed scan, and the cube root of the number of points."""
_START_ROTATION = math.radians(20)
_IN_PLANE = {"rigid": (2, 3, 4), "affine": (0, 1, 3, 4, 9, 10)}
"""Of the parameters those that move nothing out of the plane of an image of two dimensions."""
_CHOSEN_STARTS = 4
_START_ITERATIONS, _ITERATIONS = 15, 100
_TOLERANCE = 1e-6
_SMALLEST_SIMILARITY = 0.3
"""Noise reaches 0.1 by chance, brains of different people nearly 0.9."""
_SCALES = (0.5, 2.0)
_LARGEST_ANISOTROPY = 1.6
"""Ratio of the largest scale to the smallest; maps that squeeze one organ onto another one have more."""


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
    moving: Tensor,
    moving_grid: Grid,
    fixed: Tensor,
    fixed_grid: Grid,
    *,
    moving_name: str = "the moving image",
    fixed_name: str = "the fixed image",
) -> Alignment:
    """Find the affine map that carries the fixed scan's world to the moving scan's.

    Flat grids are aligned in their plane, see :mod:`common.spatial.plane`.

    Several starts (the headers, the centres of mass, the centres of the grids, each also turned by 20 degrees) are
    tried at the coarsest resolution; the best one is left for another orientation where that is clearly better, refined
    rigidly, then with all twelve parameters. It converged where it is also clearly better than any other orientation.
    The same input gives the same result. Runs on one thread.

    Args:
        moving: (1, *moving_grid.shape), any numeric dtype, finite.
        moving_grid: grid of ``moving``.
        fixed: (1, *fixed_grid.shape), of any contrast, on the device of ``moving``.
        fixed_grid: grid of ``fixed``.
        moving_name: what messages call the moving scan, best its file.
        fixed_name: what messages call the fixed scan.

    Returns:
        The matrix and how good it is; a failure that leaves something to work with is no exception but a ``warning``.

    Raises:
        InputError: when a scan is constant, not finite or does not fit its grid, or one grid is flat and one not.
    """
    started = time.perf_counter()
    with _one_thread():
        matrix, before, after, reason = _searched(moving, moving_grid, moving_name, fixed, fixed_grid, fixed_name)
    warning = None
    if reason:
        figures = f"similarity {before:.2f} by the headers, {after:.2f} with the result; 1 is best"
        warning = (
            f"The affine alignment of {moving_name} to {fixed_name} did not converge: {reason} ({figures}, below "
            f"{_SMALLEST_SIMILARITY} is chance). Look at the warped image, or align the scans with another tool first."
        )
    return Alignment(matrix, before, after, reason is None, time.perf_counter() - started, warning)


def _searched(
    moving: Tensor, moving_grid: Grid, moving_name: str, fixed: Tensor, fixed_grid: Grid, fixed_name: str
) -> tuple[Tensor, float, float, str | None]:
    """The map, the similarity before and after, and why the map should not be trusted."""
    _check(fixed, fixed_grid, fixed_name)
    _check(moving, moving_grid, moving_name)
    if moving_grid.flat != fixed_grid.flat:
        raise InputError(f"{moving_name} is {moving_grid.dims}D, but {fixed_name} is {fixed_grid.dims}D.")
    if not fixed_grid.flat:
        # Blocks of voxels begin at the first one.
        (moving, moving_grid), (fixed, fixed_grid) = (
            _upright(*scan) for scan in ((moving, moving_grid), (fixed, fixed_grid))
        )
    spacings = [_mean_side(fixed_grid) / voxels for voxels, _ in _LEVELS]
    pairs = [
        ScanPair(
            BlockScan(moving, moving_grid, spacing, moving_name),
            BlockScan(fixed, fixed_grid, spacing, fixed_name),
            points,
        )
        for spacing, (_, points) in zip(spacings, _LEVELS, strict=True)
    ]
    headers = torch.eye(4, dtype=torch.float64)
    before, _ = pairs[-1].similarity(headers)
    if 1 in moving_grid.shape[: moving_grid.dims]:
        # Sampled across it, a slice goes on without an end, and so do the maps that look right.
        return headers, before, before, "the moving scan is a single slice, so the headers are kept"
    start = best_orientation(
        pairs[0], _best_start(pairs[0]), lambda matrix: _refined(pairs[0], matrix, "rigid", _START_ITERATIONS)[0]
    )
    rigid = start.matrix
    for pair in pairs[1:]:
        rigid, _ = _refined(pair, rigid, "rigid")
    affine = rigid
    for pair in pairs[1:]:
        affine, settled = _refined(pair, affine, "affine")
    matrix, after, reason = _judged(pairs[-1], before, rigid, affine, settled)
    if reason is None and start.lead < CLEAR:
        reason = f"turned by {start.rival:.0f} degrees the scans fit about as well"
    return matrix, before, after, reason


@contextmanager
def _one_thread() -> Iterator[None]:
    """The work comes in pieces too small to share: threads make it slower, far slower on busy cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _check(image: Tensor, grid: Grid, name: str) -> None:
    if tuple(image.shape) != (1, *grid.shape):
        raise InputError(f"An image of shape {tuple(image.shape)} was given for {name}, whose grid is {grid.shape}.")
    if not all_finite(image):
        raise InputError(f"There are values that are not finite in {name}: replace them, for example by 0.")


def _upright(image: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
    """A scan along the axes of the world, its place without the digits in which forms of files differ.

    The ascent ends where it no longer gains, which rounding in the ninth digit moves by hundredths of a millimetre.
    """
    image, affine = upright(image, grid.affine)
    unit = 10.0 ** (round(math.log10(min(grid.spacing))) - 5)
    # Numbers that people write down, in tens or halves, turn at no third of a step.
    affine[:3, :3] = (affine[:3, :3] / unit + 1 / 3).floor() * unit
    affine[:3, 3] = (affine[:3, 3] / (100 * unit) + 1 / 3).floor() * (100 * unit)
    return image, Grid.of(image.shape[1:], affine)


def _mean_side(grid: Grid) -> float:
    """Side in millimetres of the cube that has the volume of the grid, or of the square that has its area."""
    volume = torch.linalg.det(grid.affine[:3, :3]).abs() * math.prod(grid.shape)
    return float(volume) ** (1 / grid.dims)


def _about(centre: Tensor, linear: Tensor, shift: Tensor) -> Tensor:
    """(4, 4) map ``centre + linear (x - centre) + shift``."""
    top = torch.cat([linear, (centre + shift - linear @ centre)[:, None]], 1)
    return torch.cat([top, torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)])


def _turn(angles: Tensor) -> Tensor:
    """(3, 3) rotation about the axis ``angles`` by its length in radians."""
    x, y, z = angles
    zero = torch.zeros_like(x)
    return torch.linalg.matrix_exp(torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).view(3, 3))


def _starts(pair: ScanPair) -> Iterator[Tensor]:
    """Maps to begin with; the headers' comes first."""
    still = torch.zeros(3, dtype=torch.float64)
    shifts = (
        still,
        pair.moving.centre_of_mass() - pair.fixed.centre_of_mass(),
        pair.moving.centre() - pair.fixed.centre(),
    )
    axes = torch.eye(3, dtype=torch.float64)[2 if pair.flat else 0 :]
    turns = [still, *(sign * _START_ROTATION * axis for axis, sign in product(axes, (1, -1)))]
    for turn, shift in product(turns, shifts):
        yield _about(pair.centre, _turn(turn), shift)


def _best_start(pair: ScanPair) -> Tensor:
    starts = list(_starts(pair))
    order = sorted(range(len(starts)), key=lambda k: -pair.similarity(starts[k])[0])
    # The headers may be right though their overlap is poor, so they are always tried.
    chosen = dict.fromkeys([0, *order[:_CHOSEN_STARTS]])
    refined = [_refined(pair, starts[k], "rigid", _START_ITERATIONS)[0] for k in chosen]
    return max(refined, key=lambda matrix: pair.similarity(matrix)[0])


def _refined(pair: ScanPair, matrix: Tensor, kind: str, iterations: int = _ITERATIONS) -> tuple[Tensor, bool]:
    """The map after gradient ascent on the mutual information, and whether it settled.

    A parameter is the distance in millimetres by which it moves a typical point: all have the same weight.
    """
    from scipy.optimize import minimize

    size = 6 if kind == "rigid" else 12
    free = list(_IN_PLANE[kind] if pair.flat else range(size))

    def moved(values: Tensor) -> Tensor:
        parameters = torch.zeros(size, dtype=torch.float64).index_put((torch.tensor(free),), values)
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

    options = {"maxiter": iterations, "ftol": _TOLERANCE, "gtol": 0.0}
    result = minimize(loss, np.zeros(len(free)), jac=True, method="L-BFGS-B", options=options)
    # Status 1 is the limit of iterations; a line search at the end of float32's precision (2) has nowhere to go.
    return moved(torch.tensor(result.x, dtype=torch.float64)), result.status != 1


def _judged(
    pair: ScanPair, before: float, rigid: Tensor, affine: Tensor, settled: bool
) -> tuple[Tensor, float, str | None]:
    """The map to return, its similarity, and why it should not be trusted."""
    dims = 2 if pair.flat else 3
    scales = torch.linalg.svdvals(affine[:dims, :dims])
    low, high = float(scales.min()), float(scales.max())
    after, overlap = pair.similarity(affine)
    plausible = _SCALES[0] <= low <= high <= _SCALES[1] and high <= _LARGEST_ANISOTROPY * low
    if not plausible or float(torch.linalg.det(affine[:3, :3])) <= 0:
        after, _ = pair.similarity(rigid)
        return rigid, after, f"it scales by {low:.2f} to {high:.2f}, so only the rigid part is kept"
    if after < before - 1e-3:
        return torch.eye(4, dtype=torch.float64), before, "nothing better than the headers was found, so they are kept"
    if overlap < SMALLEST_OVERLAP:
        return affine, after, f"only {overlap:.0%} of the fixed scan meets the moving one"
    if after < _SMALLEST_SIMILARITY:
        return affine, after, "the scans do not resemble each other"
    return affine, after, None if settled else f"it was still moving after {_ITERATIONS} steps"
