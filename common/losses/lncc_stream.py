# SPDX-License-Identifier: Apache-2.0
"""The sum of local correlation over one pair of volumes and its gradients, slab by slab; the loss is in ``lncc.py``."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from common.losses.window_sums import WindowSums

# Elements of one slab of the five moment maps: about 2 MB of float32 stays in a core's cache; accelerators want few
# launches.
_CPU_SLAB = 1 << 19
_ACCELERATOR_SLAB = 1 << 24
# Windows of less weight count as of this one: what rounding makes of so little is nothing to divide by.
_LEAST_WEIGHT = 1e-3


class Guard(NamedTuple):
    """What keeps a flat window from being divided by nothing.

    Attributes:
        eps: least, or added.
        of_means: whether it is one of variances, otherwise of sums over the window.
        bounded: whether it is the least that is divided by; otherwise it is added.
        each: whether it is the least of either variance and of the covariance, and not of the product.
    """

    eps: float
    of_means: bool
    bounded: bool
    each: bool = False

    def scale(self, count: float) -> float:
        """What eps is multiplied by for windows of so many voxels."""
        return (count if self.each else count**2) if self.of_means else 1


class _Side(NamedTuple):
    """One image in the gradient: its number in (I, J) and the other's, where its B and C lie among the terms."""

    image: int
    other: int
    b: int
    c: int
    gradient: Tensor


