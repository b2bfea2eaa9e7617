# SPDX-License-Identifier: Apache-2.0
"""Two networks, one after the other: a frozen one brings the images near each other, the other one registers them.

So NePhi has several resolutions: L. Tian et al., "NePhi", ECCV 2024, arXiv 2309.07322, show GradICON on coarse images
before it. The repository uncbiag/NePhi lacks this model; the design here is our own.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.checks import InputError
from common.networks.contract import Details, check_numbers, check_pair, names_field, wants
from common.spatial import ComposedMap, chain_ddf, chain_map, identity_grid, warp
from common.spatial.maps import PointMap

_INVERSES = ("inverse_ddf", "inverse_map")
_OF_SECOND = ("pyramid", "inverse_pyramid", "deviation")
"""Of these nothing follows for both networks: the first one's field, which is known as a whole, stretches them."""


class PreAligned(nn.Module):
    """A network that sees the moving image as another one, which is not trained, has warped it.

    With ``pre`` and ``pre_back`` the ways of the first network, and ``own`` and ``own_back`` those of the second, the
    map is ``x -> pre(own(x))`` and the way back ``x -> own_back(pre_back(x))``: losses and results sample the moving
    image itself, once. Fields of the first network are continued by their border.

    Its weights are part of the state, as those of any network, but have no gradient, and it stays in evaluation.

    Args:
        first: a network of the contract. Where it has no way back, that of the exchanged images counts.
        second: another one. With maps of its own, such as NePhi's, the whole has maps and a way back; without, it has
            its displacement alone.
        halvings: how often the images are halved, by means of 2 ** d voxels, before the first network sees them.

    Raises:
        InputError: for networks of two and of three dimensions, or halvings that are no whole number from 0 on.
    """

    levels = 1

    def __init__(self, first: nn.Module, second: nn.Module, halvings: int = 0) -> None:
        super().__init__()
        networks: dict[str, Any] = {"first": first, "second": second}
        dims = {name: network.spatial_dims for name, network in networks.items()}
        if len({*dims.values()}) > 1:
            raise InputError(f"One network is {dims['first']}D and the other {dims['second']}D: give both the same.")
        check_numbers(0, halvings=halvings)
        described = {name: {"class": type(part).__name__, **part.arguments} for name, part in networks.items()}
        self.arguments: dict[str, Any] = {**described, "halvings": halvings}
        self.spatial_dims, self.halvings = dims["second"], halvings
        self.first: Any = first.requires_grad_(False).eval()
        self.second: Any = second

    def train(self, mode: bool = True) -> PreAligned:
        """As any module's; the first network stays in evaluation."""
        super().train(mode)
        self.first.eval()
        return self

    @overload
    def forward(self, image: Tensor, details: Literal[False] = False) -> Tensor: ...

    @overload
    def forward(self, image: Tensor, details: Literal[True] | Collection[str]) -> dict[str, Any]: ...

    def forward(self, image: Tensor, details: Details = False) -> Tensor | dict[str, Any]:
        """Register a pair.

        Args:
            image: (B, 2, *spatial), channel 0 moving, channel 1 fixed, any spatial size that both networks take.
                Intensities as in the training of both.
            details: further outputs that are wanted, by name, or True for all.

        Returns:
            The ``ddf`` (B, d, *spatial), float32 voxels; with ``details`` a dict of it and, where asked for and the
            second network has them, ``map``, ``inverse_map`` and ``inverse_ddf`` of both networks together, and what
            else, but for pyramids and ``deviation``, it says of the images that it sees.

        Raises:
            ValueError: when ``image`` has not two channels or not ``spatial_dims`` spatial axes.
        """
        check_pair(image, self.spatial_dims)
        size = image.shape[2:]
        both = wants(details, "inverse_ddf") or wants(details, "inverse_map")
        there, back = self._before(image, both)
        pair = _moved(image, there)
        if not details:
            ddf: Tensor = self.second(pair)
            return chain_ddf([there, ddf], size)
        found: dict[str, Any] = self.second(pair, details=_of_second(details, both))
        outputs = {
            name: found[name] for name in found if wants(details, name) and name not in (*_INVERSES, *_OF_SECOND)
        }
        if "ddf" in found:
            outputs["ddf"] = chain_ddf([there, found["ddf"]], size)
        if "map" in outputs:
            outputs["map"] = ComposedMap(chain_map([there], size), found["map"])
        if back is None or "inverse_map" not in found:
            return outputs
        if names_field(details, "inverse_ddf") if self.training else wants(details, "inverse_ddf"):
            outputs["inverse_ddf"] = _followed(found["inverse_map"], chain_ddf([back], size))
        if wants(details, "inverse_map"):
            outputs["inverse_map"] = ComposedMap(found["inverse_map"], chain_map([back], size))
        return outputs

    @property
    def codes(self) -> nn.Module:
        """What makes or holds the codes of pairs, where the second network has such."""
        codes: nn.Module = self.second.codes
        return codes

    def auto_decoder(self, image: Tensor) -> PreAligned:
        """A copy in training that holds what the first network says of pairs, and codes of the second as parameters.

        Args:
            image: (B, 2, *spatial), the pairs.

        Raises:
            InputError: when the second network has no codes of pairs, and as its ``auto_decoder``.
        """
        if not hasattr(self.second, "auto_decoder"):
            raise InputError(
                f"{type(self.second).__name__} has no code of a pair that could be optimised: take "
                "common.optimisation.NetworkWeights as the unknown."
            )
        there, back = self._before(image, both=True)
        assert back is not None
        return PreAligned(_Found(there, back), self.second.auto_decoder(_moved(image, there)))

    @torch.no_grad()
    def _before(self, image: Tensor, both: bool) -> tuple[Tensor, Tensor | None]:
        """Fields of the first network there and, if asked for, back, in voxels of the images that it sees."""
        pool = F.avg_pool2d if self.spatial_dims == 2 else F.avg_pool3d
        for _ in range(self.halvings):
            # A slice stays one.
            image = pool(image, [min(2, n) for n in image.shape[2:]], ceil_mode=True)
        if not both:
            return self.first(image), None
        outputs = self.first(image, details=["inverse_ddf"])
        back = outputs["inverse_ddf"] if "inverse_ddf" in outputs else self.first(image.flip(1))
        return outputs["ddf"], back


