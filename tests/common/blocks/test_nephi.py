# SPDX-License-Identifier: Apache-2.0
"""NePhi's field: its definition, its derivative, where training begins."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from common.blocks.hybrid_code import HybridCode
from common.blocks.nephi import ModulatedField
from common.checks import InputError
from common.spatial import sample_at


def code(dims: int, batch: int = 2) -> HybridCode:
    generator = torch.Generator().manual_seed(dims)
    shared = torch.randn(batch, 3, generator=generator, dtype=torch.float64)
    local = torch.randn(batch, 2, *(4, 3, 5)[:dims], generator=generator, dtype=torch.float64)
    return HybridCode(shared.requires_grad_(), local.requires_grad_())


def points(dims: int, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    return torch.rand(batch, 12, dims, generator=generator, dtype=torch.float64) * 2.4 - 1.2


def field(dims: int, layers: int = 2) -> ModulatedField:
    torch.manual_seed(0)
    made = ModulatedField(dims, (3, 2), 8, layers, 4).double()
    made.frequencies *= 0.3
    torch.nn.init.normal_(made.head.weight)
    torch.nn.init.normal_(made.head.bias)
    return made


def textbook(made: ModulatedField, where: Tensor, codes: HybridCode) -> Tensor:
    """The published definition, term by term."""
    batch, grid = len(codes.shared), torch.tensor(codes.local.shape[2:])
    where = where.expand(batch, -1, -1)
    local = sample_at(codes.local, (where + 1) / 2 * (grid - 1)).mT
    latent = torch.cat([codes.shared[:, None].expand(-1, where.shape[1], -1), local], 2)
    angles = where @ made.frequencies * (2 * math.pi)
    e = torch.cat([torch.sin(angles), torch.cos(angles)], 2)
    m0 = torch.sin(30 * made.modulation.first(torch.cat([latent, e], 2)))
    m, a = m0, torch.sin(made.synthesis.first(e))
    for inner, outer in zip(made.modulation.hidden, made.synthesis.hidden, strict=True):
        m = torch.sin(30 * inner(m)) + m0
        a = m * torch.sin(30 * outer(a))
    result: Tensor = made.head(a)
    return result


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("layers", [1, 3])
def test_field_is_that_of_the_definition(dims: int, layers: int) -> None:
    made, codes = field(dims, layers), code(dims)
    torch.testing.assert_close(made(points(dims), codes), textbook(made, points(dims), codes))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("batch", "layers"), [(1, 1), (1, 2), (2, 3)])
def test_derivative_and_its_gradients_are_those_of_autograd(dims: int, batch: int, layers: int) -> None:
    made, codes = field(dims, layers), code(dims)
    where = points(dims, batch).requires_grad_()
    place = where.expand(2, -1, -1)
    expected = textbook(made, place, codes)
    rows = [torch.autograd.grad(expected[..., i].sum(), place, create_graph=True)[0] for i in range(dims)]
    displacement, derivative = made.with_derivative(where, codes)
    torch.testing.assert_close(displacement, expected)
    torch.testing.assert_close(derivative, torch.stack(rows, -2))
    weight = torch.randn(derivative.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inputs = [*made.parameters(), *codes, where]
    there, here = (
        torch.autograd.grad((slope * weight).sum() + value.square().sum(), inputs)
        for value, slope in ((expected, torch.stack(rows, -2)), (displacement, derivative))
    )
    for one, other in zip(here, there, strict=True):
        torch.testing.assert_close(one, other)


def test_single_precision_is_near_double() -> None:
    made, codes = field(3), code(3)
    exact = made.with_derivative(points(3), codes)
    single = made.float().with_derivative(points(3).float(), HybridCode(*(part.float() for part in codes)))
    for one, other in zip(single, exact, strict=True):
        assert (one - other).norm() < 1e-5 * other.norm()


def test_derivative_refuses_to_be_differentiated_twice() -> None:
    made, codes = field(2), code(2)
    _, derivative = made.with_derivative(points(2), codes)
    with pytest.raises(InputError, match="use its map, and torch.autograd for the derivative"):
        torch.autograd.grad(derivative.sum(), [*made.parameters()], create_graph=True)


def test_training_begins_at_the_identity_and_frequencies_are_saved_but_not_trained() -> None:
    torch.manual_seed(0)
    made = ModulatedField(3, (32, 32), 128, 2, 128)
    codes = HybridCode(torch.randn(1, 32), torch.randn(1, 32, 3, 3, 3))
    assert not made(torch.rand(1, 5, 3), codes).any()
    assert "frequencies" in made.state_dict() and "frequencies" not in dict(made.named_parameters())
    assert sum(p.numel() for p in made.parameters()) == 140_803 - 384
    assert 0.9 < made.frequencies.std() < 1.1
    for layer, bound in ((made.modulation.first, 1 / 320), (made.synthesis.first, 1 / 256)):
        assert 0.99 * bound < layer.weight.abs().max() <= bound
    for layers in (made.modulation, made.synthesis):
        largest = max(parameter.abs().max().item() for parameter in layers.hidden.parameters() if parameter.ndim == 2)
        assert 0.99 < largest / (math.sqrt(6 / 128) / 30) <= 1