class LNCCStream:
    """One pair of single-channel volumes: the sum of cc and, where asked for, the gradients of the scaled sum.

    Slabs of planes pass three steps: moments (I, J, I^2, J^2, IJ), of whose window sums terms (A and, for each wanted
    gradient, B and C) are made, of whose window sums the gradients are made. Window sums lag one radius behind.

    Args:
        images: I and J.
        kernel_size: odd side of the window in voxels.
        guard: of the division by the product of variances.
        outputs: where the gradients for I and J go, or ``None``.
        scale: twice the factor of the sum whose gradients are made.
    """

    maps = 5
    """Of moments."""

    def __init__(
        self,
        images: tuple[Tensor, Tensor],
        kernel_size: int,
        guard: Guard,
        outputs: list[Tensor | None],
        scale: float,
    ) -> None:
        self.images, self.guard, self.scale = images, guard, scale
        pred = images[0]
        self.radius, self.count = kernel_size // 2, kernel_size**pred.ndim
        self.size, plane = pred.shape[0], tuple(pred.shape[1:])
        wanted = [(k, output) for k, output in enumerate(outputs) if output is not None]
        self.sides = [_Side(k, 1 - k, 1 + 2 * i, 2 + 2 * i, output) for i, (k, output) in enumerate(wanted)]
        self.planes = self.size + self.radius * (2 if self.sides else 1)
        budget = _CPU_SLAB if pred.is_cpu else _ACCELERATOR_SLAB
        affordable = max(2 * self.radius, 1, budget // (self.maps * math.prod(n + self.radius for n in plane)))
        even = math.ceil(self.planes / math.ceil(self.planes / affordable))
        self.depth = max(2 * self.radius, even)
        self.moments = WindowSums(self.maps, self.depth, plane, kernel_size, pred)
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
            self._multiply(start, planes)
        return self.moments.push(empty=planes <= 0)

    def _multiply(self, start: int, planes: int) -> None:
        """Products of the images, which lie in the input of ``moments``: ``planes`` from ``start`` on."""
        i, j, ii, jj, ij = self.moments.flat
        torch.mul(i, i, out=ii)
        torch.mul(j, j, out=jj)
        torch.mul(i, j, out=ij)

    def _centre(self, moments: Tensor) -> float | Tensor:
        """Of the sums make a, b and c; returns the epsilon."""
        s_i, s_j, a, b, c = moments
        c.addcmul_(s_i, s_j, value=-1 / self.count)
        a.addcmul_(s_i, s_i, value=-1 / self.count).clamp_min_(0)
        b.addcmul_(s_j, s_j, value=-1 / self.count).clamp_min_(0)
        return self.guard.eps * self.guard.scale(self.count)

    def _weigh(self, ratio: Tensor, start: int) -> Tensor:
        """Weigh A of the planes from ``start`` on in place; returns what it was."""
        return ratio

    def _make_terms(self, moments: Tensor, start: int) -> Tensor:
        """Sum of cc over the planes from ``start`` on, and their terms into the input of ``terms``."""
        eps = self._centre(moments)
        s_i, s_j, a, b, c = moments[:5]
        terms = self.terms.flat
        *free, free_c = self._divide(a, b, c, eps, terms[0])
        ratio = terms[0]
        # Windows centred outside the image do not exist: their terms must not reach the gradient or the value.
        # B and C are multiples of A and vanish with it.
        self.terms.clear_outside(0, max(0, -start), max(0, self.size - start))
        plain = self._weigh(ratio, start)
        value = torch.dot(c, ratio)
        sums, variances = (s_i, s_j), (a, b)
        for side in self.sides:
            quadratic = torch.mul(ratio, plain, out=terms[side.b]).mul_(variances[side.other])
            where = free[side.image]
            if where is not None:
                quadratic.mul_(where)
        if free_c is not None:
            ratio.mul_(free_c)
        for side in self.sides:
            constant = torch.mul(terms[side.b], sums[side.image], out=terms[side.c])
            constant.addcmul_(ratio, sums[side.other], value=-1)
        return value.double()

    def _divide(self, a: Tensor, b: Tensor, c: Tensor, eps: float | Tensor, out: Tensor) -> list[Tensor | None]:
        """Make A in ``out``; returns where a, b and c have influence on cc, None for everywhere."""
        if self.guard.each:
            a.clamp_min_(eps)
            b.clamp_min_(eps)
        product = torch.mul(a, b, out=out)
        # Cauchy and Schwarz: what exceeds it is the rounding of a flat window, which eps would magnify.
        bound = product.sqrt()
        torch.minimum(c, bound, out=c)
        torch.maximum(c, bound.neg_(), out=c)
        if self.guard.each:
            c.clamp_min_(eps)
            torch.div(c, product, out=out)
            return [statistic > eps for statistic in (a, b, c)]
        # The variances have no influence where eps takes the place of their product.
        free = product > eps if self.guard.bounded else None
        torch.div(c, product.clamp_min_(eps) if self.guard.bounded else product.add_(eps), out=out)
        return [free, free, None]

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


class WeightedLNCCStream(LNCCStream):
    """One pair of single-channel volumes with weights: the weighted sum of cc and its gradients.

    A sixth map is 1 - w, whose sum is 0 around what lies outside the image, as it should be: there weights are 1. With
    :math:`m_I = S(wI) / S(w)`, u(x) the weight of the window centred on x, A and B times u, and
    :math:`C = B m_I - A m_J`, gradients are :math:`2 w (J S(A) - I S(B) + S(C))`.

    Args:
        images: I and J.
        weight: w, of the shape of both.
        factor: scalar that makes u of w.
        kernel_size: odd side of the window in voxels.
        guard: of the division by the product of variances.
        outputs: where the gradients for I and J go, or ``None``.
    """

    maps = 6

    def __init__(
        self,
        images: tuple[Tensor, Tensor],
        weight: Tensor,
        factor: Tensor,
        kernel_size: int,
        guard: Guard,
        outputs: list[Tensor | None],
    ) -> None:
        super().__init__(images, kernel_size, guard, outputs, 2)
        self.weight, self.factor = weight, factor
        # The means are in the terms.
        self.full, self.count = self.count, 1
        self.unweighed = torch.empty_like(self.terms.flat[0])

    def _multiply(self, start: int, planes: int) -> None:
        i, j, ii, jj, ij, w = self.moments.flat
        inside = self.moments.valid(self.moments.flat)[5]
        inside[:planes] = self.weight[start : start + planes]
        # The weight comes first: what is weighed by 0 may have a square that is infinite.
        torch.mul(i, w, out=ii)
        torch.mul(ii, j, out=ij)
        ii.mul_(i)
        i.mul_(w)
        torch.mul(j, w, out=jj)
        jj.mul_(j)
        j.mul_(w)
        inside[:planes].neg_().add_(1)
        inside[planes:] = 0

    def _centre(self, moments: Tensor) -> float | Tensor:
        m_i, m_j, a, b, c, count = moments
        count.neg_().add_(self.full).clamp_min_(_LEAST_WEIGHT)
        mean = torch.div(m_i, count, out=self.unweighed)
        c.addcmul_(mean, m_j, value=-1)
        a.addcmul_(mean, m_i, value=-1).clamp_min_(0)
        m_i.copy_(mean)
        torch.div(m_j, count, out=mean)
        b.addcmul_(mean, m_j, value=-1).clamp_min_(0)
        m_j.copy_(mean)
        if not self.guard.of_means:
            return self.guard.eps
        return (count if self.guard.each else count.square_()).mul_(self.guard.eps)

    def _weigh(self, ratio: Tensor, start: int) -> Tensor:
        plain = self.unweighed.copy_(ratio)
        first, last = max(0, -start), min(self.depth, self.size - start)
        if first < last:
            boxed = self.terms.valid(self.terms.flat)[0, first:last]
            boxed.mul_(self.weight[start + first : start + last]).mul_(self.factor)
        return plain

    def _write_gradients(self, terms: Tensor, start: int) -> None:
        super()._write_gradients(terms, start)
        where = slice(max(0, start), max(0, start + self.depth))
        for side in self.sides:
            side.gradient[where].mul_(self.weight[where])
