# SPDX-License-Identifier: Apache-2.0
"""Optimisation on the pair itself: what is unknown, the loop, and the inferer that a workflow names."""

from __future__ import annotations

from common.optimisation.composed_adam import ComposedAdam
from common.optimisation.descent import descend
from common.optimisation.field import Field
from common.optimisation.inferer import OptimisingInferer
from common.optimisation.register_instance import RegisterInstanceD, RegisterInstanced, RegisterInstanceDict
from common.optimisation.unknowns import LatentCode, NetworkWeights, Stage, Unknown

__all__ = [
    "ComposedAdam",
    "Field",
    "LatentCode",
    "NetworkWeights",
    "OptimisingInferer",
    "RegisterInstanceD",
    "RegisterInstanceDict",
    "RegisterInstanced",
    "Stage",
    "Unknown",
    "descend",
]
