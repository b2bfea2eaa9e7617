# SPDX-License-Identifier: Apache-2.0
"""Comparisons of images of unlike contrasts, for ``benchmark.py ops``."""

from __future__ import annotations

from monai.losses import GlobalMutualInformationLoss
from torch import Tensor

from common.losses import MINDSSCLoss, MutualInformationLoss
from scripts.operation import Operation, gradient_of


def unlike_contrasts(moving: Tensor, fixed: Tensor) -> dict[str, Operation]:
    """By name; the gradient is that of ``moving``."""
    information, mind = GlobalMutualInformationLoss(num_bins=32), MINDSSCLoss()
    gaussian, bspline = (MutualInformationLoss(window=window) for window in ("gaussian", "bspline"))

    def contexts(image: Tensor) -> Tensor:
        return (mind.context(image) - mind.context(fixed)).square().mean()

    return {
        "mutual information, 32 bins, gradient of the warped image": Operation(
            {
                "MONAI GlobalMutualInformationLoss": gradient_of(lambda x: information(x, fixed), moving),
                "MutualInformationLoss, gaussian": gradient_of(lambda x: gaussian(x, fixed), moving),
                "MutualInformationLoss, bspline": gradient_of(lambda x: bspline(x, fixed), moving),
            },
            4,
            True,
        ),
        "MIND-SSC, gradient of the warped image": Operation(
            {
                "contexts by torch's operations": gradient_of(contexts, moving),
                "MINDSSCLoss": gradient_of(lambda x: mind(x, fixed), moving),
            },
            4,
            True,
        ),
    }
