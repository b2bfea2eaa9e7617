# SPDX-License-Identifier: Apache-2.0
"""Comparison of images of different kinds by how each place resembles its neighbours.

Paper: M. Heinrich et al., "Towards realtime multimodal fusion for image-guided interventions using self-similarities",
MICCAI 2013.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.checks import InputError
from common.losses.blurred import along_axes
from common.losses.closed_form import check_alike, computing_dtype, needs_gradient, with_gradient
from common.losses.mind_stream import HIGH, LOW, MINDStream
from common.losses.weights import check_weight


class MINDSSCLoss(nn.Module):
    """Mean squared difference of self-similarity contexts, as ICON and uniGradICON have them.

    A voxel's neighbours are those at one step along each axis, to both sides. Each pair of neighbours on different
    axes, of which there are twelve in three dimensions and four in two, has a channel: the mean over a window of the
    squared difference of the image shifted to one and to the other. The smallest of the channels is subtracted, their
    mean is the variance v, limited to 0.001 to 1000 times the mean of the sample, and a channel m becomes
    ``exp(-m / v)``. Images repeat their border outside. Of an image of one value all channels are 1.

    With weights a channel is the mean of squared differences weighted by the product of the weights of both ends, and
    the loss and the mean of v are those weighted by voxels, of which one counts only if each of its channels compares
    something. So voxels without weight have no influence, and the edges of a mask are none of the images. A sample
    without weights counts as 0.

    Value and gradient are computed together, slab by slab, so that the channels of a large volume never exist at once.
    The gradient is exact, with the limits as constants, and cannot be differentiated again; :meth:`context` can.

    Args:
        radius: of the window, in voxels.
        dilation: voxels to a neighbour.
    """

    def __init__(self, radius: int = 2, dilation: int = 2) -> None:
        super().__init__()
        self.radius, self.dilation = radius, dilation

    def forward(self, pred: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compare two images.

        Args:
            pred: (B, 1, *spatial), 2D or 3D, usually the warped moving image.
            target: the same shape.
            weight: (B, 1, *spatial) from 0 to 1, how much each voxel counts; None is 1 everywhere. It has no gradient.

        Returns:
            Scalar from 0 to 1.

        Raises:
            InputError: when the shapes do not fit.
        """
        check_alike("MINDSSCLoss", pred, target)
        if pred.shape[1] != 1 or pred.ndim not in (4, 5):
            raise InputError(
                f"MINDSSCLoss got images of shape {tuple(pred.shape)}; pass (batch, 1, 2 or 3 spatial axes)."
            )
        if weight is not None:
            check_weight("MINDSSCLoss", pred, weight)
        dtype = computing_dtype(pred, target)
        images, needs = [pred.to(dtype), target.to(dtype)], [needs_gradient(pred), needs_gradient(target)]
        gradients = [torch.empty_like(image) if need else None for image, need in zip(images, needs, strict=True)]
        total = images[0].new_zeros((), dtype=torch.float64)
        with torch.no_grad(), torch.autocast(pred.device.type, enabled=False):
            for b in range(len(pred)):
                counts = None if weight is None else weight[b, 0].to(dtype)
                pair = [image[b, 0] for image in images]
                value, found = MINDStream(pair, counts, self.radius, self.dilation, needs).run()
                total += value / len(pred)
                for gradient, part in zip(gradients, found, strict=True):
                    if gradient is not None and part is not None:
                        torch.div(part, len(pred), out=gradient[b, 0])
        return with_gradient(total.to(dtype), images, gradients)

    def context(self, image: Tensor) -> Tensor:
        """(B, 1, *spatial), float32 or float64, to (B, channels, *spatial), from 0 to 1."""
        dims = image.ndim - 2
        extended = F.pad(image, [self.dilation] * (2 * dims), mode="replicate")
        neighbours = [(axis, end) for axis in range(dims) for end in (0, 2 * self.dilation)]
        shifted = {place: self._shifted(extended, *place) for place in neighbours}
        pairs = [(one, other) for one, other in combinations(neighbours, 2) if one[0] != other[0]]
        squares = torch.cat([(shifted[one] - shifted[other]).square() for one, other in pairs], dim=1)
        means = along_axes(squares, self._window(image))
        means = means - means.amin(1, keepdim=True)
        variance = means.mean(1, keepdim=True)
        typical = variance.detach().flatten(1).mean(1).view(-1, *[1] * (dims + 1))
        # Where nothing differs anywhere, it is 0.
        limits = (factor * typical.clamp(min=torch.finfo(image.dtype).tiny / LOW) for factor in (LOW, HIGH))
        return torch.exp(-means / variance.clamp(*limits))

    def _window(self, like: Tensor) -> Callable[[int], Tensor]:
        """Means of so many voxels of a line, which is continued by its ends."""
        reach = torch.arange(-self.radius, self.radius + 1, device=like.device)

        def matrix(n: int) -> Tensor:
            voxels = torch.arange(n, device=like.device)
            seen = (voxels[:, None] + reach).clamp(0, n - 1)
            return (seen[..., None] == voxels).to(like.dtype).mean(1)

        return matrix

    def _shifted(self, extended: Tensor, axis: int, start: int) -> Tensor:
        for k in range(extended.ndim - 2):
            first = start if k == axis else self.dilation
            extended = extended.narrow(k + 2, first, extended.shape[k + 2] - 2 * self.dilation)
        return extended
