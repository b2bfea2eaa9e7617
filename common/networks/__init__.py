# SPDX-License-Identifier: Apache-2.0
"""One module per method family: how blocks are put together, published configurations, key map."""

from __future__ import annotations

from common.networks.dual_pyramid import DualPyramid
from common.networks.eoir import EOIR
from common.networks.gradicon import GradICON
from common.networks.nephi import NePhi
from common.networks.sitreg import SITReg
from common.networks.vfa import VFA

__all__ = ["EOIR", "VFA", "DualPyramid", "GradICON", "NePhi", "SITReg"]
