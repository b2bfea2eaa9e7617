# SPDX-License-Identifier: Apache-2.0
"""LKU-Net's losses, and the integration of its velocities."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from families import voxelmorph_losses as shared

from common import losses
from common.spatial import integrate

Arrays = dict[str, np.ndarray]


def compute(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    """Everything of the file, under the names that it has there."""
    fixed, warped, field = (shared.tensor(arrays[f"in/{name}"]) for name in ("fixed", "warped", "field"))
    found = {
        "ncc": shared.with_gradient(losses.LNCCLoss(offset=0.0), warped, fixed),
        "smooth": shared.with_gradient(shared.slopes_of_extent, field),
    }
    # Units of which the image has two along each axis; the velocity is twice the field.
    voxels = (torch.tensor(field.shape[2:]) - 1).view(1, -1, 1, 1, 1) / 2
    integrated = integrate(2 * field * voxels, 7, "border") / voxels
    return shared.named(found, arrays) | {"out/integrated": integrated.numpy()}


CASES = {"losses": compute}
