# SPDX-License-Identifier: Apache-2.0
"""Attention among neighbours, against loops over voxels and offsets."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.blocks import vector_field_attention
from common.blocks.vector_field_attention import VectorFieldAttention, expected_offset, unit_offsets
from common.checks import InputError

SIZES = {2: (4, 3), 3: (3, 4, 2)}


def inputs(dims: int, channels: int = 3, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(dims)
    shapes = [(batch, channels, *SIZES[dims]), (batch, channels, *(n + 2 for n in SIZES[dims]))]
    query, key = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return query.requires_grad_(), key.requires_grad_()


def voxel_by_voxel(query: Tensor, key: Tensor, temperature: float) -> np.ndarray:
    q, k = (x.detach().movedim(1, -1).numpy() for x in (query, key))
    dims = q.ndim - 2
    offsets = list(itertools.product((-1, 0, 1), repeat=dims))
    result = np.zeros((*q.shape[:-1], dims))
    for place in np.ndindex(q.shape[:-1]):
        b, *p = place
        neighbours = [k[tuple([b, *(i + 1 + o for i, o in zip(p, offset, strict=True))])] for offset in offsets]
        scores = np.exp([q[place] @ neighbour / temperature for neighbour in neighbours])
        result[place] = scores @ np.array(offsets) / scores.sum()
    return np.moveaxis(result, -1, 1)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("temperature", [None, 0.5])
@pytest.mark.parametrize("piece", [7, 2**13])
def test_every_voxel_weighs_its_neighbours(
    dims: int, temperature: float | None, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_field_attention, "_CPU_PIECE", piece)
    query, key = inputs(dims)
    expected = voxel_by_voxel(query, key, math.sqrt(3) if temperature is None else temperature)
    torch.testing.assert_close(expected_offset(query, key, temperature).detach(), torch.from_numpy(expected))


@pytest.mark.parametrize("dims", [2, 3])
def test_gradients_are_exact(dims: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_field_attention, "_CPU_PIECE", 7)
    assert torch.autograd.gradcheck(expected_offset, inputs(dims))


@pytest.mark.parametrize("dims", [2, 3])
def test_key_that_fits_one_neighbour_alone_gives_its_offset(dims: int) -> None:
    for number, offset in enumerate(itertools.product((-1, 0, 1), repeat=dims)):
        query, key = torch.ones(1, 1, *[1] * dims), torch.zeros(1, 1, *[3] * dims)
        key.flatten()[sum((o + 1) * 3**axis for axis, o in enumerate(reversed(offset)))] = 100
        assert expected_offset(query, key).flatten().tolist() == pytest.approx(offset)
        assert unit_offsets(dims, query)[number].tolist() == list(offset)


def test_what_lies_in_memory_in_which_order_makes_no_difference() -> None:
    query, key = inputs(3)
    last = [x.detach().contiguous(memory_format=torch.channels_last_3d).requires_grad_() for x in (query, key)]
    first, other = expected_offset(query, key), expected_offset(last[0], last[1])
    torch.testing.assert_close(first, other)
    first.square().sum().backward()
    other.square().sum().backward()
    torch.testing.assert_close([query.grad, key.grad], [x.grad for x in last])


def test_logits_of_any_size_do_not_overflow() -> None:
    query, key = (1e4 * x.detach().float() for x in inputs(3))
    assert expected_offset(query, key).abs().max() <= 1


def test_half_precision_is_computed_in_float32() -> None:
    query, key = (x.detach().bfloat16().requires_grad_() for x in inputs(3))
    found = expected_offset(query, key)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected_offset(query.float(), key.float()), rtol=0, atol=0)
    found.sum().backward()
    assert query.grad is not None and query.grad.dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("dims", [2, 3])
def test_traced_form_is_the_same(dims: int) -> None:
    query, key = (x.detach().float() for x in inputs(dims))
    traced = torch.jit.trace(expected_offset, (query, key))
    torch.testing.assert_close(traced(query, key), expected_offset(query, key))


@pytest.mark.parametrize("dims", [2, 3])
def test_block_projects_both_images_alike(dims: int) -> None:
    torch.manual_seed(0)
    block = VectorFieldAttention(dims, 3, 5)
    fixed, moving = torch.randn(2, 2, 3, *[4] * dims).requires_grad_()
    around = F.pad(moving, [1] * 2 * dims, mode="replicate")
    expected = expected_offset(block.project(fixed), block.project(around))
    found = block(fixed, moving)
    torch.testing.assert_close(found, expected)
    parameters = list(block.parameters())
    gradients = [torch.autograd.grad(x.square().sum(), parameters) for x in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_block_can_compare_directions_alone_at_another_temperature() -> None:
    block = VectorFieldAttention(2, 3, 5, cosine=True, temperature=0.1)
    fixed, moving = torch.randn(2, 1, 3, 4, 4)
    query, key = (block.project(x) for x in (fixed, F.pad(moving, [1] * 4, mode="replicate")))
    expected = expected_offset(query / query.norm(dim=1, keepdim=True), key / key.norm(dim=1, keepdim=True), 0.1)
    torch.testing.assert_close(block(fixed, moving), expected)


@pytest.mark.parametrize("shape", [(2, 3, 3, 4, 2), (2, 2, 5, 6, 4), (1, 3, 5, 6, 4), (2, 3, 5, 6)])
def test_key_of_another_size_is_refused(shape: tuple[int, ...]) -> None:
    query = torch.zeros(2, 3, 3, 4, 2)
    with pytest.raises(InputError, match="a key with one voxel more at every side"):
        expected_offset(query, torch.zeros(shape))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    with pytest.raises(InputError, match="choose a positive number"):
        expected_offset(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 4, 4), temperature)
