# SPDX-License-Identifier: Apache-2.0
"""The algebra of displacement fields.

One convention everywhere: ``ddf`` is float (B, d, *spatial), in voxels of the fixed grid, channel k along array axis k,
and ``warped(x) = moving(x + ddf(x))``.
"""

from __future__ import annotations

from common.spatial.bspline import bspline_bound, bspline_field
from common.spatial.chain import chain_ddf, chain_map
from common.spatial.coordinates import identity_grid
from common.spatial.fixed_point import invert_contraction
from common.spatial.gaussian import gaussian_filter
from common.spatial.integrate import integrate
from common.spatial.invert import invert
from common.spatial.jacobian import cell_determinant, determinant, jacobian_determinant
from common.spatial.labels import sample_labels_at, warp_labels, warp_labels_linear, warp_labels_to_even
from common.spatial.maps import ComposedMap, field_map
from common.spatial.points import sample_at
from common.spatial.resize import resize_ddf, resize_image
from common.spatial.warp import compose, warp
from common.spatial.world import (
    Grid,
    displacement_to_moving,
    resample,
    resample_ddf,
    warp_within,
    working_grid,
)

__all__ = [
    "Grid",
    "bspline_bound",
    "bspline_field",
    "cell_determinant",
    "chain_ddf",
    "chain_map",
    "compose",
    "ComposedMap",
    "determinant",
    "displacement_to_moving",
    "field_map",
    "gaussian_filter",
    "identity_grid",
    "integrate",
    "invert",
    "invert_contraction",
    "jacobian_determinant",
    "resample",
    "resample_ddf",
    "resize_ddf",
    "resize_image",
    "sample_at",
    "sample_labels_at",
    "warp",
    "warp_labels",
    "warp_labels_linear",
    "warp_labels_to_even",
    "warp_within",
    "working_grid",
]
