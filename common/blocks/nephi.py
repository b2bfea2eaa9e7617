# SPDX-License-Identifier: Apache-2.0
"""NePhi's field: a network of sines from a point, and the code there, to a displacement, with its derivative beside it.

Source: Tian et al., "NePhi", ECCV 2024 (arXiv 2309.07322); where the text is silent this follows the published numbers.
Coordinates in this module are in [-1, 1] along each axis of the image, component k along array axis k.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.blocks.field_jet import FeaturesJet, FieldJet
from common.blocks.hybrid_code import HybridCode
from common.spatial import sample_at
from common.spatial.coordinates import of_axes
from common.spatial.points import sample_with_derivative

OMEGA = 30.0
"""Frequency of all sines but the first of the synthesis, whose is 1 (Sitzmann et al., SIREN, NeurIPS 2020)."""


class ModulatedField(nn.Module):
    """A displacement as a function of a point and the code at it.

    Random Fourier features of the point go through a network of sines, the synthesis, whose hidden layers are
    multiplied by those of a second one, the modulation, which sees the code, too.

    Args:
        spatial_dims: 2 or 3.
        code: channels of the code, those that all points share and those that are interpolated.
        hidden: channels of all layers.
        layers: of either network after its first.
        frequencies: of the features; drawn once, not trained, part of the state dict.
    """

    frequencies: Tensor

    def __init__(self, spatial_dims: int, code: tuple[int, int], hidden: int, layers: int, frequencies: int) -> None:
        super().__init__()
        self.code = code
        self.register_buffer("frequencies", torch.randn(spatial_dims, frequencies))
        features = 2 * frequencies
        self.modulation = _Layers(sum(code) + features, hidden, layers)
        self.synthesis = _Layers(features, hidden, layers)
        self.head = nn.Linear(hidden, spatial_dims)
        # Training begins at the identity.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor], code: HybridCode) -> ModulatedField:
        """The field that has these weights, which say all of its sizes but those of the code.

        Args:
            state: its state dict, whose tensors it takes as they are.
            code: that it is going to see.

        Raises:
            KeyError, ValueError, RuntimeError: when an entry is missing, is none of it or has another shape.
        """
        dims, frequencies = state["frequencies"].shape
        layers = sum(name.startswith("synthesis.hidden.") and name.endswith(".weight") for name in state)
        with torch.device("meta"):
            channels = code.shared.shape[1], code.local.shape[1]
            field = cls(dims, channels, state["head.weight"].shape[1], layers, frequencies)
        field.load_state_dict(state, assign=True)
        return field

    def forward(self, points: Tensor, code: HybridCode) -> Tensor:
        """The displacement, differentiable any number of times.

        Args:
            points: (B, N, d), or (1, N, d) for the same of each pair.
            code: of B pairs.

        Returns:
            (B, N, d), in the units of the points.
        """
        angles = 2 * math.pi * (points @ self.frequencies)
        features = torch.cat([angles.sin(), angles.cos()], dim=-1)
        grid = code.local.shape[2:]
        places = _in_voxels(points, grid).expand(len(code.local), -1, -1)
        local = sample_at(code.local, places).transpose(-1, -2)
        on_shared, on_local, on_features = self._first_weight()
        shared = OMEGA * F.linear(code.shared, on_shared, self.modulation.first.bias)[:, None]
        first = (F.linear(features, OMEGA * on_features) + F.linear(local, OMEGA * on_local) + shared).sin()
        gate, value = first, self.synthesis.first(features).sin()
        for inner, outer in self._hidden():
            gate = _sine(gate, inner) + first
            value = gate * _sine(value, outer)
        displacement: Tensor = self.head(value)
        return displacement

    def with_derivative(self, points: Tensor, code: HybridCode) -> tuple[Tensor, Tensor]:
        """The displacement and its derivative, which can be differentiated once.

        The derivatives along all axes go through the network with the value: a layer is one product of matrices for
        all of them, and the backward pass is that of a network 1 + d times as large.

        Args:
            points: (B, N, d), or (1, N, d) for the same of each pair.
            code: of B pairs.

        Returns:
            (B, N, d), and (B, N, d, d): the derivative of component i along axis j at [..., i, j].
        """
        features = FeaturesJet.apply(points, self.frequencies)
        on_shared, on_local, on_features = self._first_weight()
        shared = OMEGA * F.linear(code.shared, on_shared, self.modulation.first.bias)[:, None]
        start = self.synthesis.first
        weights = [OMEGA * on_features, OMEGA * on_local, start.weight, start.bias]
        weights += [OMEGA * part for pair in self._hidden() for layer in pair for part in (layer.weight, layer.bias)]
        local = _local_jet(points, code.local)
        displacement = FieldJet.apply(features, local, shared, self.head.weight, *weights)
        return displacement[0] + self.head.bias, displacement[1:].movedim(0, -1)

    def _first_weight(self) -> Sequence[Tensor]:
        """What of the modulation's first layer is for the shared code, for the local code and for the features."""
        return self.modulation.first.weight.split([*self.code, 2 * self.frequencies.shape[1]], dim=1)

    def _hidden(self) -> Iterator[tuple[nn.Linear, nn.Linear]]:
        """The other layers of modulation and synthesis."""
        for pair in zip(self.modulation.hidden, self.synthesis.hidden, strict=True):
            inner, outer = pair
            assert isinstance(inner, nn.Linear) and isinstance(outer, nn.Linear)
            yield inner, outer


class _Layers(nn.Module):
    """The first layer and the ``layers`` after it, initialised as SIREN's; biases as torch does."""

    def __init__(self, inputs: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.hidden = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        nn.init.uniform_(self.first.weight, -1 / inputs, 1 / inputs)
        bound = math.sqrt(6 / hidden) / OMEGA
        for layer in self.hidden:
            assert isinstance(layer, nn.Linear)
            nn.init.uniform_(layer.weight, -bound, bound)


def _sine(x: Tensor, layer: nn.Linear) -> Tensor:
    # The matrix is smaller than what comes out.
    return F.linear(x, OMEGA * layer.weight, OMEGA * layer.bias).sin()


def _in_voxels(points: Tensor, size: Sequence[int]) -> Tensor:
    return (points + 1) * half_extent(size, points)


def half_extent(size: Sequence[int], like: Tensor) -> Tensor:
    """Voxels that one unit of the coordinates has along each axis, (d,), of the device and type of another tensor."""
    return of_axes([(n - 1) / 2 for n in size], like)


def _local_jet(points: Tensor, local: Tensor) -> Tensor:
    """The local code (B, l, *grid) at points and its derivatives along the axes, (1 + d, B, N, l)."""
    grid = local.shape[2:]
    jet = sample_with_derivative(local, _in_voxels(points, grid).expand(len(local), -1, -1))
    scale = F.pad(half_extent(grid, points), [1, 0], value=1.0)
    return jet * scale[:, None, None, None]
