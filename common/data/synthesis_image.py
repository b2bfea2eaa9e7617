# SPDX-License-Identifier: Apache-2.0
"""Images of random contrast from label maps: a pure function of label maps and random numbers, and how these are drawn.

Hoffmann et al., SynthMorph, IEEE TMI 41 (2022) 543-558, section III; adalca/neurite (Apache-2.0), ``labels_to_image``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.checks import InputError
from common.data.synthesis_noise import Grids, along_axis, draw_grids, enlarged, enlarged_sum
from common.spatial import integrate, warp_labels_to_even

LARGEST = 255.0
"""Intensities before an image is brought to [0, 1]."""
_MEAN, _DEVIATION = (25.0, 225.0), (5.0, 25.0)
"""Least and largest mean intensity and noise of a label; those of the background start at 0."""
_INTEGRATION_STEPS = 5
_LEAST_BLUR = 1e-7


@dataclass(frozen=True)
class ImageDraws:
    """All that is random in a batch of images; the device is that of the label maps.

    Attributes:
        velocity: grids (B, d, *coarse) whose sum is the velocity at half size, in voxels of it.
        mean: (B, labels), intensity of each label, 0 to 255.
        deviation: (B, labels), noise of each label.
        noise: (B, 1, *spatial), Gaussian, of standard deviation 1.
        black: (B,), 1 where the background becomes 0, else 0.
        blur: (B, d), standard deviation of the blur along each axis in voxels, above 0.
        bias: grids (B, 1, *coarse) whose sum is the logarithm of the bias field.
        gamma: (B,), logarithm of the exponent.
    """

    velocity: Grids
    mean: Tensor
    deviation: Tensor
    noise: Tensor
    black: Tensor
    blur: Tensor
    bias: Grids
    gamma: Tensor


@dataclass(frozen=True)
class MadeImage:
    """Result of :func:`image_of_labels`.

    Attributes:
        image: (B, 1, *spatial), float32 in [0, 1].
        label: (B, 1, *spatial), the deformed label map.
        velocity: (B, d, *half), in voxels of the half size.
        ddf: (B, d, *spatial), voxels: ``label(x)`` is the given label map at ``x + ddf(x)``.
    """

    image: Tensor
    label: Tensor
    velocity: Tensor
    ddf: Tensor


def image_of_labels(label: Tensor, draws: ImageDraws, largest_blur: float = 1.0) -> MadeImage:
    """Deform label maps and make an image of random contrast of each.

    Args:
        label: (B, 1, *spatial), integers 0 to labels - 1 in two or three dimensions.
        draws: of this batch and size.
        largest_blur: voxels; the window of every blur reaches three of them.

    Returns:
        Images, deformed label maps and fields.
    """
    size = label.shape[2:]
    velocity = enlarged_sum(draws.velocity, half(size))
    ddf = enlarged(2 * integrate(velocity, _INTEGRATION_STEPS, padding_mode="border"), size)
    label = warp_labels_to_even(label, ddf)
    image = _painted(label, draws)
    for axis, n in enumerate(size):
        image = along_axis(image, _blur_weights(draws.blur[:, axis], largest_blur, n), axis)
    image = image.mul_(enlarged_sum(draws.bias, size).exp_()).clamp_(0, LARGEST)
    low, high = (bound.view(-1, *[1] * (image.ndim - 1)) for bound in torch.aminmax(image.flatten(1), dim=1))
    # A constant image becomes 0.
    image = image.sub_(low).div_((high - low).clamp_(min=torch.finfo(image.dtype).tiny))
    return MadeImage(image.pow_(draws.gamma.exp().view_as(low)), label, velocity, ddf)


def half(size: Sequence[int]) -> list[int]:
    """Voxels per axis of the grid of the velocity."""
    return [max(1, n // 2) for n in size]


def _painted(label: Tensor, draws: ImageDraws) -> Tensor:
    """Each voxel with intensity and noise of its label."""
    mean, deviation = draws.mean.clone(), draws.deviation.clone()
    mean[:, 0] *= 1 - draws.black
    deviation[:, 0] *= 1 - draws.black
    image = torch.empty_like(draws.noise)
    for item, place in enumerate(label.flatten(1).int()):
        noise = draws.noise[item].flatten()
        painted = mean[item].index_select(0, place).addcmul_(deviation[item].index_select(0, place), noise)
        image[item] = painted.view(image.shape[1:])
    return image


def _blur_weights(sigma: Tensor, largest: float, n: int) -> Tensor:
    """(B, 1, n, n), along an axis of n voxels with zeros outside; the window has a sum of 1."""
    reach = round(3 * largest)
    offsets = torch.arange(-reach, reach + 1, device=sigma.device, dtype=sigma.dtype)
    total = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2).sum(1)
    places = torch.arange(n, device=sigma.device, dtype=sigma.dtype)
    distance = places[:, None] - places
    window = torch.exp(-0.5 * (distance / sigma[:, None, None]) ** 2) * (distance.abs() <= reach)
    return (window / total[:, None, None])[:, None]


@dataclass(frozen=True)
class ImageRecipe:
    """How images of label maps are drawn; lengths in voxels of the label map.

    Attributes:
        warp_std: largest standard deviation of the velocity's noise, in voxels of the half size: 3 for random shapes,
            0.5 for label maps of brains.
        warp_scales: distances of the noise of the velocity: 8, 16, 32 for shapes, 16 for brains.
        bias_std: largest standard deviation of the logarithm of the bias field.
        bias_scales: distances of its noise.
        blur_std: largest standard deviation of the blur.
        gamma_std: standard deviation of the logarithm of the exponent.
        black_background: probability that the background is 0.

    Raises:
        InputError: a number below 0, a scale that is not above 0, or no scale.
    """

    warp_std: float = 3.0
    warp_scales: tuple[float, ...] = (8, 16, 32)
    bias_std: float = 0.3
    bias_scales: tuple[float, ...] = (40,)
    blur_std: float = 1.0
    gamma_std: float = 0.25
    black_background: float = 0.2

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("warp_std", "bias_std", "gamma_std"):
            if not getattr(self, name) >= 0:
                raise InputError(f"The recipe of images has {name} {getattr(self, name)}; give 0 or more.")
        if not self.blur_std > 0:
            raise InputError(f"The recipe of images has blur_std {self.blur_std}; give a number above 0.")
        if not 0 <= self.black_background <= 1:
            raise InputError(f"black_background is {self.black_background}; give a probability from 0 to 1.")
        for name in ("warp_scales", "bias_scales"):
            check_scales(name, getattr(self, name))

    def draw(self, generators: Sequence[torch.Generator], size: Sequence[int], labels: int) -> ImageDraws:
        """What is random in a batch of images, of each item from a generator of its own, where this lies.

        Args:
            generators: one per item.
            size: voxels per axis.
            labels: number of labels, background included.
        """
        items = [self._draw_item(generator, size, labels) for generator in generators]
        return ImageDraws(
            velocity=[torch.cat(grids) for grids in zip(*(item.velocity for item in items), strict=True)],
            bias=[torch.cat(grids) for grids in zip(*(item.bias for item in items), strict=True)],
            **{
                name: torch.cat([getattr(item, name) for item in items])
                for name in ("mean", "deviation", "noise", "black", "blur", "gamma")
            },
        )

    def _draw_item(self, generator: torch.Generator, size: Sequence[int], labels: int) -> ImageDraws:
        device = generator.device

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device=device)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device)

        scales = [scale / 2 for scale in self.warp_scales]
        return ImageDraws(
            velocity=draw_grids(generator, half(size), scales, self.warp_std, len(size)),
            mean=label_values(uniform(1, labels), *_MEAN),
            deviation=label_values(uniform(1, labels), *_DEVIATION),
            noise=normal(1, 1, *size),
            black=(uniform(1) < self.black_background).float(),
            blur=_LEAST_BLUR + (self.blur_std - _LEAST_BLUR) * uniform(1, len(size)),
            bias=draw_grids(generator, size, self.bias_scales, self.bias_std, 1),
            gamma=self.gamma_std * normal(1),
        )


def label_values(uniform: Tensor, least: float, largest: float) -> Tensor:
    """Numbers (B, labels) of [0, 1) as values between bounds; the background's, the first ones, start at 0."""
    values = least + (largest - least) * uniform
    values[:, 0] = largest * uniform[:, 0]
    return values


def check_scales(name: str, scales: Sequence[float]) -> None:
    """Refuse distances that no noise can have."""
    if len(scales) == 0 or not all(scale > 0 for scale in scales):
        raise InputError(f"{name} is {list(scales)}; give one or more distances above 0 voxels.")
