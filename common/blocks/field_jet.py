# SPDX-License-Identifier: Apache-2.0
"""NePhi's field with its derivative, and the backward pass of both in closed form.

A *jet* is what a function is at points and its derivative along each axis there, (1 + d, B, N, C), the value first. A
linear layer takes all of it in one product of matrices; a sine multiplies the derivatives by its cosine. What lies
between the products takes as long as they, so that the backward pass writes it in as few goes as it can.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from common.autograd import first_order

_refuses_a_second_time = first_order("The derivative of a field", "its map, and torch.autograd for the derivative")


class FeaturesJet(torch.autograd.Function):
    """The jet of the sines and cosines of points times frequencies."""

    @staticmethod
    def forward(ctx: Any, points: Tensor, frequencies: Tensor) -> Tensor:
        """(B, N, d) and (d, F) to (1 + d, B, N, 2 F); frequencies are not trained."""
        rates = 2 * math.pi * frequencies
        angles, count = points @ rates, rates.shape[1]
        jet = angles.new_empty(1 + len(rates), *angles.shape[:-1], 2 * count)
        sine, cosine = jet[0].chunk(2, dim=-1)
        torch.sin(angles, out=sine)
        torch.cos(angles, out=cosine)
        for along, rate in zip(jet[1:], rates, strict=True):
            torch.mul(cosine, rate, out=along[..., :count])
            torch.mul(sine, -rate, out=along[..., count:])
        ctx.save_for_backward(jet, rates)
        return jet

    @staticmethod
    @_refuses_a_second_time
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The gradient at the points."""
        jet, rates = ctx.saved_tensors
        sine, cosine = jet[0].chunk(2, dim=-1)
        on_sine, on_cosine = grad[0].chunk(2, dim=-1)
        for along, rate in zip(grad[1:], rates, strict=True):
            along_sine, along_cosine = along.chunk(2, dim=-1)
            on_sine = torch.addcmul(on_sine, along_cosine, rate, value=-1)
            on_cosine = torch.addcmul(on_cosine, along_sine, rate)
        return (cosine * on_sine).addcmul_(sine, on_cosine, value=-1) @ rates.T, None


class FieldJet(torch.autograd.Function):
    """The jet of a field of modulated sines but for the last bias, given those of the features and of the local code.

    *Inner* are the layers of the modulation, *outer* those of the synthesis. The sine of the first inner layer is the
    first gate, that of the first outer layer the first value; from each pair of layers after them, one at least, come
    ``gate = sin(inner(gate)) + first gate`` and then ``value = gate * sin(outer(value))``.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, local: Tensor, shared: Tensor, head: Tensor, *weights: Tensor) -> Tensor:
        """Jets (1 + d, 1 or B, N, F) and (1 + d, B, N, l) to (1 + d, B, N, d).

        ``shared`` (B, 1, H) is what the first inner layer makes of the shared code, with its bias. ``weights`` are that
        layer's for the features and for the local code, weight and bias of the first outer layer, then those of the
        inner and of the outer one of each further pair, all with their frequency.
        """
        on_features, on_local, start, start_bias, *hidden = weights
        inner = F.linear(local, on_local).add_(F.linear(features, on_features))
        steps = [_Step.first(inner, shared, F.linear(features, start), start_bias)]
        for weight, bias, outer_weight, outer_bias in _in_fours(hidden):
            inner, outer = F.linear(steps[-1].gate, weight), F.linear(steps[-1].value, outer_weight)
            steps.append(_Step.next(inner, bias, outer, outer_bias, steps[0].gate))
        ctx.save_for_backward(features, local, head, *weights, *(part for step in steps for part in step))
        ctx.weights, ctx.shared = len(weights), shared.shape
        return F.linear(steps[-1].value, head)

    @staticmethod
    @_refuses_a_second_time
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients at all that went in; that at the features where it is wanted."""
        features, local, head, *saved = ctx.saved_tensors
        (on_features, on_local, start, _, *hidden), saved = saved[: ctx.weights], saved[ctx.weights :]
        first, *steps = (_Step(*saved[i : i + _SAVED]) for i in range(0, len(saved), _SAVED))
        on_value, on_head = grad @ head, _on_weight(grad, steps[-1].value)
        on_first = above = None
        found: list[Tensor] = []
        for step, before, layers in list(zip(steps, [first, *steps[:-1]], _in_fours(hidden), strict=True))[::-1]:
            on_gate, on_outer = _before_product(on_value, step)
            if above is not None:
                _add_product(on_gate, *above)
            on_inner, on_outer = _before_sine(on_gate, *step[:3]), on_outer.sum_to_size(step.outer.shape)
            on_first = on_gate if on_first is None else on_first.add_(on_gate)
            of_inner, of_outer = _of_layer(on_inner, before.gate), _of_layer(on_outer, before.value)
            found = [*of_inner, *of_outer, *found]
            on_value, above = on_outer @ layers[2], (on_inner, layers[0])
        assert on_first is not None and above is not None
        on_inner = _before_sine(_add_product(on_first, *above), *first[:3])
        on_outer, on_all = _before_sine(on_value, *first[3:6]), on_inner.sum_to_size(first.outer.shape)
        on_jet = _add_product(on_outer @ start, on_all, on_features) if ctx.needs_input_grad[0] else None
        return (
            *(on_jet, on_inner @ on_local, on_inner[0].sum_to_size(ctx.shared), on_head),
            *(_on_weight(on_all, features), _on_weight(on_inner, local), *_of_layer(on_outer, features), *found),
        )


