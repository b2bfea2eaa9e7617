# SPDX-License-Identifier: Apache-2.0
"""What the tests of several families share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.weights.swin_unet import position_index

GOLDEN = Path(__file__).parents[2] / "golden" / "data" / "transmorph"


def transmorph_entries(case: str, window: Sequence[int]) -> dict[str, Tensor]:
    """Random numbers under the names of a golden file, and the indices that official files have beside them."""
    with np.load(GOLDEN / f"{case}.npz", allow_pickle=False) as file:
        entries = json.loads(str(file["meta"]))["state_dict"]
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator).to(getattr(torch, kind)) for name, shape, kind in entries}
    tables = [name for name in state if name.endswith("relative_position_bias_table")]
    return state | {name.replace("bias_table", "index"): position_index(window) for name in tables}
