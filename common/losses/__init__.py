# SPDX-License-Identifier: Apache-2.0
"""Terms of the training losses: similarity, regularity, overlap, and the pyramids that they are evaluated on."""

from __future__ import annotations

from common.losses.blurred import BlurredMSELoss as BlurredMSELoss
from common.losses.conserving import IntensityConservingLoss as IntensityConservingLoss
from common.losses.consistency import CycleConsistencyLoss as CycleConsistencyLoss
from common.losses.correlation import LocalAndGlobalLoss as LocalAndGlobalLoss
from common.losses.correlation import NCCLoss as NCCLoss
from common.losses.dice import SoftDiceLoss as SoftDiceLoss
from common.losses.dice import WarpedDiceLoss as WarpedDiceLoss
from common.losses.folding import FoldingLoss as FoldingLoss
from common.losses.gaussian_lncc import GaussianLNCCLoss as GaussianLNCCLoss
from common.losses.inverse_consistency import GradientInverseConsistencyLoss as GradientInverseConsistencyLoss
from common.losses.inverse_consistency import InverseConsistencyLoss as InverseConsistencyLoss
from common.losses.landmarks import LandmarkLoss as LandmarkLoss
from common.losses.lncc import LNCCLoss as LNCCLoss
from common.losses.masked import MaskedLoss as MaskedLoss
from common.losses.masked import MultiScaleLoss as MultiScaleLoss
from common.losses.mind import MINDSSCLoss as MINDSSCLoss
from common.losses.mse import MSELoss as MSELoss
from common.losses.mutual_information import MutualInformationLoss as MutualInformationLoss
from common.losses.ngf import NGFLoss as NGFLoss
from common.losses.pyramid import ImagePyramid as ImagePyramid
from common.losses.pyramid import image_pyramid as image_pyramid
from common.losses.pyramid import label_pyramid as label_pyramid
from common.losses.registration import RegistrationLoss as RegistrationLoss
from common.losses.registration import Term as Term
from common.losses.sampled import JacobianConsistencyLoss as JacobianConsistencyLoss
from common.losses.sampled import LatentLoss as LatentLoss
from common.losses.sampled import SampledLoss as SampledLoss
from common.losses.similarity import similarity as similarity
from common.losses.similarity import smoothness_weight as smoothness_weight
from common.losses.smoothness import BendingLoss as BendingLoss
from common.losses.smoothness import GradientLoss as GradientLoss
from common.losses.velocity_kl import VelocityKLLoss as VelocityKLLoss
from common.losses.weights import WeightedLoss as WeightedLoss
