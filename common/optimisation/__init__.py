# SPDX-License-Identifier: Apache-2.0
"""Optimisation on the pair itself: what is unknown, the loop, and the inferer that a workflow names."""

from __future__ import annotations

from common.optimisation.descent import Descent, descend
from common.optimisation.inferer import OptimisingInferer
from common.optimisation.unknowns import LatentCode, NetworkWeights, Unknown

__all__ = ["Descent", "LatentCode", "NetworkWeights", "OptimisingInferer", "Unknown", "descend"]
