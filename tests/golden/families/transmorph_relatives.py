# SPDX-License-Identifier: Apache-2.0
"""Relatives of TransMorph: LUMIR's fields that grow in time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from families import transmorph_networks as networks

from common.weights import transmorph_tvf

Arrays = dict[str, np.ndarray]


def _in_time(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    """The file has images that are halved already, and what the network says before it is doubled."""
    network: Any = networks.build(meta, transmorph_tvf.FAMILY, int_steps=7 if meta["constructor"].get("SVF") else 0)
    pair = torch.from_numpy(np.concatenate([arrays["in/moving"], arrays["in/fixed"]], axis=1))
    for axis in range(2, pair.ndim):
        pair = pair.repeat_interleave(2, axis)
    with torch.no_grad():
        flow = network._flow(pair)
    return {"out/flow": flow.numpy(), "out/flow_stats": networks.statistics(flow[0])}


CASES: dict[str, Callable[[dict[str, Any], Arrays], Arrays]] = {"TransMorphTVF": _in_time}
"""By the published class."""
