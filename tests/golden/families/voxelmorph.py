# SPDX-License-Identifier: Apache-2.0
"""VoxelMorph: what each of the files is computed by."""

from __future__ import annotations

from typing import Any

import numpy as np
from families import voxelmorph_losses, voxelmorph_networks, voxelmorph_probabilistic

Arrays = dict[str, np.ndarray]
CASES = {**voxelmorph_networks.CASES, **voxelmorph_probabilistic.CASES, **voxelmorph_losses.CASES}


def compute(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    """Everything of a file, under the names that it has there."""
    compute_case = next((function for name, function in CASES.items() if meta["case"].startswith(name)), None)
    return {} if compute_case is None else compute_case(meta, arrays)
