# SPDX-License-Identifier: Apache-2.0
"""TransMorph and its relatives: stages, networks, trainings."""

from __future__ import annotations

from typing import Any

import numpy as np
from families import transmorph_networks, transmorph_relatives

Arrays = dict[str, np.ndarray]
CASES = {**transmorph_networks.CASES, **transmorph_relatives.CASES}


def compute(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    """Everything of a file, under the names that it has there."""
    return CASES[meta["constructor"].get("cls", "stage")](meta, arrays)
