# SPDX-License-Identifier: Apache-2.0
"""Mutual information of two images from a joint histogram with soft bins, its gradient computed with the value."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from common.checks import InputError
from common.losses.closed_form import check_alike, computing_dtype, needs_gradient, with_gradient
from common.losses.parzen import BoxWindow, CubicWindow, GaussianWindow, Window
from common.losses.percentiles import percentiles
from common.losses.weights import check_weight

# Voxels at a time: their weights stay in the cache; accelerators want few launches.
_CPU_PIECE = 1 << 14
_ACCELERATOR_PIECE = 1 << 20
# Histograms that voxels go to in turns: neighbours often have one value, and sums in one place wait for each other.
_LANES = 4
# As in the published code, which adds the precision of float32 whatever it computes in.
_EPS, _TINY = 2.0**-23, 1e-10


class MutualInformationLoss(nn.Module):
    r"""Negative mutual information, with the bins of VFA's recipe for images of two kinds, or those of Mattes et al.

    The intensities of each image are clamped to the range between its 1st and its 99th percentile, which is cut into
    bins of width h. A voxel belongs to bin k with the weight of a Gaussian around the bin's centre, of standard
    deviation h / 2.355, the weights of a voxel adding up to 1. With the mean over voxels of the products as p(k, l),

    .. math::
        -\sum_{k, l} p(k, l) \log\Big(\frac{p(k, l)}{p(k)\,p(l) + \epsilon} + 10^{-10}\Big)

    The mean is that over the samples of the batch. Clamped voxels have no gradient, and neither have percentiles.

    With the window "bspline" (Mattes et al., IEEE TMI 2003) the weights in the bins of ``pred`` are cubic B-splines,
    whose range is three bins shorter, and each voxel of ``target`` is in one bin alone: less than half the work, for
    optimisation on a pair.

    Weights of voxels weigh the histogram; percentiles are those of all voxels with a weight above 0. One without has no
    influence, and a sample without any counts as 0.

    Bins whose share in a voxel float32 cannot see are left out; sums are in float64. The gradient is exact and cannot
    be differentiated again. Accelerators add in no fixed order.

    Args:
        bins: number of bins of each image.
        window: "gaussian" or "bspline".
        normalised: 2 - (H(pred) + H(target)) / H(pred, target) of the entropies H instead (Studholme et al., Pattern
            Recognition 1999), which depends less on how much background the images share.

    Raises:
        InputError: for fewer than two bins (four of "bspline") and other windows.
    """

    def __init__(self, bins: int = 32, window: str = "gaussian", normalised: bool = False) -> None:
        super().__init__()
        if window not in ("gaussian", "bspline"):
            raise InputError(f"MutualInformationLoss got window={window!r}; choose 'gaussian' or 'bspline'.")
        least = 2 if window == "gaussian" else 4
        if bins < least:
            raise InputError(f"MutualInformationLoss got bins={bins}; choose {least} or more.")
        self.bins, self.window, self.normalised = bins, window, normalised

    def forward(self, pred: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compare images.

        Args:
            pred: (B, C, *spatial), intensities of any scale; usually the warped moving image.
            target: the same shape. With the window "bspline" it has no gradient.
            weight: (B, 1, *spatial) from 0 to 1, how much each voxel counts; None is 1 everywhere. It has no gradient.

        Returns:
            Scalar, at most 0; if normalised, from 0 (one image tells all of the other) to 1 (nothing). Float32 (float64
            if an input is).

        Raises:
            InputError: when the shapes do not fit, and when the target of "bspline" asks for a gradient.
        """
        check_alike("MutualInformationLoss", pred, target)
        if self.window == "bspline" and needs_gradient(target):
            raise InputError(
                "MutualInformationLoss with window='bspline' has no gradient of the target: give the image that moves "
                "as pred, or choose window='gaussian'."
            )
        if weight is not None:
            check_weight("MutualInformationLoss", pred, weight)
        dtype = computing_dtype(pred, target)
        images = pred.to(dtype), target.to(dtype)
        gradients = [torch.zeros_like(x) if needs_gradient(x) else None for x in images]
        value = images[0].new_zeros((), dtype=torch.float64)
        with torch.no_grad(), torch.autocast(pred.device.type, enabled=False):
            for b in range(len(pred)):
                voxels = _Voxels(images[0][b], None if weight is None else weight[b].to(dtype))
                if voxels.count:
                    wanted = [None if gradient is None else gradient[b] for gradient in gradients]
                    value += self._sample([voxels.take(image[b]) for image in images], voxels, wanted)
        for gradient in gradients:
            if gradient is not None:
                gradient /= len(pred)
        return with_gradient((value / len(pred)).to(dtype), images, gradients)

    def _sample(self, values: list[Tensor], voxels: _Voxels, gradients: list[Tensor | None]) -> Tensor:
        """The loss of one sample in float64; writes its gradients."""
        pair = [_Binned(image, window) for image, window in zip(values, self._windows(values[0]), strict=True)]
        value, slope = self._compared(_joint(pair[0], pair[1], voxels.weight))
        slope = slope.to(values[0].dtype)
        for i, gradient in enumerate(gradients):
            if gradient is not None:
                voxels.put(_gradient(pair[i], pair[1 - i], slope if i == 0 else slope.T), gradient)
        return value

    def _windows(self, like: Tensor) -> tuple[Window, Window]:
        if self.window == "bspline":
            return CubicWindow(self.bins), BoxWindow(self.bins)
        window = GaussianWindow(self.bins, like)
        return window, window

    def _compared(self, joint: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of a joint histogram of sum 1, and its derivative by each of the entries."""
        with torch.enable_grad():
            joint = joint.detach().requires_grad_()
            rows, columns = joint.sum(1), joint.sum(0)
            if self.normalised:
                value = 2 - (_entropy(rows) + _entropy(columns)) / _entropy(joint)
            else:
                value = -(joint * (joint / (torch.outer(rows, columns) + _EPS) + _TINY).log()).sum()
            (slope,) = torch.autograd.grad(value, joint)
        return value.detach(), slope


class _Voxels:
    """Those of a sample that have a weight, and their shares of it.

    Args:
        image: (C, *spatial).
        weight: (1, *spatial) of the same type, or None.
    """

    def __init__(self, image: Tensor, weight: Tensor | None) -> None:
        self.chosen: Tensor | None = None
        self.weight: Tensor | None = None
        self.count = image.numel()
        if weight is not None:
            every = weight.detach().expand_as(image).flatten()
            self.chosen = (every > 0).nonzero()[:, 0]
            self.weight, self.count = every.index_select(0, self.chosen), len(self.chosen)

    def take(self, image: Tensor) -> Tensor:
        """(count,) values."""
        return image.flatten() if self.chosen is None else image.flatten().index_select(0, self.chosen)

    def put(self, values: Tensor, image: Tensor) -> None:
        """Derivatives of the sum over voxels, as those of the weighted mean, into an image of zeros."""
        if self.chosen is None or self.weight is None:
            image.copy_(values.div_(self.count).view_as(image))
        else:
            values.mul_(self.weight).div_(self.weight.sum(dtype=torch.float64))
            image.view(-1).index_copy_(0, self.chosen, values)


class _Binned:
    """The voxels of one image, in bins."""

    def __init__(self, values: Tensor, window: Window) -> None:
        self.values, self.window = values, window
        self.low, self.high = percentiles(values, (0.01, 0.99))
        extent = self.high - self.low
        # An image of one intensity has no width: all of its voxels are at the same place, which nothing moves.
        self.scale = torch.where(extent == 0, 0, window.extent / extent)

    def clamped(self, part: slice = slice(None)) -> Tensor:
        """Values between the percentiles."""
        raised = torch.maximum(self.values[part], self.low)
        return torch.minimum(raised, self.high, out=raised)

    def place(self, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Cell and place inside, (voxels,), and weights (taps, voxels)."""
        places = self.clamped(part).sub_(self.low).mul_(self.scale)
        cell, inside = self.window.split(places.add_(self.window.start) if self.window.start else places)
        return cell, inside, self.window.weights(inside)


def _parts(values: Tensor) -> Iterator[slice]:
    piece = _CPU_PIECE if values.is_cpu else _ACCELERATOR_PIECE
    for start in range(0, values.numel(), piece):
        yield slice(start, min(start + piece, values.numel()))


def _pair_of_cells(cell: Tensor, other: Tensor, bins: int) -> Tensor:
    """Number of a pair of cells; reuses ``cell``. Values that are none make the loss none, but have a place."""
    return cell.mul_(bins).add_(other).nan_to_num_(nan=0.0)


def _joint(first: _Binned, second: _Binned, voxels: Tensor | None) -> Tensor:
    """(bins, bins) in float64, sum 1, of weighted voxels."""
    bins, taps = first.window.bins, second.window.taps
    sums = first.values.new_zeros(first.window.taps, taps, _LANES * bins**2, dtype=torch.float64)
    lane: Tensor | None = None
    for part in _parts(first.values):
        (cell, _, weights), (other_cell, _, others) = first.place(part), second.place(part)
        if lane is None:
            lane = torch.arange(len(cell), dtype=cell.dtype, device=cell.device).remainder_(_LANES).mul_(bins**2)
        place = _pair_of_cells(cell, other_cell, bins).add_(lane[: len(cell)]).long().expand(taps, -1)
        weights, others = weights.double(), others.double()
        if voxels is not None:
            weights *= voxels[part]
        for row, weight in zip(sums, weights, strict=True):
            row.scatter_add_(1, place, others * weight)
    joint = sums.new_zeros(bins, bins)
    for row, i in zip(sums.view(-1, taps, _LANES, bins, bins).sum(2), first.window.offsets, strict=True):
        for counts, j in zip(row, second.window.offsets, strict=True):
            # No cell is so near the border that anything goes around.
            joint += counts.roll((i, j), (0, 1))
    return joint / (first.values.numel() if voxels is None else voxels.sum(dtype=torch.float64))


def _entropy(shares: Tensor) -> Tensor:
    return -(shares * shares.clamp(min=torch.finfo(shares.dtype).tiny).log()).sum()


def _gradient(image: _Binned, other: _Binned, slope: Tensor) -> Tensor:
    """By the values of ``image``, whose bins are the rows of ``slope``."""
    # By pair of cells, for the bins at one and the other offset.
    tables = [[slope.roll((-i, -j), (0, 1)).flatten() for j in other.window.offsets] for i in image.window.offsets]
    gradient = torch.zeros_like(image.values)
    for part in _parts(image.values):
        (cell, inside, weights), (other_cell, _, others) = image.place(part), other.place(part)
        place = _pair_of_cells(cell, other_cell, len(slope)).int()
        for row, slopes in zip(tables, image.window.slopes(inside, weights), strict=True):
            inner = torch.zeros_like(inside)
            for table, weight in zip(row, others, strict=True):
                inner.addcmul_(table.index_select(0, place), weight)
            gradient[part].addcmul_(inner, slopes)
    return gradient.mul_(image.values == image.clamped()).mul_(image.scale)
