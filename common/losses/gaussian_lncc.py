# SPDX-License-Identifier: Apache-2.0
"""Local normalised cross-correlation in a Gaussian window, its gradient computed with the value."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from common.checks import InputError
from common.losses.blurred import gaussian_blur
from common.losses.closed_form import check_alike, computing_dtype, needs_gradient, with_gradient

EPS = 1e-5


class GaussianLNCCLoss(nn.Module):
    r"""Local correlation as ICON and GradICON have it, ``1 - mean(l)``, not squared unless asked for.

    With G a Gaussian blur of 4 sigma + 1 taps, zeros outside (near the border means are not renormalised),

    .. math::
        c = G(IJ) - G(I)G(J), \quad a = \max(G(I^2) - G(I)^2, 0) + \epsilon, \quad
        b = \max(G(J^2) - G(J)^2, 0) + \epsilon, \quad l = c / \sqrt{ab}.

    :class:`common.losses.LNCCLoss` differs in window, power and epsilon: weights of other terms are not those for it.

    The gradient is exact: with :math:`A = 1 / \sqrt{ab}` and :math:`B = -l / 2a`, 0 where a is :math:`\epsilon`,

    .. math::
        \partial \textstyle\sum l / \partial I = J G(A) + 2 I G(B) - G(A\,G(J) + 2 B\,G(I)),

    A and B times 2l for the squared form, and with I and J exchanged. It cannot be differentiated again.

    Args:
        sigma: of the window in voxels; 5 in the published recipes.
        squared: whether l is squared, for images of two kinds.

    Raises:
        InputError: for a sigma that is no whole number from 1 on.
    """

    def __init__(self, sigma: int = 5, squared: bool = False) -> None:
        super().__init__()
        if not isinstance(sigma, int) or sigma < 1:
            raise InputError(f"GaussianLNCCLoss got sigma={sigma!r}; give a whole number of voxels from 1 on.")
        self.sigma, self.squared = sigma, squared

    def forward(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compare two images.

        Args:
            pred: (B, C, *spatial), usually the warped moving image, from 0 to 1.
            target: the same shape.
            mask: (B, 1, *spatial) of the target; where it is 0, l counts as 0: the mean is that over all voxels, so
                that of a small mask the loss is near 1.

        Returns:
            Scalar from 0 to 2 (1 if squared).

        Raises:
            InputError: when the shapes differ.
        """
        check_alike("GaussianLNCCLoss", pred, target)
        dtype = computing_dtype(pred, target)
        images = pred.to(dtype), target.to(dtype)
        gradients = [torch.empty_like(image) if needs_gradient(image) else None for image in images]
        total = images[0].new_zeros((), dtype=torch.float64)
        with torch.no_grad(), torch.autocast(pred.device.type, enabled=False):
            for b in range(len(pred)):
                counts = None if mask is None else (mask[b : b + 1] != 0).to(dtype)
                wanted = [None if gradient is None else gradient[b : b + 1] for gradient in gradients]
                total += self._add([image[b : b + 1] for image in images], counts, wanted)
        gradients = [None if gradient is None else gradient.div_(-pred.numel()) for gradient in gradients]
        return with_gradient((1 - total / pred.numel()).to(dtype), images, gradients)

    def _add(self, images: Sequence[Tensor], counts: Tensor | None, gradients: Sequence[Tensor | None]) -> Tensor:
        """Sum of l of one pair (1, C, *spatial) in float64; writes the gradients of the sum."""
        means, variances, free = [], [], []
        for image in images:
            means.append(gaussian_blur(image, self.sigma))
            variance = gaussian_blur(image.square(), self.sigma).sub_(means[-1].square())
            free.append(variance > 0)
            variances.append(variance.clamp_(min=0).add_(EPS))
        slope = (variances[0] * variances[1]).rsqrt_()
        lncc = gaussian_blur(images[0] * images[1], self.sigma).sub_(means[0] * means[1]).mul_(slope)
        weight = torch.ones_like(lncc) if counts is None else counts.expand_as(lncc)
        total = ((lncc.square() if self.squared else lncc) * weight).sum(dtype=torch.float64)
        if self.squared:
            weight = 2 * lncc * weight
        slope.mul_(weight)
        smoothed = None
        for k, gradient in enumerate(gradients):
            if gradient is None:
                continue
            smoothed = gaussian_blur(slope, self.sigma) if smoothed is None else smoothed
            own = (lncc * weight).div_(variances[k]).mul_(free[k])
            torch.mul(images[1 - k], smoothed, out=gradient)
            gradient.sub_(images[k] * gaussian_blur(own, self.sigma))
            gradient.sub_(gaussian_blur(slope * means[1 - k] - own * means[k], self.sigma))
        return total
