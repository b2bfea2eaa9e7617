# SPDX-License-Identifier: Apache-2.0
"""Local normalised cross-correlation with a closed-form gradient, streamed through the image plane by plane."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from common.checks import InputError
from common.losses.closed_form import computing_dtype, needs_gradient, with_gradient
from common.losses.window_sums import WindowSums

# Elements of one slab of the five moment maps: about 2 MB of float32 stays in a core's cache; accelerators want few
# launches.
_CPU_SLAB = 1 << 19
_ACCELERATOR_SLAB = 1 << 24


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

    ===============================================  ============  ========  =========  ======
    form                                             statistics    offset    guard      eps
    ===============================================  ============  ========  =========  ======
    EOIR (default): 1 - mean(cc)                     ``"sum"``     1         ``"add"``  1e-5
    VoxelMorph, TransMorph, LKU-Net, SITReg: -mean   ``"sum"``     0         ``"add"``  1e-5
    mmipt, DilateMorph: means, not sums, 1 - mean    ``"mean"``    1         ``"add"``  1e-5
    VFA: -mean; dual pyramids: 1 - mean              ``"mean"``    0; 1      ``"max"``  2**-23
    ===============================================  ============  ========  =========  ======

    ``statistics="mean"`` divides c, a and b by n, which is the same as an epsilon n**2 times as large, and
    ``guard="max"`` divides by :math:`\max(ab, \epsilon)`, whose gradient is 0 where epsilon is larger. Local variances
    that rounding made negative are set to 0 and :math:`c^2` is at most ab, so that cc lies in [0, 1] for intensities of
    any scale (the published forms leave both, which in flat windows can make cc anything); elsewhere the values are
    theirs. MONAI's ``LocalNormalizedCrossCorrelationLoss`` differs: it clamps each variance, so flat regions differ.

    The gradient is exact. A voxel I(x) is in the sums of all windows around it, and the windows centred there are those
    of one more window sum, so that with :math:`A = c / (ab + \epsilon)`, :math:`B = A^2 b`, :math:`C = B S(I) - A S(J)`

    .. math::
        \partial \textstyle\sum cc / \partial I = 2 (J S(A) - I S(B) + S(C) / n),

    and for J with I, J and a, b exchanged. It is computed with the value, in slabs, so that only one volume per image
    that needs a gradient is kept. It cannot be differentiated again. Computes in float32 (float64 for float64 inputs)
    also under autocast.

    Args:
        spatial_dims: 2 or 3, which images must have; None takes what they have.
        kernel_size: odd side of the window in voxels; it may exceed the image.
        eps: added to the product of the two variances.
        statistics: ``"sum"`` or ``"mean"``, see above.
        guard: ``"add"`` or ``"max"``, see above.
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
        if guard not in ("add", "max"):
            raise InputError(f"LNCCLoss got guard={guard!r}; choose 'add' or 'max'.")
        self.spatial_dims = spatial_dims
        self.kernel_size = kernel_size
        self.eps = eps
        self.statistics = statistics
        self.offset = offset
        self.guard = guard

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compare two images.

        Args:
            pred: (B, C, *spatial), any intensities; usually the warped moving image.
            target: the same shape; its gradient is computed only if it requires one.

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
        count = self.kernel_size**dims
        eps = self.eps * (count**2 if self.statistics == "mean" else 1)
        return self.offset - mean_squared_lncc(pred, target, self.kernel_size, eps, self.guard == "max")


def mean_squared_lncc(pred: Tensor, target: Tensor, kernel_size: int, eps: float, bounded: bool) -> Tensor:
    """Mean of cc of :class:`LNCCLoss` (window sums) over images (B, C, *spatial); differentiable once."""
    dtype = computing_dtype(pred, target)
    images = pred.to(dtype), target.to(dtype)
    gradients = [image.new_empty(image.shape) if needs_gradient(image) else None for image in images]
    with torch.no_grad(), torch.autocast(pred.device.type, enabled=False):
        total = pred.new_zeros((), dtype=torch.float64)
        for b in range(pred.shape[0]):
            for c in range(pred.shape[1]):
                outputs = [None if gradient is None else gradient[b, c] for gradient in gradients]
                total += _LNCCStream(
                    images[0][b, c], images[1][b, c], kernel_size, eps, bounded, outputs, 2 / pred.numel()
                ).run()
    return with_gradient((total / pred.numel()).to(dtype), images, gradients)


class _Side(NamedTuple):
    """One image in the gradient: its number in (I, J) and the other's, where its B and C lie among the terms."""

    image: int
    other: int
    b: int
    c: int
    gradient: Tensor


