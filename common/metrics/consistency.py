# SPDX-License-Identifier: Apache-2.0
"""How well a backward field undoes the forward one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from common.checks import InputError
from common.metrics.voxel_sizes import voxel_sizes
from common.spatial.coordinates import check_ddf
from common.spatial.lengths import lengths
from common.spatial.warp import compose


class InverseConsistency(NamedTuple):
    """Distance of ``backward(forward(x))`` from ``x``; both entries are (B,), float64, in the spacing's unit.

    Attributes:
        mean: over the voxels counted.
        maximum: the largest among them.
    """

    mean: Tensor
    maximum: Tensor


def inverse_consistency_error(
    forward: Tensor, backward: Tensor, spacing: Sequence[float] | None = None, mask: Tensor | None = None
) -> InverseConsistency:
    """Magnitude of ``forward(x) + backward(x + forward(x))``, which is 0 when the fields are inverse to each other.

    The backward field is interpolated linearly, and continued by its border values where the forward field leaves the
    volume. float64 fields are evaluated in float64.

    Args:
        forward: (B, d, *spatial), in voxels, from the fixed to the moving image.
        backward: (B, d, *spatial), in voxels of the same grid, from the moving to the fixed image.
        spacing: voxel size along each array axis, for an error in millimetres; default 1, an error in voxels.
        mask: (B, 1, *spatial); voxels above 0 count, default all.

    Returns:
        See :class:`InverseConsistency`; NaN where the mask is empty.

    Raises:
        InputError: when shapes or spacing do not fit.
        ValueError: when ``forward`` is no displacement field.
    """
    check_ddf(forward)
    if forward.shape != backward.shape or (mask is not None and mask.shape != (len(forward), 1, *forward.shape[2:])):
        raise InputError(
            f"The forward field has shape {tuple(forward.shape)}, the backward field {tuple(backward.shape)}"
            + (f" and the mask {tuple(mask.shape)}" if mask is not None else "")
            + ": all must lie on one grid."
        )
    dims = forward.shape[1]
    sizes = voxel_sizes(spacing, dims)
    dtype = torch.promote_types(torch.promote_types(forward.dtype, backward.dtype), torch.float32)
    rows = []
    for b in range(len(forward)):
        there, back = forward[b : b + 1].detach().to(dtype), backward[b : b + 1].detach().to(dtype)
        scale = torch.tensor(sizes, dtype=dtype, device=forward.device).view(1, dims, *[1] * dims)
        error = lengths(compose(back, there).mul_(scale))[0, 0]
        counted = error.flatten() if mask is None else error[mask[b, 0] > 0]
        nothing = error.new_tensor(torch.nan)
        rows.append([counted.double().mean(), (counted.max() if counted.numel() else nothing).double()])
    return InverseConsistency(*(torch.stack(list(column)) for column in zip(*rows, strict=True)))
