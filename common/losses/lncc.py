# SPDX-License-Identifier: Apache-2.0
"""Local normalised cross-correlation with a closed-form gradient, streamed through the image plane by plane."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from common.checks import InputError
from common.losses.closed_form import computing_dtype, needs_gradient, with_gradient

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

    Published conventions:

    ===============================================  ============  ========  =====
    form                                             statistics    offset    eps
    ===============================================  ============  ========  =====
    EOIR (default): 1 - mean(cc)                     ``"sum"``     1         1e-5
    VoxelMorph, TransMorph, LKU-Net, SITReg: -mean   ``"sum"``     0         1e-5
    mmipt, DilateMorph: means, not sums, 1 - mean    ``"mean"``    1         1e-5
    ===============================================  ============  ========  =====

    ``statistics="mean"`` divides c, a and b by n, which is the same as an epsilon n**2 times as large. Local variances
    that rounding made negative are set to 0 and :math:`c^2` is at most ab, so that cc lies in [0, 1] for intensities of
    any scale (the published forms leave both, which in flat windows can make cc anything); elsewhere the values are
    theirs. MONAI's ``LocalNormalizedCrossCorrelationLoss`` differs: it clamps each variance, so flat regions differ.

    The gradient is exact. It is computed with the value, in slabs, so that only one volume per image that needs a
    gradient is kept. It cannot be differentiated again. Computes in float32 (float64 for float64 inputs) also under
    autocast.

    Args:
        spatial_dims: 2 or 3.
        kernel_size: odd side of the window in voxels; it may exceed the image.
        eps: added to the product of the two variances.
        statistics: ``"sum"`` or ``"mean"``, see above.
        offset: constant that the mean of cc is subtracted from.

    Raises:
        InputError: for an even window, another dimension or unknown statistics.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        kernel_size: int = 9,
        eps: float = 1e-5,
        statistics: str = "sum",
        offset: float = 1.0,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise InputError(f"LNCCLoss got spatial_dims={spatial_dims}; choose 2 or 3.")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise InputError(f"LNCCLoss got kernel_size={kernel_size}; choose an odd positive number such as 9.")
        if statistics not in ("sum", "mean"):
            raise InputError(f"LNCCLoss got statistics={statistics!r}; choose 'sum' or 'mean'.")
        self.spatial_dims = spatial_dims
        self.kernel_size = kernel_size
        self.eps = eps
        self.statistics = statistics
        self.offset = offset

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compare two images.

        Args:
            pred: (B, C, *spatial), any intensities; usually the warped moving image.
            target: the same shape; its gradient is computed only if it requires one.

        Returns:
            Scalar: ``offset`` minus the mean of cc (in [0, 1]) over batch, channels and voxels.

        Raises:
            InputError: if the shapes differ or do not have ``spatial_dims`` spatial axes.
        """
        if pred.ndim != self.spatial_dims + 2:
            raise InputError(
                f"LNCCLoss with spatial_dims={self.spatial_dims} got an image of shape {tuple(pred.shape)}; "
                f"pass (batch, channels, {self.spatial_dims} spatial axes)."
            )
        if pred.shape != target.shape:
            raise InputError(
                f"LNCCLoss got pred of shape {tuple(pred.shape)} and target of shape {tuple(target.shape)}; "
                "resample one to the other's grid."
            )
        count = self.kernel_size**self.spatial_dims
        eps = self.eps * (count**2 if self.statistics == "mean" else 1)
        return self.offset - mean_squared_lncc(pred, target, self.kernel_size, eps)


def mean_squared_lncc(pred: Tensor, target: Tensor, kernel_size: int, eps: float) -> Tensor:
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
                    images[0][b, c], images[1][b, c], kernel_size, eps, outputs, 2 / pred.numel()
                ).run()
    return with_gradient((total / pred.numel()).to(dtype), images, gradients)


