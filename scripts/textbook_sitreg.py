# SPDX-License-Identifier: Apache-2.0
"""SITReg and its first loss as a reader of the paper would write them, for the benchmarks to compare with.

As in :mod:`scripts.textbook` this is a re-enactment and not the published code, and imports nothing from ``common``.
What the published code computes although nothing needs it is computed here, too: the samplings of the identity at the
coarsest level, and both results of each level.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MULTIPLIER = 0.99
# Relative change of the last step to the gradient of an inverse.
GRADIENT_CHANGE = 1e-2
# Published bounds of the control points, by factor from fine to coarse voxels.
BOUNDS = {
    1: 0.36,
    2: 0.3854469526363808,
    4: 0.39803114051999844,
    8: 0.4007250760586097,
    16: 0.40175329749498856,
    32: 0.40253633025170044,
}


def sample(image: Tensor, where: Tensor, padding: str = "border") -> Tensor:
    """Image (B, C, D, H, W) at voxel positions (B, 3, ...), linearly."""
    axes = [2 * where[:, k] / (n - 1) - 1 for k, n in enumerate(image.shape[2:])]
    grid = torch.stack(axes[::-1], dim=-1)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode=padding, align_corners=True)


def voxels(size: tuple[int, ...], factor: int = 1) -> Tensor:
    """(1, 3, *size): positions in the image of the voxels of a grid ``factor`` times as coarse."""
    axes = [factor * torch.arange(float(n)) + (factor - 1) / 2 for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def anderson(function: Callable[[Tensor], Tensor], start: Tensor, done: Callable[[Tensor, Tensor], bool]) -> Tensor:
    """Fixed point by Anderson's method with a memory of four, at most 50 evaluations."""
    inputs, values = [start], [function(start)]
    inputs.append(values[0])
    values.append(function(values[0]))
    while len(values) < 50 and not done(values[-1], inputs[-1]):
        known = min(len(values), 4)
        recent = torch.stack([value.flatten() for value in values[-known:]])
        changes = recent - torch.stack([x.flatten() for x in inputs[-known:]])
        system = torch.ones(known + 1, known + 1)
        system[0, 0] = 0
        system[1:, 1:] = changes @ changes.T + 1e-4 * torch.eye(known)
        right = torch.zeros(known + 1)
        right[0] = 1
        weights = torch.linalg.solve(system, right)[1:]
        inputs.append((weights @ recent).view(start.shape))
        values.append(function(inputs[-1]))
        inputs, values = inputs[-4:], values[-4:]
    return values[-1]


