# SPDX-License-Identifier: Apache-2.0
"""What the tests of several networks share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from common.losses import JacobianConsistencyLoss, LatentLoss, NCCLoss, RegistrationLoss, SampledLoss, Term


def pair(*spatial: int, batch: int = 1, seed: int = 0) -> Tensor:
    """Smooth random images, (batch, 2, *spatial)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((batch, 2, *[-(-n // 5) + 1 for n in spatial]), generator=generator)
    return F.interpolate(coarse, size=spatial, mode="trilinear" if len(spatial) == 3 else "bilinear")


def nephi_loss() -> RegistrationLoss:
    """The published terms of NePhi, at more points than published, so that small images have some."""
    similarity, consistency = SampledLoss(NCCLoss(), 0.5), JacobianConsistencyLoss(0.1)
    terms = {
        "there": Term(similarity, ["map", "moving", "fixed", "draw"], 0.5),
        "back": Term(similarity, ["inverse_map", "fixed", "moving", "draw"], 0.5),
        "consistency": Term(consistency, ["map", "inverse_map", "fixed", "draw"], 0.5),
        "consistency_back": Term(consistency, ["inverse_map", "map", "moving", "draw"], 0.5),
        "prior": Term(LatentLoss(), ["latent", "local_latent"], 0.01),
    }
    return RegistrationLoss(terms)
