# SPDX-License-Identifier: Apache-2.0
"""SynthMorph: what each of the files is computed by."""

from __future__ import annotations

from typing import Any

import numpy as np
from families import synthmorph_generator, voxelmorph_networks

Arrays = dict[str, np.ndarray]
CASES = {"net_": voxelmorph_networks.compute, "generator_": synthmorph_generator.compute}


def compute(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    """Everything of a file, under the names that it has there."""
    compute_case = next((function for name, function in CASES.items() if meta["case"].startswith(name)), None)
    return {} if compute_case is None else compute_case(meta, arrays)


def is_input(meta: dict[str, Any], name: str) -> bool:
    """Statistics of other random numbers are nothing to reproduce: they are compared as distributions."""
    return bool(meta["case"] == synthmorph_generator.STATISTICS)
