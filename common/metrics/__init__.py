# SPDX-License-Identifier: Apache-2.0
"""Evaluation metrics, named after the convention they follow; masks and label maps (B, 1, *spatial), results float64.

Dice and surface distances of label maps, errors of landmarks, regularity and inverse consistency of displacement
fields, and a metric for ignite that computes them all (``handlers``). ``ranking`` compares methods by such figures,
``published`` holds published tables.
"""

from __future__ import annotations

from common.metrics.consistency import InverseConsistency, inverse_consistency_error
from common.metrics.digital import (
    NonDiffeomorphicVolume,
    central_determinant,
    digital_determinants,
    nda,
    ndv_lumir,
    ndv_map,
    ndv_package,
)
from common.metrics.jacobian import (
    JacobianStatistics,
    fold_fraction,
    fold_fraction_interior,
    jacobian_statistics,
    sdlogj,
    sdlogj_l2r,
)
from common.metrics.landmarks import tre_l2r, tre_lumir
from common.metrics.overlap import dice_l2r, dice_per_label, dice_voi, labels_present, mean_over_labels
from common.metrics.surface import (
    SurfaceDistances,
    average_surface_distance,
    hausdorff_per_label,
    hd95_l2r,
    label_surface_distances,
    surface_dice,
    surface_distances,
)
from common.metrics.surface_elements import neighbour_kernel, surface_element_areas

__all__ = [
    "InverseConsistency",
    "JacobianStatistics",
    "NonDiffeomorphicVolume",
    "SurfaceDistances",
    "average_surface_distance",
    "central_determinant",
    "dice_l2r",
    "dice_per_label",
    "dice_voi",
    "digital_determinants",
    "fold_fraction",
    "fold_fraction_interior",
    "hausdorff_per_label",
    "hd95_l2r",
    "inverse_consistency_error",
    "jacobian_statistics",
    "label_surface_distances",
    "labels_present",
    "mean_over_labels",
    "nda",
    "ndv_lumir",
    "ndv_map",
    "ndv_package",
    "neighbour_kernel",
    "sdlogj",
    "sdlogj_l2r",
    "surface_dice",
    "surface_distances",
    "surface_element_areas",
    "tre_l2r",
    "tre_lumir",
]