class _LNCCStream:
    """One pair of single-channel volumes: the sum of cc and, where asked for, the gradients of the scaled sum.

    Slabs of planes pass three steps: moments (I, J, I^2, J^2, IJ), of whose window sums terms (A and, for each wanted
    gradient, B and C) are made, of whose window sums the gradients are made. Window sums lag one radius behind.
    """

    def __init__(
        self,
        pred: Tensor,
        target: Tensor,
        kernel_size: int,
        eps: float,
        bounded: bool,
        outputs: list[Tensor | None],
        scale: float,
    ) -> None:
        self.images, self.eps, self.bounded, self.scale = (pred, target), eps, bounded, scale
        self.radius, self.count = kernel_size // 2, kernel_size**pred.ndim
        self.size, plane = pred.shape[0], tuple(pred.shape[1:])
        wanted = [(k, output) for k, output in enumerate(outputs) if output is not None]
        self.sides = [_Side(k, 1 - k, 1 + 2 * i, 2 + 2 * i, output) for i, (k, output) in enumerate(wanted)]
        self.planes = self.size + self.radius * (2 if self.sides else 1)
        budget = _CPU_SLAB if pred.is_cpu else _ACCELERATOR_SLAB
        affordable = max(2 * self.radius, 1, budget // (5 * math.prod(n + self.radius for n in plane)))
        even = math.ceil(self.planes / math.ceil(self.planes / affordable))
        self.depth = max(2 * self.radius, even)
        self.moments = WindowSums(5, self.depth, plane, kernel_size, pred)
        self.terms = WindowSums(1 + 2 * len(self.sides), self.depth, plane, kernel_size, pred)

    def run(self) -> Tensor:
        """Go through all planes; returns the sum of cc in float64 and fills ``outputs``."""
        total = self.images[0].new_zeros((), dtype=torch.float64)
        for start in range(0, self.planes, self.depth):
            moments = self._sum_moments(start)
            total += self._make_terms(moments, start - self.radius)
            if self.sides:
                self._write_gradients(self.terms.push(), start - 2 * self.radius)
        return total

    def _sum_moments(self, start: int) -> Tensor:
        """Window sums of the moments, from the planes from ``start`` on."""
        planes = min(self.depth, self.size - start)
        if planes > 0:
            for inside, image in zip(self.moments.valid(self.moments.flat), self.images, strict=False):
                inside[:planes] = image[start : start + planes]
                inside[planes:] = 0
            i, j, ii, jj, ij = self.moments.flat
            torch.mul(i, i, out=ii)
            torch.mul(j, j, out=jj)
            torch.mul(i, j, out=ij)
        return self.moments.push(empty=planes <= 0)

    def _make_terms(self, moments: Tensor, start: int) -> Tensor:
        """Sum of cc over the planes from ``start`` on, and their terms into the input of ``terms``."""
        s_i, s_j, a, b, c = moments
        c.addcmul_(s_i, s_j, value=-1 / self.count)
        a.addcmul_(s_i, s_i, value=-1 / self.count).clamp_min_(0)
        b.addcmul_(s_j, s_j, value=-1 / self.count).clamp_min_(0)
        terms = self.terms.flat
        product = torch.mul(a, b, out=terms[0])
        # Cauchy and Schwarz: what exceeds it is the rounding of a flat window, which eps would magnify.
        bound = product.sqrt()
        torch.minimum(c, bound, out=c)
        torch.maximum(c, bound.neg_(), out=c)
        # The variances have no influence where eps takes the place of their product.
        free = product > self.eps if self.bounded else None
        ratio = torch.div(c, product.clamp_min_(self.eps) if self.bounded else product.add_(self.eps), out=terms[0])
        # Windows centred outside the image do not exist: their terms must not reach the gradient or the value.
        # B and C are multiples of A and vanish with it.
        self.terms.clear_outside(0, max(0, -start), max(0, self.size - start))
        value = torch.dot(c, ratio)
        sums, variances = (s_i, s_j), (a, b)
        for side in self.sides:
            quadratic = torch.mul(ratio, ratio, out=terms[side.b]).mul_(variances[side.other])
            if free is not None:
                quadratic.mul_(free)
            constant = torch.mul(quadratic, sums[side.image], out=terms[side.c])
            constant.addcmul_(ratio, sums[side.other], value=-1)
        return value.double()

    def _write_gradients(self, terms: Tensor, start: int) -> None:
        """Gradients at the planes from ``start`` on, from the window sums of the terms."""
        boxed = self.terms.valid(terms)
        first, last = max(0, -start), min(self.depth, self.size - start)
        if first >= last:
            return
        where = slice(start + first, start + last)
        for side in self.sides:
            part = side.gradient[where]
            torch.mul(boxed[side.c, first:last], self.scale / self.count, out=part)
            part.addcmul_(boxed[0, first:last], self.images[side.other][where], value=self.scale)
            part.addcmul_(boxed[side.b, first:last], self.images[side.image][where], value=-self.scale)