class FixedPointInverse(torch.autograd.Function):
    """Inverse of a displacement, with an implicit gradient that is found by the same iteration."""

    @staticmethod
    def forward(ctx: Any, ddf: Tensor, grid: Tensor) -> Tensor:
        """Solve ``v(x) = -ddf(x + v(x))``."""
        inverse = anderson(lambda v: -sample(ddf, grid + v), -ddf, lambda y, x: bool((y - x).abs().max() < 1e-2))
        ctx.save_for_backward(ddf, inverse, grid)
        return inverse

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Solve for the gradient at the solution, then follow it to the field."""
        ddf, inverse, grid = ctx.saved_tensors
        with torch.enable_grad():
            ddf, inverse = ddf.detach().requires_grad_(), inverse.detach().requires_grad_()
            value = -sample(ddf, grid + inverse)

        def step(w: Tensor) -> Tensor:
            return torch.autograd.grad(value, inverse, w, retain_graph=True)[0] + grad

        def done(y: Tensor, x: Tensor) -> bool:
            return bool((y - x).norm() / (1e-5 + y.norm()) < GRADIENT_CHANGE)

        solution = anderson(step, torch.zeros_like(grad), done)
        return torch.autograd.grad(value, ddf, solution)[0], None


def block(channels_in: int, channels: int, groups: int) -> nn.Sequential:
    """Twice convolution, group normalisation, ReLU."""
    layers: list[nn.Module] = []
    for n in (channels_in, channels):
        layers += [nn.Conv3d(n, channels, 3, padding=1), nn.GroupNorm(groups, channels), nn.ReLU()]
    return nn.Sequential(*layers)


class Spline(nn.Module):
    """Cubic B-spline from control points to voxels, axis by axis with transposed convolutions."""

    kernel: Tensor

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor
        length = 4 * factor - factor % 2
        t = ((torch.arange(length) + (1 if factor % 2 else 0.5)) / factor - 2).abs()
        values = torch.where(t < 1, 2 / 3 - t**2 + t**3 / 2, (2 - t).clamp(min=0) ** 3 / 6)
        self.register_buffer("kernel", values)

    def forward(self, control: Tensor, size: tuple[int, ...]) -> Tensor:
        """(B, 3, *coarse) to (B, 3, *size), in voxels of the latter."""
        field = F.pad(control * self.factor, [2] * 6, mode="replicate")
        for axis, n in enumerate(size):
            shape, stride = [1, 1, 1], [1, 1, 1]
            shape[axis], stride[axis] = len(self.kernel), self.factor
            kernel = self.kernel.view(1, 1, *shape).repeat(3, 1, 1, 1, 1)
            field = F.conv_transpose3d(field, kernel, stride=stride, groups=3)
            field = field.narrow(axis + 2, 7 * self.factor // 2, n)
        return field


class TextbookSITReg(nn.Module):
    """SITReg without affine stage, in torch modules: joint batch of both images, all stored by autograd.

    Args:
        size: of the image, multiples of 2 ** (levels - 1).
        channels: of the features of each level, finest first.
        update_channels: of the updates of each level.
        groups: of the normalisations.
    """

    def __init__(
        self,
        size: tuple[int, ...],
        channels: tuple[int, ...] = (12, 32, 64, 128, 128, 128),
        update_channels: tuple[int, ...] = (12, 64, 128, 256, 256, 256),
        groups: int = 4,
    ) -> None:
        super().__init__()
        self.size, self.levels = size, len(channels)
        self.projection = nn.Conv3d(1, channels[0], 1)
        self.blocks = nn.ModuleList(block(c, c, groups) for c in channels)
        pairs = list(zip(channels[:-1], channels[1:], strict=True))
        self.strided = nn.ModuleList(nn.Conv3d(a, b, 2, stride=2) for a, b in pairs)
        self.skips = nn.ModuleList(nn.Conv3d(a, b, 1) for a, b in pairs)
        self.updates = nn.ModuleList(
            nn.Sequential(block(2 * c, t, groups), nn.Conv3d(t, 3, 1))
            for c, t in zip(channels, update_channels, strict=True)
        )
        self.splines = nn.ModuleList(Spline(2**level) for level in range(self.levels))
        self.grids = [voxels(tuple(n // 2**level for n in size), 2**level) for level in range(self.levels)]

    def features(self, images: Tensor) -> list[Tensor]:
        """Features of each level, finest first."""
        skip = self.projection(images)
        levels = [self.blocks[0](skip)]
        for strided, skipping, convolutions in zip(self.strided, self.skips, self.blocks[1:], strict=True):
            skip = strided(levels[-1]) + skipping(F.avg_pool3d(skip, 2))
            levels.append(convolutions(skip))
        return levels

    def forward(self, moving: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
        """Displacement (B, 3, *size) and the way back."""
        features, grid = self.features(torch.cat([moving, fixed])), self.grids[0]
        left = right = left_inverse = right_inverse = moving.new_zeros((len(moving), 3, *self.size))
        for level in reversed(range(self.levels)):
            z1, z2 = self._sampled(features[level], left, right, level)
            total = z1 + z2
            a, b = (self._update(torch.cat([x, total], dim=1), level) for x in (z1 - z2, z2 - z1))
            a_inverse, b_inverse = (FixedPointInverse.apply(update, grid) for update in (a, b))
            left, right, left_inverse, right_inverse = (
                chain(grid, left, a, b_inverse),
                chain(grid, right, b, a_inverse),
                chain(grid, b, a_inverse, left_inverse),
                chain(grid, a, b_inverse, right_inverse),
            )
            there, back = chain(grid, left, right_inverse), chain(grid, right, left_inverse)
        return there, back

    def _sampled(self, features: Tensor, left: Tensor, right: Tensor, level: int) -> list[Tensor]:
        grid, factor = self.grids[level], 2**level
        halves = zip(features.chunk(2), (left, right), strict=True)
        return [sample(z, (grid + sample(half, grid) + 0.5) / factor - 0.5) for z, half in halves]

    def _update(self, x: Tensor, level: int) -> Tensor:
        control = MULTIPLIER * BOUNDS[2**level] * torch.tanh(self.updates[level](x))
        field: Tensor = self.splines[level](control, self.size)
        return field


def chain(grid: Tensor, *fields: Tensor) -> Tensor:
    """Displacement of the composition of maps, the last of which comes first."""
    where = grid + fields[-1]
    for field in fields[-2::-1]:
        where = where + sample(field, where)
    return where - grid


class TextbookSITRegLoss(nn.Module):
    """Masked local correlation with separable windows, plus the squared gradient, half of each from either direction.

    Args:
        size: of the image.
        window: side of the windows.
    """

    def __init__(self, size: tuple[int, ...], window: int = 11) -> None:
        super().__init__()
        self.window, self.grid = window, voxels(size)

    def forward(self, moving: Tensor, fixed: Tensor, there: Tensor, back: Tensor) -> Tensor:
        """The total of one pair whose masks are the whole image."""
        total = moving.new_zeros(())
        for image, target, field in ((moving, fixed, there), (fixed, moving, back)):
            where = self.grid + field
            mask = (sample(torch.ones_like(image), where, "zeros") >= 0.999).float()
            gradient = torch.stack([field.diff(dim=axis).square().mean() for axis in (2, 3, 4)]).mean()
            total = total + 0.5 * (self.correlation(sample(image, where, "zeros") * mask, target * mask) + gradient)
        return total

    def correlation(self, pred: Tensor, target: Tensor) -> Tensor:
        """Negative mean of the squared local correlation."""
        count = self.window**3
        s_i, s_j, s_ii, s_jj, s_ij = (
            self._sums(x) for x in (pred, target, pred * pred, target * target, pred * target)
        )
        cross = s_ij - s_i * s_j / count
        var_i, var_j = s_ii - s_i * s_i / count, s_jj - s_j * s_j / count
        return -(cross * cross / (var_i * var_j + 1e-5)).mean()

    def _sums(self, x: Tensor) -> Tensor:
        for axis in range(3):
            shape, padding = [1, 1, 1], [0, 0, 0]
            shape[axis], padding[axis] = self.window, self.window // 2
            x = F.conv3d(x, torch.ones(1, 1, *shape), padding=padding)
        return x