class _Found(nn.Module):
    """In the place of a network, the fields that it has found of some pairs."""

    def __init__(self, there: Tensor, back: Tensor) -> None:
        super().__init__()
        self.spatial_dims, self.arguments = there.shape[1], dict[str, Any]()
        self.fields = {"ddf": there, "inverse_ddf": back}

    def forward(self, image: Tensor, details: Details = False) -> Tensor | dict[str, Tensor]:
        return {**self.fields} if details else self.fields["ddf"]


def _of_second(details: Literal[True] | Collection[str], both: bool) -> Literal[True] | Collection[str]:
    """What the second network is asked for: the way back as a map, which no field outside of the images would know."""
    if details is True:
        return True
    return [*(name for name in details if name.removesuffix("*") != "inverse_ddf"), *["inverse_map"] * both]


def _followed(function: PointMap, ddf: Tensor) -> Tensor:
    """The displacement (B, d, *spatial) of a map after that of a field."""
    grid = identity_grid(ddf.shape[2:], ddf.device, ddf.dtype)
    return function((grid + ddf).flatten(2).mT).mT.view_as(ddf) - grid


def _moved(image: Tensor, field: Tensor) -> Tensor:
    """The pair with its moving image warped by a field of its own or a coarser grid."""
    warped = warp(image[:, :1], chain_ddf([field], image.shape[2:]))
    return torch.cat([warped.to(image.dtype), image[:, 1:]], dim=1)
