# SPDX-License-Identifier: Apache-2.0
"""Local normalised cross-correlation with a closed-form gradient, streamed through the image plane by plane."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from common.checks import InputError
from common.losses.closed_form import computing_dtype, needs_gradient, with_gradient
from common.losses.lncc_stream import Guard, LNCCStream, WeightedLNCCStream
from common.losses.weights import check_weight, sample_factors

CONVENTIONS: dict[str, dict[str, Any]] = {
    "eoir": {},
    "official": {"offset": 0.0},
    "mmipt": {"statistics": "mean"},
    "vfa": {"statistics": "mean", "offset": 0.0, "guard": "max", "eps": 2.0**-23},
    "dual_pyramid": {"statistics": "mean", "guard": "max", "eps": 2.0**-23},
    "tensorflow": {"offset": 0.0, "guard": "each"},
}
"""Arguments of :class:`LNCCLoss` for each of the published conventions."""


class LNCCLoss(nn.Module):
    r"""Squared local normalised cross-correlation as a loss, ``offset - mean(cc)``.

    With window sums :math:`S(\cdot)` over ``n = kernel_size ** spatial_dims`` voxels (zeros outside the image; ``n`` is
    not reduced at the border), I the prediction and J the target, per channel

    .. math::
        c = S(IJ) - S(I)S(J)/n, \quad a = S(I^2) - S(I)^2/n, \quad b = S(J^2) - S(J)^2/n, \quad
        cc = c^2 / (ab + \epsilon).

    Plain form, for one channel in 3D, with the same value and gradient::

        def plain_lncc(i, j, size, eps, offset):
            n, window = size**3, i.new_ones(1, 1, size, size, size)
            def s(x):
                return torch.conv3d(x, window, padding=size // 2)
            c = s(i * j) - s(i) * s(j) / n
            a = (s(i * i) - s(i) ** 2 / n).clamp(min=0)
            b = (s(j * j) - s(j) ** 2 / n).clamp(min=0)
            c = c.clamp(-(a * b).sqrt(), (a * b).sqrt())
            return offset - (c**2 / (a * b + eps)).mean()

    Published conventions:

    ==============  =============================================  ============  ======  ==========  ======
    name            of                                             statistics    offset  guard       eps
    ==============  =============================================  ============  ======  ==========  ======
    eoir (default)  EOIR: 1 - mean(cc)                             ``"sum"``     1       ``"add"``   1e-5
    official        VoxelMorph, TransMorph, LKU-Net, SITReg:       ``"sum"``     0       ``"add"``   1e-5
                    -mean(cc)
    mmipt           mmipt, DilateMorph: means, not sums, 1 - mean  ``"mean"``    1       ``"add"``   1e-5
    vfa             VFA: -mean                                     ``"mean"``    0       ``"max"``   2**-23
    dual_pyramid    dual pyramids: 1 - mean                        ``"mean"``    1       ``"max"``   2**-23
    tensorflow      VoxelMorph in TensorFlow: -mean                ``"sum"``     0       ``"each"``  1e-5
    ==============  =============================================  ============  ======  ==========  ======

    :data:`CONVENTIONS` has the arguments by these names.

    ``statistics="mean"`` divides c, a and b by n, which is the same as an epsilon n**2 times as large, and
    ``guard="max"`` divides by :math:`\max(ab, \epsilon)`, whose gradient is 0 where epsilon is larger. ``guard="each"``
    puts epsilon in the place of each of a, b and c that is smaller: what is opposed in the two images counts for
    nothing, and where both are flat cc is 1. Local variances that rounding made negative are set to 0 and :math:`c^2`
    is at most ab, so that cc lies in [0, 1] for intensities of any scale (the published forms leave both, which in flat
    windows can make cc anything); elsewhere the values are theirs. MONAI's ``LocalNormalizedCrossCorrelationLoss``
    differs: it clamps each variance, so flat regions differ.

    The gradient is exact. A voxel I(x) is in the sums of all windows around it, and the windows centred there are those
    of one more window sum, so that with :math:`A = c / (ab + \epsilon)`, :math:`B = A^2 b`, :math:`C = B S(I) - A S(J)`

    .. math::
        \partial \textstyle\sum cc / \partial I = 2 (J S(A) - I S(B) + S(C) / n),

    and for J with I, J and a, b exchanged. It is computed with the value, in slabs, so that only one volume per image
    that needs a gradient is kept. It cannot be differentiated again. Computes in float32 (float64 for float64 inputs)
    also under autocast.

    With a weight w of each voxel, 1 outside the image, sums are those of wI, wJ, wI^2, wJ^2 and wIJ, and n is the sum
    of w over the window, 0.001 or more. Within a sample cc is averaged with the weights of the windows' centres.

    Args:
        spatial_dims: 2 or 3, which images must have; None takes what they have.
        kernel_size: odd side of the window in voxels; it may exceed the image.
        eps: added to the product of the two variances.
        statistics: ``"sum"`` or ``"mean"``, see above.
        guard: ``"add"``, ``"max"`` or ``"each"``, see above.
        offset: constant that the mean of cc is subtracted from.

    Raises:
        InputError: for an even window, another dimension, unknown statistics or guard.
    """

    def __init__(
        self,
        spatial_dims: int | None = None,
        kernel_size: int = 9,
        eps: float = 1e-5,
        statistics: str = "sum",
        offset: float = 1.0,
        guard: str = "add",
    ) -> None:
        super().__init__()
        if spatial_dims not in (None, 2, 3):
            raise InputError(f"LNCCLoss got spatial_dims={spatial_dims}; choose 2 or 3.")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise InputError(f"LNCCLoss got kernel_size={kernel_size}; choose an odd positive number such as 9.")
        if statistics not in ("sum", "mean"):
            raise InputError(f"LNCCLoss got statistics={statistics!r}; choose 'sum' or 'mean'.")
        if guard not in ("add", "max", "each"):
            raise InputError(f"LNCCLoss got guard={guard!r}; choose 'add', 'max' or 'each'.")
        self.spatial_dims = spatial_dims
        self.kernel_size = kernel_size
        self.eps = eps
        self.statistics = statistics
        self.offset = offset
        self.guard = guard

    def forward(self, pred: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compare two images.

        Args:
            pred: (B, C, *spatial), any intensities; usually the warped moving image.
            target: the same shape; its gradient is computed only if it requires one.
            weight: (B, 1, *spatial) from 0 to 1; a voxel of weight 0 may have any value but NaN and infinity, and of
                a sample without weights cc is 0. None counts all voxels alike.

        Returns:
            Scalar: ``offset`` minus the mean of cc (in [0, 1]) over batch, channels and voxels.

        Raises:
            InputError: if the shapes differ or do not have ``spatial_dims`` spatial axes (2 or 3).
        """
        dims = pred.ndim - 2
        if dims != (self.spatial_dims or dims) or dims not in (2, 3):
            raise InputError(
                f"LNCCLoss with spatial_dims={self.spatial_dims} got an image of shape {tuple(pred.shape)}; "
                f"pass (batch, channels, {self.spatial_dims or '2 or 3'} spatial axes)."
            )
        if pred.shape != target.shape:
            raise InputError(
                f"LNCCLoss got pred of shape {tuple(pred.shape)} and target of shape {tuple(target.shape)}; "
                "resample one to the other's grid."
            )
        guard = Guard(self.eps, self.statistics == "mean", self.guard == "max", self.guard == "each")
        if weight is not None:
            check_weight("LNCCLoss", pred, weight)
        return self.offset - mean_squared_lncc(pred, target, self.kernel_size, guard, weight)


def mean_squared_lncc(
    pred: Tensor, target: Tensor, kernel_size: int, guard: Guard, weight: Tensor | None = None
) -> Tensor:
    """Mean of cc of :class:`LNCCLoss` over images (B, C, *spatial); differentiable once."""
    dtype = computing_dtype(pred, target)
    images = pred.to(dtype), target.to(dtype)
    gradients = [image.new_empty(image.shape) if needs_gradient(image) else None for image in images]
    with torch.no_grad(), torch.autocast(pred.device.type, enabled=False):
        total = pred.new_zeros((), dtype=torch.float64)
        weight = None if weight is None else weight.detach().to(dtype)
        factors = None if weight is None else sample_factors(weight, pred.shape[1])
        for b in range(pred.shape[0]):
            for c in range(pred.shape[1]):
                outputs = [None if gradient is None else gradient[b, c] for gradient in gradients]
                pair = images[0][b, c], images[1][b, c]
                if weight is None or factors is None:
                    total += LNCCStream(pair, kernel_size, guard, outputs, 2 / pred.numel()).run()
                else:
                    total += WeightedLNCCStream(pair, weight[b, 0], factors[b], kernel_size, guard, outputs).run()
    mean = total / pred.numel() if weight is None else total
    return with_gradient(mean.to(dtype), images, gradients)
