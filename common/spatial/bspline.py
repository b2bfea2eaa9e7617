# SPDX-License-Identifier: Apache-2.0
"""Displacement fields as uniform cubic B-splines, and how large their control points may be.

Source: Honkamaa and Marttinen, "SITReg: multi-resolution architecture for symmetric, inverse consistent, and topology
preserving image registration", MELBA 2024:026 (arXiv 2303.10211).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from common.checks import InputError
from common.spatial.coordinates import check_ddf
from common.tracing import is_traced, without_autocast

_REACH = 2
"""Control points to either side that a point of the spline depends on."""


def bspline_field(control: Tensor, size: Sequence[int], factor: int | Sequence[int]) -> Tensor:
    r"""Evaluate a displacement field given by B-spline control points at the voxels of a finer grid.

    Both grids cover the same extent with aligned outer edges: voxel x of the fine grid lies at (x + 1/2) / factor - 1/2
    of the coarse one. Along each axis, with the cubic B-spline :math:`\beta` and without a prefilter,

    .. math:: u(x) = \mathrm{factor} \sum_m \beta(t - m)\, c_m, \quad t = (x + 1/2) / \mathrm{factor} - 1/2,

    where control points outside are those of the border. The spline smooths, also where the factor is 1.

    Args:
        control: (B, d, *coarse), in voxels of the coarse grid.
        size: spatial shape of the fine grid; coarse is at least size / factor along each axis.
        factor: coarse voxel size in fine voxels, one for all axes or one for each.

    Returns:
        (B, d, *size), in voxels of the fine grid; float32 (float64 for float64 input) whatever autocast says.

    Raises:
        ValueError: when ``control`` is no displacement field.
        InputError: for factors below 1 or a fine grid that reaches beyond the coarse one.
    """
    check_ddf(control)
    factors = _factors(factor, control.shape[1])
    field = control.to(torch.promote_types(control.dtype, torch.float32))
    tracing = is_traced()
    if not tracing and any(n > f * m for n, f, m in zip(size, factors, control.shape[2:], strict=True)):
        raise InputError(
            f"{tuple(control.shape[2:])} control points times {factors} do not cover a grid of {tuple(size)} voxels."
        )
    with without_autocast(control):
        scale = torch.tensor(factors, dtype=field.dtype, device=field.device).view(1, -1, *[1] * len(factors))
        field = field * scale
        for axis, (n, f) in enumerate(zip(size, factors, strict=True)):
            evaluate = _evaluate_traceably if tracing else _evaluate
            field = evaluate(field, axis + 2, n, f)
    return field


def _factors(factor: int | Sequence[int], dims: int) -> tuple[int, ...]:
    factors = (factor,) * dims if isinstance(factor, int) else tuple(factor)
    if len(factors) != dims or min(factors) < 1:
        raise InputError(f"The factor of a B-spline is {factor}; give a whole number from 1, or {dims} of them.")
    return factors


def _evaluate(field: Tensor, axis: int, size: int, factor: int) -> Tensor:
    """One axis as a matrix product, of which autograd keeps the small matrix alone."""
    matrix = _matrix(field.shape[axis], size, factor, field.dtype, field.device)
    tail = field.shape[axis + 1 :]
    if not tail:
        return field @ matrix.T
    return (matrix @ field.flatten(axis + 1)).unflatten(-1, tail)


@functools.lru_cache(maxsize=128)
def _matrix(coarse: int, fine: int, factor: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(fine, coarse): the weight of each control point in each voxel."""
    # Explicitly on the CPU, also where another device is the default.
    position = (torch.arange(fine, dtype=torch.float64, device="cpu") + 0.5) / factor - 0.5
    points = torch.arange(-_REACH, coarse + _REACH, dtype=torch.float64, device="cpu")
    weights = cubic_bspline(position[:, None] - points)
    matrix = torch.zeros(fine, coarse, dtype=torch.float64, device="cpu")
    matrix.index_add_(1, points.long().clamp(0, coarse - 1), weights)
    return matrix.to(device, dtype)


