# SPDX-License-Identifier: Apache-2.0
"""NePhi's field: a network of sines from a point, and the code there, to a displacement, with its derivative beside it.

Source: Tian et al., "NePhi", ECCV 2024 (arXiv 2309.07322); where the text is silent this follows the published numbers.
Coordinates in this module are in [-1, 1] along each axis of the image, component k along array axis k.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.autograd import first_order
from common.blocks.hybrid_code import HybridCode
from common.spatial import sample_at
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
        local = sample_at(code.local, places).mT
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
        angles = 2 * math.pi * (points @ self.frequencies)
        features = torch.cat([angles.sin(), angles.cos()], dim=-1)
        on_shared, on_local, on_features = self._first_weight()
        shared = OMEGA * F.linear(code.shared, on_shared, self.modulation.first.bias)[:, None]
        local = F.linear(_local_jet(points, code.local), OMEGA * on_local)
        # In place, where the result is as large: such sums are what this waits for.
        first = _SineOfJet.apply(local.add_(self._jet(features, OMEGA * on_features)), shared, None, None)
        start = self.synthesis.first
        gate, value = first, _SineOfJet.apply(self._jet(features, start.weight), start.bias, None, None)
        for inner, outer in self._hidden():
            gate = _SineOfJet.apply(F.linear(gate, OMEGA * inner.weight), OMEGA * inner.bias, None, first)
            jet = F.linear(value, OMEGA * outer.weight).expand_as(gate)
            value = _SineOfJet.apply(jet, OMEGA * outer.bias, gate, None)
        displacement = F.linear(value, self.head.weight)
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

    def _jet(self, features: Tensor, weight: Tensor) -> Tensor:
        """``weight`` times the features of (B, N) points and times their derivative along each axis.

        The derivative of sines and cosines consists of them again, so that all is one product with a larger matrix.

        Returns:
            (1 + d, B, N, C), the value and its derivatives.
        """
        on_sine, on_cosine = weight.chunk(2, dim=1)
        rates = 2 * math.pi * torch.cat([self.frequencies, self.frequencies], dim=1)
        turned = torch.cat([-on_cosine, on_sine], dim=1) * rates[:, None]
        jet = F.linear(features, torch.cat([weight[None], turned]).flatten(0, 1))
        return jet.unflatten(-1, (1 + len(rates), len(weight))).movedim(-2, 0)


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
    # Not one tensor of all: when a network is exported, sizes are tensors, which have to stay in its graph.
    return torch.stack([torch.as_tensor((n - 1) / 2, device=like.device, dtype=like.dtype) for n in size])


def _local_jet(points: Tensor, local: Tensor) -> Tensor:
    """The local code (B, l, *grid) at points and its derivatives along the axes, (1 + d, B, N, l)."""
    grid = local.shape[2:]
    value, slopes = sample_with_derivative(local, _in_voxels(points, grid).expand(len(local), -1, -1))
    return torch.cat([value[..., None], slopes * half_extent(grid, points)], dim=-1).permute(3, 0, 2, 1)


def _sum_of_products(a: Tensor, b: Tensor) -> Tensor:
    """Over the first axis."""
    total = a[0] * b[0]
    for x, y in zip(a[1:], b[1:], strict=True):
        total.addcmul_(x, y)
    return total


class _SineOfJet(torch.autograd.Function):
    """The sine of a value and its derivatives, times a gate or plus a term that have derivatives, too."""

    @staticmethod
    def forward(ctx: Any, jet: Tensor, bias: Tensor, gate: Tensor | None, term: Tensor | None) -> Tensor:
        """(1 + d, B, N, C), the value first; bias, to be added to it, broadcasts; gate and term as the jet, or None."""
        angle = jet[0] + bias
        sine, cosine = angle.sin(), angle.cos()
        out = torch.empty_like(jet, memory_format=torch.contiguous_format)
        if gate is None:
            out[0] = sine
            torch.mul(jet[1:], cosine, out=out[1:])
        else:
            torch.mul(gate, sine, out=out)
            out[1:].addcmul_(jet[1:], cosine * gate[0])
        if term is not None:
            out.add_(term)
        ctx.save_for_backward(jet, sine, cosine, gate)
        ctx.bias, ctx.term = bias.shape, term is not None
        return out

    @staticmethod
    @first_order("The derivative of a field", "its map, and torch.autograd for the derivative")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        jet, sine, cosine, gate = ctx.saved_tensors
        on_value, factor, on_gate = grad[0], cosine, None
        along = _sum_of_products(grad[1:], jet[1:])
        if gate is not None:
            on_gate = grad * sine
            on_gate[0].addcmul_(cosine, along)
            on_value = _sum_of_products(grad, gate)
            along, factor = along * gate[0], cosine * gate[0]
        on_jet = torch.empty_like(jet)
        torch.mul(grad[1:], factor, out=on_jet[1:])
        torch.mul(on_value, cosine, out=on_jet[0]).addcmul_(along, sine, value=-1)
        return on_jet, on_jet[0].sum_to_size(ctx.bias), on_gate, grad if ctx.term else None
