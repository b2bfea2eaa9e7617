# SPDX-License-Identifier: Apache-2.0
"""The displacement field itself as what is unknown of a pair, from coarse to fine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from common.checks import InputError
from common.optimisation.composed_adam import ComposedAdam
from common.optimisation.reduced import reduced_pair
from common.optimisation.unknowns import Stage
from common.spatial import invert, resize_ddf

_FEWEST_VOXELS = 8
"""An axis that has no more is not made coarser."""


class FieldOfPair(nn.Module):
    """One field, called as a network is: on the grid of the image whatever its own.

    Args:
        ddf: (B, d, *spatial), in voxels.
    """

    def __init__(self, ddf: Tensor) -> None:
        super().__init__()
        self.ddf = nn.Parameter(ddf)

    def forward(self, image: Tensor, details: Any = False) -> Any:
        """The field (B, d, *spatial) on the grid of ``image`` (B, 2, *spatial), or with ``details`` a dictionary.

        It has "ddf" and, where it is asked for by name, "inverse_ddf", the field of the inverse map: a loss that looks
        at both directions moves both.
        """
        size = image.shape[2:]
        # On its own grid the field itself, of which large volumes need no copy.
        # A view that is made without gradients would still say that it has one.
        own = self.ddf.view_as(self.ddf) if torch.is_grad_enabled() else self.ddf.detach()
        ddf = own if own.shape[2:] == size else resize_ddf(own, size)
        if not details:
            return ddf
        both = details is True or "inverse_ddf" in details
        return {"ddf": ddf, "inverse_ddf": invert(ddf)[0]} if both else {"ddf": ddf}


class Field:
    """The displacement field, which begins with that of the network.

    Level after level of the images it is composed with small smooth steps, see :class:`ComposedAdam`, whose largest
    one is the learning rate, in voxels of the level. The loss may look at "ddf", at what is warped by it, and at what
    the pair has; a network's other outputs do not exist any more.

    Args:
        levels: how many times coarser the images of each level are; axes of few voxels stay as they are.
        field_sigma: see :class:`ComposedAdam`.
        tolerance: a level ends early where ten steps win less than this part of what has been won; 0 never does.

    Raises:
        InputError: for no level or one that is below 1.
    """

    def __init__(
        self,
        levels: Sequence[int] = (4, 2, 1),
        field_sigma: float = 0.35,
        tolerance: float = 0.003,
    ) -> None:
        if not levels or any(not isinstance(level, int) or level < 1 for level in levels):
            raise InputError(f"levels is {list(levels)}; give whole numbers such as [4, 2, 1], the finest last.")
        self.levels, self.tolerance = tuple(levels), tolerance
        self.field_sigma = field_sigma

    def start(self, network: nn.Module, image: Tensor) -> FieldOfPair:
        """The field that the network finds; arguments as those of :class:`Unknown`."""
        with torch.no_grad():
            return FieldOfPair(network(image).float().clone())

    def stages(
        self, own: FieldOfPair, targets: Mapping[str, Any], steps: Sequence[int], learning_rate: float
    ) -> Iterator[Stage]:
        """One level after the other; arguments as those of :class:`Unknown`."""
        if len(steps) not in (1, len(self.levels)):
            raise InputError(
                f"io_steps is {list(steps)} for the levels {list(self.levels)}; give one number per level."
            )
        size = targets["fixed"].shape[2:]
        counts = list(steps) * (len(self.levels) // len(steps))
        for factor, count in zip(self.levels, counts, strict=True):
            coarse = [max(math.ceil(n / factor), min(n, _FEWEST_VOXELS)) for n in size]
            own.ddf = nn.Parameter(resize_ddf(own.ddf.detach(), coarse))
            optimiser = ComposedAdam([own.ddf], learning_rate, field_sigma=self.field_sigma)
            yield Stage(optimiser, reduced_pair(targets, coarse), count, self.tolerance)
        own.ddf = nn.Parameter(resize_ddf(own.ddf.detach(), size))
