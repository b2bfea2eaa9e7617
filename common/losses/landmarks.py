# SPDX-License-Identifier: Apache-2.0
"""How far corresponding points of two images are apart after registration."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from common.checks import InputError
from common.spatial import sample_at


class LandmarkLoss(nn.Module):
    """Mean distance in millimetres between where landmarks of the fixed image go and those of the moving image.

    The field is interpolated linearly at the points; outside it is that of the nearest voxel. A point that meets its
    partner exactly has no gradient.
    """

    def forward(
        self, moving_landmarks: Tensor, fixed_landmarks: Tensor, ddf: Tensor, spacing: Sequence[float] | Tensor
    ) -> Tensor:
        """Measure.

        Args:
            moving_landmarks: (B, N, d), in voxels of the moving image, point n corresponding to point n of the fixed
                one.
            fixed_landmarks: (B, N, d), in voxels of the fixed image.
            ddf: (B, d, *spatial), in voxels of both images, which lie on one grid.
            spacing: of that grid, millimetres per voxel along each array axis: d numbers, or (d,) or (B, d).

        Returns:
            Scalar >= 0: the mean over batch and points.

        Raises:
            InputError: when points, field and spacing do not fit each other, or there are no points.
        """
        _check_points(moving_landmarks, fixed_landmarks, ddf)
        dtype = torch.promote_types(ddf.dtype, torch.float32)
        moving, fixed = moving_landmarks.to(ddf.device, dtype), fixed_landmarks.to(ddf.device, dtype)
        sizes = _sizes(spacing, ddf, dtype)
        with torch.autocast(ddf.device.type, enabled=False):
            reached = fixed + sample_at(ddf, fixed).transpose(1, 2)
            return ((reached - moving) * sizes).norm(dim=2).mean()


def _check_points(moving: Tensor, fixed: Tensor, ddf: Tensor) -> None:
    if moving.shape != fixed.shape or fixed.ndim != 3 or fixed.shape[::2] != ddf.shape[:2]:
        raise InputError(
            f"LandmarkLoss got moving landmarks of shape {tuple(moving.shape)}, fixed ones of shape "
            f"{tuple(fixed.shape)} and a field of shape {tuple(ddf.shape)}; give (batch, points, axes), point n of the "
            "one corresponding to point n of the other."
        )
    if fixed.shape[1] == 0:
        raise InputError("LandmarkLoss got no landmarks; leave the term out, or give points of both images.")


def _sizes(spacing: Sequence[float] | Tensor, ddf: Tensor, dtype: torch.dtype) -> Tensor:
    """(1 or B, 1, d)."""
    sizes = torch.as_tensor(spacing, dtype=dtype, device=ddf.device)
    sizes = sizes[None] if sizes.ndim == 1 else sizes
    if sizes.ndim != 2 or sizes.shape[1] != ddf.shape[1] or len(sizes) not in (1, len(ddf)):
        raise InputError(
            f"LandmarkLoss got spacing={spacing} for a field of shape {tuple(ddf.shape)}; give one voxel size per axis."
        )
    return sizes[:, None]