class _Step(NamedTuple):
    """What a pair of layers makes: jets, with sine and cosine of their value, and the gate and value of these."""

    inner: Tensor
    inner_sine: Tensor
    inner_cosine: Tensor
    outer: Tensor
    outer_sine: Tensor
    outer_cosine: Tensor
    gate: Tensor
    value: Tensor

    @classmethod
    def first(cls, inner: Tensor, bias: Tensor, outer: Tensor, outer_bias: Tensor) -> _Step:
        """That of the first pair."""
        of_inner, of_outer = _sine_and_cosine(inner, bias), _sine_and_cosine(outer, outer_bias)
        return cls(inner, *of_inner, outer, *of_outer, _after_sine(inner, *of_inner), _after_sine(outer, *of_outer))

    @classmethod
    def next(cls, inner: Tensor, bias: Tensor, outer: Tensor, outer_bias: Tensor, first: Tensor) -> _Step:
        """That of a further pair, given the first gate."""
        of_inner, of_outer = _sine_and_cosine(inner, bias), _sine_and_cosine(outer, outer_bias)
        gate = torch.empty_like(first)
        torch.add(first[0], of_inner[0], out=gate[0])
        torch.addcmul(first[1:], inner[1:], of_inner[1], out=gate[1:])
        value = gate * of_outer[0]
        value[1:].addcmul_(outer[1:], of_outer[1] * gate[0])
        return cls(inner, *of_inner, outer, *of_outer, gate, value)


_SAVED = len(_Step._fields)


def _before_product(grad: Tensor, step: _Step) -> tuple[Tensor, Tensor]:
    """Gradients at the gate and at the outer jet of that at their value, which the second one overwrites."""
    along, on_sine = _sum_of_products(grad[1:], step.outer[1:]), _sum_of_products(grad, step.gate)
    on_gate = grad * step.outer_sine
    on_gate[0].addcmul_(step.outer_cosine, along)
    grad[1:].mul_(step.outer_cosine * step.gate[0])
    torch.mul(on_sine, step.outer_cosine, out=grad[0])
    grad[0].addcmul_(along.mul_(step.gate[0]), step.outer_sine, value=-1)
    return on_gate, grad


def _in_fours(tensors: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    return [tensors[i : i + 4] for i in range(0, len(tensors), 4)]


def _add_product(to: Tensor, jet: Tensor, weight: Tensor) -> Tensor:
    to.flatten(0, 2).addmm_(jet.flatten(0, 2), weight)
    return to


def _sine_and_cosine(jet: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    angle = jet[0] + bias
    return angle.sin(), angle.cos_()


def _after_sine(jet: Tensor, sine: Tensor, cosine: Tensor) -> Tensor:
    out = torch.empty_like(jet)
    out[0] = sine
    torch.mul(jet[1:], cosine, out=out[1:])
    return out


def _before_sine(grad: Tensor, jet: Tensor, sine: Tensor, cosine: Tensor) -> Tensor:
    """The gradient at a jet of that at its sine."""
    on_jet = torch.empty_like(jet)
    torch.mul(grad[1:], cosine, out=on_jet[1:])
    torch.mul(grad[0], cosine, out=on_jet[0])
    on_jet[0].addcmul_(_sum_of_products(grad[1:], jet[1:]), sine, value=-1)
    return on_jet


def _of_layer(grad: Tensor, jet: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of weight and bias of a layer, of that at its jet."""
    return _on_weight(grad, jet), grad[0].sum((0, 1))


def _on_weight(grad: Tensor, jet: Tensor) -> Tensor:
    return grad.flatten(0, -2).T @ jet.flatten(0, -2)


def _sum_of_products(a: Tensor, b: Tensor) -> Tensor:
    """Over the first axis."""
    total = a[0] * b[0]
    for x, y in zip(a[1:], b[1:], strict=True):
        total.addcmul_(x, y)
    return total