def _evaluate_traceably(field: Tensor, axis: int, size: int, factor: int) -> Tensor:
    """The same for any size, with the border repeated and a transposed convolution."""
    kernel = spline_kernel(factor, field.dtype).to(field.device)
    kernel = kernel.view(1, 1, *[-1 if k == axis else 1 for k in range(2, field.ndim)])
    first, last = field.narrow(axis, 0, 1), field.narrow(axis, field.shape[axis] - 1, 1)
    padded = torch.cat([first, first, field, last, last], dim=axis)
    convolve = F.conv_transpose2d if field.ndim == 4 else F.conv_transpose3d
    stride = [factor if k == axis else 1 for k in range(2, field.ndim)]
    # Channel by channel: each is an image of its own.
    channels = [convolve(padded[:, k : k + 1], kernel, stride=stride) for k in range(field.shape[1])]
    return torch.cat(channels, dim=1).narrow(axis, (7 * factor) // 2, size)


def spline_kernel(factor: int, dtype: torch.dtype) -> Tensor:
    """The B-spline at the fine voxels that a control point reaches, (4 factor,), or one less for an odd factor."""
    first = 1.0 if factor % 2 else 0.5
    steps = torch.arange(4 * factor - factor % 2, dtype=torch.float64, device="cpu") + first
    return cubic_bspline(steps / factor - _REACH).to(dtype)


def cubic_bspline(t: Tensor) -> Tensor:
    """The centred uniform cubic B-spline: 2/3 - t^2 + |t|^3 / 2 within 1, (2 - |t|)^3 / 6 within 2, else 0."""
    distance = t.abs()
    inner = 2 / 3 - distance**2 + distance**3 / 2
    return torch.where(distance < 1, inner, (2 - distance).clamp(min=0) ** 3 / 6)


@functools.lru_cache(maxsize=64)
def bspline_bound(factors: tuple[int, ...]) -> float:
    r"""How large control points may be, in coarse voxels, so that the field of :func:`bspline_field` is invertible.

    Below it, the field interpolated linearly between fine voxels has a Lipschitz constant below 1 in the maximum norm:
    ``x + u(x)`` is invertible and ``v <- -u(x + v)`` converges to its inverse. The bound is the reciprocal of the
    largest sum over control points of :math:`|\sum_k \pm \partial_k B|`, where B is the sampled weight of a control
    point and the derivatives are one-sided differences between fine voxels, in coarse units.

    Args:
        factors: coarse voxel size in fine voxels along each axis.

    Returns:
        The bound on the absolute value of each component; 0.36 for (1, 1, 1).

    Raises:
        InputError: for factors below 1.
    """
    phases = [_phases(f) for f in _factors(factors, len(factors))]
    total: Tensor | None = None
    for sloping in range(len(factors)):
        product = torch.ones((1, 1), dtype=torch.float64, device="cpu")
        for axis, (weight, slope) in enumerate(phases):
            # The phases of all axes so far come first, then the control points of all.
            factor = slope if axis == sloping else weight
            product = torch.einsum("ab,cd->acbd", product, factor)
            product = product.flatten(2).flatten(0, 1)
        total = product if total is None else total + product
    assert total is not None
    return 1 / float(total.abs().sum(1).max())


def _phases(factor: int) -> tuple[Tensor, Tensor]:
    """Weight and difference to the next fine voxel of each control point, (phases, control points), one axis.

    By symmetry half of the phases say all.
    """
    half = 2 * factor if factor % 2 == 0 else 2 * factor - 1
    first = 0.0 if factor % 2 else 0.5
    steps = torch.arange(-half, half + factor % 2, dtype=torch.float64, device="cpu") + first
    samples = F.pad(cubic_bspline(steps / factor), (1, 1))
    weight, slope = samples[:-1], factor * samples.diff()
    phases = math.ceil((factor + 1) / 2)
    missing = (-len(weight)) % factor
    columns = [F.pad(x, (0, missing)).view(-1, factor)[:, :phases].T for x in (weight, slope)]
    return columns[0], columns[1]
