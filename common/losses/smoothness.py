# SPDX-License-Identifier: Apache-2.0
"""Penalties on the first and second differences of a displacement field, their gradients computed with the value."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from common.checks import InputError
from common.losses.closed_form import computing_dtype, needs_gradient, with_gradient

# A linear stencil: coefficient by offset (one integer >= 0 per spatial axis).
Stencil = dict[tuple[int, ...], float]


class GradientLoss(nn.Module):
    """Diffusion regulariser: mean size of the forward differences of a field.

    For each spatial axis the mean over batch, channels and voxels of ``|u(x + e) - u(x)|`` (``"l1"``) or of its square
    (``"l2"``, without a factor 1/2), then the average over the axes: Grad3d of EOIR, Grad of VoxelMorph and TransMorph.
    Differences are per voxel, so the value depends on the grid. An axis of one voxel has no difference and adds 0; the
    number of axes that is divided by stays the same. The l1 gradient is 0 where a difference is exactly 0. MONAI's
    ``DiffusionLoss`` takes central differences inside the cropped interior instead and gives other numbers.

    Args:
        penalty: ``"l1"`` or ``"l2"``.
        spacing: voxel size along each axis: the differences are then slopes, of channel c along axis e those of the
            voxels times ``spacing[c] / spacing[e]``, as in SITReg. None for cubes, whatever their size. ``"extent"``
            for voxels of which n fill the same length along each axis: slopes of a field in units of the extent, as in
            LKU-Net, whose penalty is this one with channel c times (n_c / (n_c - 1))^2.

    Raises:
        InputError: for another penalty or word, or in :meth:`forward` a field that does not fit the spacing.
    """

    def __init__(self, penalty: str = "l2", spacing: Sequence[float] | str | None = None) -> None:
        super().__init__()
        if penalty not in ("l1", "l2"):
            raise InputError(f"GradientLoss got penalty={penalty!r}; choose 'l1' or 'l2'.")
        if isinstance(spacing, str) and spacing != "extent":
            raise InputError(f"GradientLoss got spacing={spacing!r}; give a voxel size along each axis, or 'extent'.")
        self.penalty = penalty
        self.spacing = spacing if spacing is None or isinstance(spacing, str) else tuple(spacing)

    def forward(self, pred: Tensor) -> Tensor:
        """Penalise a field (B, d, *spatial), 2D or 3D, any units (voxels in all bundles); returns a scalar >= 0."""
        dims = _spatial_dims(pred)
        spacing = [1 / n for n in pred.shape[2:]] if isinstance(self.spacing, str) else self.spacing
        if spacing is not None and not len(spacing) == dims == pred.shape[1]:
            raise InputError(f"GradientLoss got spacing={self.spacing} for a field of shape {tuple(pred.shape)}.")
        stencils: list[tuple[float, Stencil]] = []
        for axis in range(dims):
            stencils.append((1 / dims, {_offset(dims): -1.0, _offset(dims, axis): 1.0}))
        slopes = None
        if spacing is not None:
            slopes = [
                [(along / across) ** (2 if self.penalty == "l2" else 1) for across in spacing] for along in spacing
            ]
        return _mean_penalty(pred, stencils, self.penalty, slopes)


class BendingLoss(nn.Module):
    r"""Bending energy: mean squared second differences of a field, mixed ones included.

    .. math::
        \sum_a \mathrm{mean}\,(u(x + 2e_a) - 2u(x + e_a) + u(x))^2
        + 2 \sum_{a<b} \mathrm{mean}\,(u(x + e_a + e_b) - u(x + e_a) - u(x + e_b) + u(x))^2

    Each mean runs over batch, channels and all places where the difference exists; a term without such a place (thin
    volumes) adds 0. MONAI 1.6's ``BendingEnergyLoss`` averages every term over the interior only (one voxel cropped
    from all sides) and takes the mixed differences over four voxels two apart (``/4``), which do not see the finest
    oscillations; both agree exactly where second derivatives are constant.
    """

    def forward(self, pred: Tensor) -> Tensor:
        """Penalise a field (B, d, *spatial), 2D or 3D; returns a scalar >= 0, zero for affine fields."""
        dims = _spatial_dims(pred)
        stencils: list[tuple[float, Stencil]] = []
        for a, b in itertools.combinations_with_replacement(range(dims), 2):
            if a == b:
                pure = {_offset(dims): 1.0, _offset(dims, a): -2.0, _offset(dims, a, a): 1.0}
                stencils.append((1.0, pure))
            else:
                mixed = {_offset(dims): 1.0, _offset(dims, a): -1.0, _offset(dims, b): -1.0, _offset(dims, a, b): 1.0}
                stencils.append((2.0, mixed))
        return _mean_penalty(pred, stencils, "l2")


def _spatial_dims(field: Tensor) -> int:
    dims = field.ndim - 2
    if dims not in (2, 3):
        raise InputError(
            f"A smoothness loss got a field of shape {tuple(field.shape)}; pass (batch, channels, *spatial), 2D or 3D."
        )
    return dims


def _offset(dims: int, *axes: int) -> tuple[int, ...]:
    return tuple(axes.count(axis) for axis in range(dims))


def _mean_penalty(
    field: Tensor,
    stencils: Sequence[tuple[float, Stencil]],
    penalty: str,
    weights: Sequence[Sequence[float]] | None = None,
) -> Tensor:
    """Sum over stencils of weight times the mean (over batch, channels, places) of the penalised stencil response.

    ``weights`` has a further factor for each channel and stencil.
    """
    field = field.to(computing_dtype(field))
    gradient = torch.zeros(field.shape, dtype=field.dtype, device=field.device) if needs_gradient(field) else None
    value = field.new_zeros((), dtype=torch.float64)
    volumes = field.shape[0] * field.shape[1]
    with torch.no_grad(), torch.autocast(field.device.type, enabled=False):
        # One channel at a time: its differences stay in the cache while they are used.
        for b, c in itertools.product(range(field.shape[0]), range(field.shape[1])):
            slope = None if gradient is None else gradient[b, c]
            for i, (weight, stencil) in enumerate(stencils):
                factor = weight / volumes * (1 if weights is None else weights[c][i])
                value += _add_response(field[b, c], stencil, penalty, factor, slope)
    return with_gradient(value.to(field.dtype), [field], [gradient])


def _add_response(volume: Tensor, stencil: Stencil, penalty: str, weight: float, slope: Tensor | None) -> Tensor:
    """``weight`` times the mean penalty of one stencil on one volume; adds its gradient to ``slope``."""
    sizes = [n - max(offset[axis] for offset in stencil) for axis, n in enumerate(volume.shape)]
    if min(sizes) <= 0:
        return volume.new_zeros((), dtype=torch.float64)
    windows = {o: tuple(slice(k, k + n) for k, n in zip(o, sizes, strict=True)) for o in stencil}
    (first, scale), *rest = stencil.items()
    response = volume[windows[first]] * scale
    for offset, coefficient in rest:
        response.add_(volume[windows[offset]], alpha=coefficient)
    factor = weight / response.numel()
    derivative = response.sign() if penalty == "l1" else response
    if slope is not None:
        step = factor if penalty == "l1" else 2 * factor
        for offset, coefficient in stencil.items():
            slope[windows[offset]].add_(derivative, alpha=step * coefficient)
    # Not a dot product, which adds millions of equal signs up in few float32 numbers; a sum goes by halves.
    return response.mul_(derivative).sum().double() * factor
