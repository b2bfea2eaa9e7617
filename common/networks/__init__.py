# SPDX-License-Identifier: Apache-2.0
"""One module per method family: how blocks are put together, and published configurations; two of them, and none."""

from __future__ import annotations

from common.networks.coarser import seen_with as seen_with
from common.networks.dual_pyramid import DualPyramid
from common.networks.eoir import EOIR
from common.networks.gradicon import GradICON
from common.networks.lku_net import LKUNet
from common.networks.nephi import NePhi
from common.networks.pre_aligned import PreAligned as PreAligned
from common.networks.sitreg import SITReg
from common.networks.transmorph import TransMorph
from common.networks.transmorph_bspline import TransMorphBSpline
from common.networks.transmorph_diff import TransMorphDiff
from common.networks.transmorph_tvf import TransMorphTVF
from common.networks.vfa import VFA
from common.networks.voxelmorph import VoxelMorph
from common.networks.zero_field import ZeroField as ZeroField

__all__ = [
    "EOIR",
    "VFA",
    "DualPyramid",
    "GradICON",
    "LKUNet",
    "NePhi",
    "SITReg",
    "TransMorph",
    "TransMorphBSpline",
    "TransMorphDiff",
    "TransMorphTVF",
    "VoxelMorph",
]
"""Those that stand for a method; of the others one is made of two of them, one stands for none."""
