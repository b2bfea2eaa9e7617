# SPDX-License-Identifier: Apache-2.0
"""Target registration error (TRE): how far landmarks of the fixed image end up from those of the moving image.

The two challenges differ. :func:`tre_l2r` moves points and knows fractions of a voxel; :func:`tre_lumir` warps volumes
of labelled landmarks and compares whole voxels' centroids, so that close methods may tie.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from common.checks import InputError
from common.metrics.voxel_sizes import voxel_sizes
from common.spatial.coordinates import check_ddf
from common.spatial.labels import warp_labels


def tre_l2r(
    ddf: Tensor | None, moving_points: Tensor, fixed_points: Tensor, spacing: Sequence[float] | None = None
) -> Tensor:
    """Distance ``|(fixed + ddf(fixed) - moving) * spacing|`` of every pair of points, as Learn2Reg measures it.

    The field is sampled at the fixed points by a cubic spline
    (``scipy.ndimage.map_coordinates(ddf, points, order=3)``); outside the volume the displacement is 0.

    Args:
        ddf: (B, d, *spatial), in voxels; None for the error before registration.
        moving_points: (B, N, d), voxel coordinates along the array axes of the moving image.
        fixed_points: (B, N, d), the corresponding points in voxels of the fixed image.
        spacing: voxel size of the *moving* image along each array axis, default 1.

    Returns:
        (B, N), float64, in the unit of the spacing; the published figure is the mean over the points.

    Raises:
        InputError: when points, field or spacing do not fit each other.
    """
    _check_points(ddf, moving_points, fixed_points)
    sizes = fixed_points.new_tensor(voxel_sizes(spacing, fixed_points.shape[2]), dtype=torch.float64)
    reached = fixed_points.double()
    if ddf is not None:
        reached = reached + torch.stack([_sampled(u, x) for u, x in zip(ddf, fixed_points, strict=True)])
    return ((reached - moving_points.double()) * sizes).norm(dim=2)


def tre_lumir(
    moving_landmarks: Tensor, fixed_landmarks: Tensor, ddf: Tensor | None, spacing: Sequence[float] | float = 1
) -> Tensor:
    """Mean distance between the centroids of labelled landmarks after warping, as LUMIR measures it.

    Args:
        moving_landmarks: (B, 1, *spatial'), integer dtype; every value above 0 is one landmark.
        fixed_landmarks: (B, 1, *spatial), the same values for corresponding landmarks.
        ddf: (B, d, *spatial), in voxels; None for the error before registration, on one grid.
        spacing: voxel size along each array axis or along all of them; 1 in the challenge, whose grid is 1 mm.

    Returns:
        (B,), float64, in the unit of the spacing: the mean over the landmarks of the fixed volume. NaN where there is
        none, or where the moving volume lacks one or loses one by warping, as in the challenge.

    Raises:
        InputError: when the volumes are no label maps of one shape.
        ValueError: when ``ddf`` is no displacement field.
    """
    warped = moving_landmarks if ddf is None else warp_labels(moving_landmarks, ddf)
    if fixed_landmarks.is_floating_point() or fixed_landmarks.shape != warped.shape or fixed_landmarks.shape[1] != 1:
        raise InputError(
            f"The fixed landmarks have shape {tuple(fixed_landmarks.shape)} and type {fixed_landmarks.dtype}, the "
            f"moving ones {tuple(warped.shape)}; both must be volumes (B, 1, *spatial) of integers on one grid."
        )
    dims = fixed_landmarks.ndim - 2
    spacing = [spacing] * dims if isinstance(spacing, int | float) else spacing
    sizes = warped.new_tensor(voxel_sizes(spacing, dims), dtype=torch.float64)
    errors = []
    for fixed, other in zip(fixed_landmarks[:, 0], warped[:, 0], strict=True):
        values = fixed[fixed > 0].unique()
        errors.append(((_centroids(fixed, values) - _centroids(other, values)) * sizes).norm(dim=1).mean())
    return torch.stack(errors)


def _sampled(field: Tensor, points: Tensor) -> Tensor:
    """Cubic spline interpolation (N, d) of one field (d, *spatial) at points (N, d)."""
    from scipy.ndimage import map_coordinates

    coordinates = points.detach().double().cpu().numpy().T
    values = [map_coordinates(u, coordinates, order=3) for u in field.detach().double().cpu().numpy()]
    return torch.from_numpy(np.stack(values, axis=-1)).to(points.device)


def _centroids(volume: Tensor, values: Tensor) -> Tensor:
    """Centroid (L, d) of each of ``values`` (ascending), in voxels; NaN for values that do not occur."""
    places = (volume > 0).nonzero()
    found = volume[tuple(places.T)]
    index = torch.searchsorted(values, found).clamp(max=max(len(values) - 1, 0))
    known = values[index] == found if len(values) else torch.zeros_like(found, dtype=torch.bool)
    index, places = index[known], places[known].double()
    count = torch.bincount(index, minlength=len(values)).double()
    sums = torch.zeros(len(values), volume.ndim, dtype=torch.float64, device=volume.device)
    return sums.index_add_(0, index, places) / count.unsqueeze(1)


def _check_points(ddf: Tensor | None, moving: Tensor, fixed: Tensor) -> None:
    if fixed.ndim != 3 or fixed.shape != moving.shape or fixed.shape[2] not in (2, 3):
        raise InputError(
            f"The fixed points have shape {tuple(fixed.shape)} and the moving ones {tuple(moving.shape)}; both must be "
            "(B, N, 2) or (B, N, 3), point n of the one corresponding to point n of the other."
        )
    if ddf is None:
        return
    check_ddf(ddf)
    if ddf.shape[:2] != (fixed.shape[0], fixed.shape[2]):
        raise InputError(f"Points of shape {tuple(fixed.shape)} do not belong to a field of shape {tuple(ddf.shape)}.")