class _BoxStream:
    """Window sums of several maps, fed slab after slab along the first spatial axis.

    Planes lie behind one another in flat memory. Each row is followed by ``radius`` zeros and each plane by ``radius``
    zero rows, so that a neighbour along any axis is one constant shift of the whole buffer: every add runs over
    contiguous memory.
    """

    def __init__(self, maps: int, depth: int, plane: tuple[int, ...], kernel_size: int, like: Tensor) -> None:
        self.kernel_size, self.radius, self.maps, self.depth = kernel_size, kernel_size // 2, maps, depth
        self.plane = plane
        padded = tuple(n + self.radius for n in plane)
        self.strides = [math.prod(padded[axis + 1 :]) for axis in reversed(range(len(plane)))]
        self.plane_size = math.prod(padded)
        self.margin = self.radius * sum(self.strides)
        length = maps * depth * self.plane_size
        self.source = like.new_zeros(length + 2 * self.margin)
        self.between = like.new_zeros(length + 2 * self.margin)
        self.ring = like.new_zeros(maps, (depth + 2 * self.radius) * self.plane_size)
        self.result = like.new_empty(maps, depth * self.plane_size)
        size = max(self.ring.numel(), self.source.numel())
        self.scratch = (like.new_empty(size), like.new_empty(size))
        self.flat = self.source[self.margin : self.margin + length].view(maps, -1)
        self.input = self.flat.view(maps, depth, *padded)

    def clear_outside(self, index: int, first: int, last: int) -> None:
        """Zero what map ``index`` of the input has outside planes ``first`` to ``last`` and behind rows and planes."""
        values = self.input[index]
        values[:first] = 0
        values[last:] = 0
        for axis, size in enumerate(self.plane, start=1):
            values.narrow(axis, size, self.radius).zero_()

    def valid(self, values: Tensor) -> Tensor:
        """View a (maps, depth * plane) buffer as (maps, depth, *plane) without its padding."""
        view = values.view(self.maps, *self.input.shape[1:])
        for axis, size in enumerate(self.plane, start=2):
            view = view.narrow(axis, 0, size)
        return view

    def push(self, empty: bool = False) -> Tensor:
        """Take ``input`` as the next ``depth`` planes and return the sums ``radius`` planes behind them, in place."""
        tail = 2 * self.radius * self.plane_size
        fresh = self.ring[:, tail:]
        if empty:
            fresh.zero_()
        else:
            source, length = self.source, self.flat.numel()
            for stride in self.strides[:-1]:
                reach, inner = self.radius * stride, slice(self.margin, self.margin + length)
                window = source[self.margin - reach : self.margin + length + reach]
                self._sum(window[None], stride, self.between[inner][None])
                source = self.between
            reach = self.radius * self.strides[-1]
            window = source[self.margin - reach : self.margin + length + reach]
            self._sum(window[None], self.strides[-1], fresh)
        self._sum(self.ring, self.plane_size, self.result)
        self.ring[:, :tail] = self.ring[:, self.ring.shape[1] - tail :]
        return self.result

    def _sum(self, x: Tensor, stride: int, out: Tensor) -> None:
        """``out[i] = sum of x[i + k * stride]``, k < kernel_size, by sums of 2, 4, 8, ... (four adds for nine)."""
        rows, length = x.shape[0], x.shape[1] - (self.kernel_size - 1) * stride
        if self.kernel_size == 1:
            out.copy_(x.view_as(out))
            return
        power, width, done, started = x, 1, 1, False
        while done < self.kernel_size:
            size = power.shape[1] - width * stride
            doubled = self.scratch[width.bit_length() % 2][: rows * size].view(rows, size)
            power = torch.add(power[:, :size], power[:, width * stride :], out=doubled)
            width *= 2
            if self.kernel_size & width:
                part = power[:, done * stride : done * stride + length].reshape(out.shape)
                torch.add(out if started else x[:, :length].reshape(out.shape), part, out=out)
                done, started = done + width, True


