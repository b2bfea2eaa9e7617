# SPDX-License-Identifier: Apache-2.0
"""Maps that a network's field makes: voxels, pieces, grids."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from common.blocks import field_map
from common.blocks.field_map import FieldMap
from common.blocks.hybrid_code import HybridCode
from common.blocks.nephi import ModulatedField
from common.spatial import identity_grid
from common.spatial.maps import map_with_derivative

SIZES = [(6, 9), (5, 6, 7), (6, 1, 7)]


def made(size: tuple[int, ...], batch: int = 2) -> FieldMap:
    torch.manual_seed(0)
    dims = len(size)
    field = ModulatedField(dims, (3, 2), 8, 2, 4).double()
    field.frequencies *= 0.3
    torch.nn.init.normal_(field.head.weight, std=0.2)
    code = torch.randn(batch, 3).double(), torch.randn(batch, 2, *[3] * dims).double()
    return FieldMap(field, HybridCode(*(part.requires_grad_() for part in code)), size)


def anywhere(size: tuple[int, ...], count: int, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    unit = torch.rand(batch, count, len(size), generator=generator, dtype=torch.float64)
    return (1.2 * unit - 0.1) * (torch.tensor(size) - 1)


@pytest.mark.parametrize("size", [(6, 9), (5, 6, 7)])
def test_displacements_are_those_of_the_field_in_voxels(size: tuple[int, ...]) -> None:
    function, points = made(size), anywhere(size, 8)
    half = (torch.tensor(size) - 1) / 2
    expected = points + half * function.field(points / half - 1, function.code)
    torch.testing.assert_close(function(points), expected)


@pytest.mark.parametrize("size", SIZES)
def test_derivative_is_that_of_the_map(size: tuple[int, ...]) -> None:
    function, points = made(size), anywhere(size, 8)
    expected = map_with_derivative(lambda x: function(x), points)
    for one, other in zip(function.with_derivative(points), expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("size", SIZES)
def test_the_grid_is_the_map_of_its_voxels_in_pieces_of_any_size(
    size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    function = made(size)
    voxels = identity_grid(size, dtype=torch.float64)
    expected = (function(voxels.flatten(2).mT) - voxels.flatten(2).mT).mT.reshape(2, len(size), *size)
    for piece in (14, 1 << 12):
        monkeypatch.setattr(field_map, "_CPU_PIECE", piece)
        torch.testing.assert_close(function.on_grid(), expected)
    if 1 in size:
        assert not expected[:, size.index(1)].any()


def test_many_points_are_not_stored_and_have_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    function, points = made((5, 6, 7)), anywhere((5, 6, 7), 400).requires_grad_()
    inputs = [points, *function.code, *function.field.parameters()]

    def run() -> tuple[int, tuple[Tensor, ...]]:
        stored: dict[int, int] = {}

        def pack(saved: Tensor) -> Tensor:
            stored[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
            return saved

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            total = function(points).square().sum()
        return sum(stored.values()), torch.autograd.grad(total, inputs)

    all_at_once, expected = run()
    monkeypatch.setattr(field_map, "_CPU_PIECE", 100)
    in_pieces, found = run()
    assert in_pieces < all_at_once / 5
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_maps_of_many_points_can_be_differentiated_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    function, points = made((6, 9)), anywhere((6, 9), 30).requires_grad_()
    inputs = [points, *function.code, *function.field.parameters()]
    results = []
    for piece in (1 << 12, 16):
        monkeypatch.setattr(field_map, "_CPU_PIECE", piece)
        _, derivative = map_with_derivative(lambda x: function(x), points)
        results.append(torch.autograd.grad(derivative.square().sum(), inputs, materialize_grads=True))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_parts_that_are_not_trained_get_no_gradient_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(field_map, "_CPU_PIECE", 16)
    function = made((6, 9))
    function.field.requires_grad_(False)
    shared, local = function.code
    function.code = HybridCode(shared.detach(), local)
    function(anywhere((6, 9), 30)).square().sum().backward()
    assert local.grad is not None and local.grad.any() and shared.grad is None
    assert all(parameter.grad is None for parameter in function.field.parameters())


def test_points_shared_by_the_pairs_give_what_each_pair_gives() -> None:
    function, points = made((5, 6, 7)), anywhere((5, 6, 7), 8, batch=1)
    torch.testing.assert_close(function(points), function(points.expand(2, -1, -1).contiguous()))
    together = function.with_derivative(points.expand(2, -1, -1)), function.with_derivative(points.repeat(2, 1, 1))
    for one, other in zip(*together, strict=True):
        torch.testing.assert_close(one, other)


def test_all_is_single_precision_under_autocast() -> None:
    function = made((6, 9))
    function.field.float()
    function.code = HybridCode(*(part.float() for part in function.code))
    points = anywhere((6, 9), 8).float()
    expected = function(points)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(function(points), expected) and function.on_grid().dtype == torch.float32
        assert function.with_derivative(points)[1].dtype == torch.float32
