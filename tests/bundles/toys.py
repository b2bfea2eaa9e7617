# SPDX-License-Identifier: Apache-2.0
"""Four methods in a few lines each, of the kinds that the engine has to take: nothing of them is known to it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.networks.contract import Details, wants
from common.spatial import identity_grid, integrate, sample_at


class Toy(nn.Module):
    """One convolution from a pair to a velocity."""

    levels = 1

    def __init__(self, spatial_dims: int = 3, channels: int = 3) -> None:
        super().__init__()
        self.arguments = {"spatial_dims": spatial_dims}
        self.conv = nn.Conv3d(2, channels, 3, padding=1)


class Inverse(Toy):
    """Works in both directions: the inverse is the integral of the negative velocity. With a map for the panel."""

    def forward(self, image: Tensor, details: Details = False) -> Tensor | dict[str, Any]:
        velocity = 0.2 * F.avg_pool3d(self.conv(image).float(), 5, stride=1, padding=2)
        ddf = integrate(velocity, 4)
        if not details:
            return ddf
        outputs = {
            "velocity": velocity,
            "inverse_ddf": integrate(-velocity, 4),
            "speed_map": velocity.norm(dim=1)[:, None],
        }
        return {"ddf": ddf, **{name: value for name, value in outputs.items() if wants(details, name)}}


class PointMap(Toy):
    """A function of points: a global shift per pair and a bump; the dense field is the map of all voxels."""

    def forward(self, image: Tensor, details: Details = False) -> Tensor | dict[str, Any]:
        shift = self.conv(image).float().mean(dim=(2, 3, 4))[:, None]

        def there(points: Tensor) -> Tensor:
            return points + shift * (1 + 0.1 * torch.sin(points))

        grid = identity_grid(image.shape[2:], device=image.device).expand(len(image), -1, -1, -1, -1)
        points = grid.flatten(2).movedim(1, 2)
        ddf = (there(points) - points).movedim(1, 2).view(grid.shape)
        outputs = {"map": there, "inverse_map": lambda points: points - shift}
        asked = {name: value for name, value in outputs.items() if wants(details, name)}
        return {"ddf": ddf, **asked} if details else ddf


class Probabilistic(Toy):
    """Mean and logarithm of the standard deviation of a velocity."""

    def __init__(self, spatial_dims: int = 3) -> None:
        super().__init__(spatial_dims, 6)

    def forward(self, image: Tensor, details: Details = False) -> Tensor | dict[str, Any]:
        mean, log_sigma = self.conv(image).float().chunk(2, dim=1)
        velocity = mean + log_sigma.exp() * 1e-3 * torch.ones_like(mean) if self.training else mean
        ddf = integrate(velocity, 4)
        outputs = {"velocity": mean, "log_sigma": log_sigma}
        return {"ddf": ddf, **{n: v for n, v in outputs.items() if wants(details, n)}} if details else ddf


class SampledSimilarity(nn.Module):
    """Mean squared difference at random points, which are a function of the draw."""

    def forward(self, there: Any, moving: Tensor, fixed: Tensor, draw: Tensor) -> Tensor:
        """A scalar."""
        generator = torch.Generator().manual_seed(int(draw.sum()))
        size = torch.tensor(fixed.shape[2:]) - 1.0
        points = torch.rand(len(fixed), 50, fixed.ndim - 2, generator=generator).to(fixed.device) * size.to(
            fixed.device
        )
        return (sample_at(moving, there(points)) - sample_at(fixed, points)).square().mean()


class KullbackLeibler(nn.Module):
    """Distance of the velocity's distribution from the standard normal one."""

    def forward(self, velocity: Tensor, log_sigma: Tensor) -> Tensor:
        """A scalar."""
        return 0.5 * ((2 * log_sigma).exp() + velocity.square() - 1 - 2 * log_sigma).mean()


def paint(batch: dict[str, Any]) -> dict[str, Tensor]:
    """An image of random contrast of each label map."""
    images = {}
    for number, side in enumerate(("moving", "fixed")):
        painted = []
        for label, draw in zip(batch[f"{side}_label"], batch["draw"].tolist(), strict=True):
            generator = torch.Generator().manual_seed(hash((*draw, number)) % 2**32)
            painted.append(torch.rand(16, generator=generator).to(label.device)[label.long()])
        images[side] = torch.stack(painted)
    return images