class _LNCCStream:
    """One pair of single-channel volumes: the sum of cc and, where asked for, the gradients of the scaled sum."""

    def __init__(
        self,
        pred: Tensor,
        target: Tensor,
        kernel_size: int,
        eps: float,
        outputs: list[Tensor | None],
        scale: float,
    ) -> None:
        self.images, self.outputs, self.eps, self.scale = (pred, target), outputs, eps, scale
        self.radius, self.count = kernel_size // 2, kernel_size**pred.ndim
        self.size, plane = pred.shape[0], tuple(pred.shape[1:])
        budget = _CPU_SLAB if pred.is_cpu else _ACCELERATOR_SLAB
        affordable = max(2 * self.radius, 1, budget // (5 * math.prod(n + self.radius for n in plane)))
        self.wanted = [k for k in (0, 1) if outputs[k] is not None]
        # Sums lag the planes they are made of by one radius, gradients by another one.
        self.planes = self.size + self.radius * (2 if self.wanted else 1)
        even = math.ceil(self.planes / math.ceil(self.planes / affordable))
        self.depth = max(2 * self.radius, even)
        self.moments = _BoxStream(5, self.depth, plane, kernel_size, pred)
        # A and, per wanted gradient, B and C.
        self.terms = _BoxStream(1 + 2 * len(self.wanted), self.depth, plane, kernel_size, pred)

    def run(self) -> Tensor:
        """Go through all planes; returns the sum of cc in float64 and fills ``outputs``."""
        total = self.images[0].new_zeros((), dtype=torch.float64)
        for start in range(0, self.planes, self.depth):
            sums = self._push_moments(start)
            total += self._push_terms(sums, start - self.radius)
            if self.wanted:
                self._write_gradients(start - 2 * self.radius)
        return total

    def _push_moments(self, start: int) -> Tensor:
        count = min(self.depth, self.size - start)
        if count > 0:
            inside = self.moments.valid(self.moments.flat)
            for k in (0, 1):
                inside[k, :count] = self.images[k][start : start + count]
                inside[k, count:] = 0
            flat = self.moments.flat
            torch.mul(flat[0], flat[0], out=flat[2])
            torch.mul(flat[1], flat[1], out=flat[3])
            torch.mul(flat[0], flat[1], out=flat[4])
        return self.moments.push(empty=count <= 0)

    def _push_terms(self, sums: Tensor, start: int) -> Tensor:
        sum_i, sum_j, cross = sums[0], sums[1], sums[4]
        variances = (sums[2], sums[3])
        cross.addcmul_(sum_i, sum_j, value=-1 / self.count)
        variances[0].addcmul_(sum_i, sum_i, value=-1 / self.count).clamp_min_(0)
        variances[1].addcmul_(sum_j, sum_j, value=-1 / self.count).clamp_min_(0)
        flat = self.terms.flat
        ratio = torch.mul(variances[0], variances[1], out=flat[0])
        # Cauchy and Schwarz: what exceeds it is the rounding of a flat window, which eps would magnify.
        bound = ratio.sqrt()
        torch.minimum(cross, bound, out=cross)
        torch.maximum(cross, bound.neg_(), out=cross)
        torch.div(cross, ratio.add_(self.eps), out=ratio)
        # Windows centred outside the image do not exist: their terms must not reach the gradient or the value.
        # B and C are multiples of A and vanish with it.
        self.terms.clear_outside(0, max(0, -start), max(0, self.size - start))
        value = torch.dot(cross, ratio)
        for position, k in enumerate(self.wanted):
            # The gradient to image k needs the variance of the other one.
            quadratic, constant = flat[1 + 2 * position], flat[2 + 2 * position]
            torch.mul(ratio, ratio, out=quadratic).mul_(variances[1 - k])
            torch.mul(quadratic, sums[k], out=constant).addcmul_(ratio, sums[1 - k], value=-1)
        return value.double()

    def _write_gradients(self, start: int) -> None:
        """Gradient to image k: 2 (other * box(A) - image * box(B) + box(C) / n) of the value, times the scale."""
        boxed = self.terms.valid(self.terms.push())
        first, last = max(0, -start), min(self.depth, self.size - start)
        if first >= last:
            return
        where = slice(start + first, start + last)
        for position, k in enumerate(self.wanted):
            output = self.outputs[k]
            assert output is not None
            part = output[where]
            torch.mul(boxed[2 + 2 * position, first:last], self.scale / self.count, out=part)
            part.addcmul_(boxed[0, first:last], self.images[1 - k][where], value=self.scale)
            part.addcmul_(boxed[1 + 2 * position, first:last], self.images[k][where], value=-self.scale)
