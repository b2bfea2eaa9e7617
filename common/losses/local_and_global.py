# SPDX-License-Identifier: Apache-2.0
"""The correlation of small windows beside that of whole images."""

from __future__ import annotations

from torch import Tensor, nn

from common.losses.correlation import NCCLoss
from common.losses.lncc import LNCCLoss


class LocalAndGlobalNCCLoss(nn.Module):
    """:class:`common.losses.LNCCLoss` with windows of 5 voxels, and twice :class:`NCCLoss`: scans of one contrast.

    Small windows find fine borders, and are blind to what is darker or brighter as a whole, which the correlation of
    whole images sees; neither depends on the scale of the intensities, nor, but at the border, on their offset. Windows
    and weight were chosen by measurement, see docs/instance_optimisation.md.
    """

    def __init__(self) -> None:
        super().__init__()
        self.local = LNCCLoss(kernel_size=5)
        self.whole = NCCLoss()

    def forward(self, pred: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compare two images (B, C, *spatial), with weights (B, 1, *spatial) of voxels or without; returns a scalar.

        Raises:
            InputError: when the shapes differ.
        """
        value: Tensor = self.local(pred, target, weight) + 2 * self.whole(pred, target, weight)
        return value
