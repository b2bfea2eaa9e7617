# SPDX-License-Identifier: Apache-2.0
"""Cells of label maps against a look at each one."""

from __future__ import annotations

import itertools

import pytest
import torch

from common.losses.label_cells import LabelCells, corner_weights, interpolation_slopes

CLASSES = 4


def blocks(*shape: int) -> torch.Tensor:
    labels = torch.arange(torch.Size(shape).numel()).view(shape) // 3 % CLASSES
    labels[tuple(slice(0, 3) for _ in shape)] = 2
    return labels.to(torch.uint8)


@pytest.mark.parametrize("shape", [(5, 4), (4, 3, 6)])
def test_code_and_corners_of_the_cell_that_a_voxel_lands_in(shape: tuple[int, ...]) -> None:
    labels = blocks(*shape)
    cells = LabelCells(labels, CLASSES)
    ddf = 3 * torch.randn((len(shape), *shape), generator=torch.Generator().manual_seed(0))
    ddf.view(len(shape), -1)[:, :4] = 0
    points, cell = cells.locate(ddf[:, 1:], 1)
    codes, corners = cells.code(cell), cells.corners(cell)
    for i, voxel in enumerate(itertools.product(range(1, shape[0]), *map(range, shape[1:]))):
        # Far outside, all positions are as good as two voxels outside.
        position = [min(max(x + float(u[voxel]), -2), n) for x, u, n in zip(voxel, ddf, shape, strict=True)]
        expected = []
        for offset in itertools.product((0, 1), repeat=len(shape)):
            corner = [int(p // 1) + o for p, o in zip(position, offset, strict=True)]
            inside = all(0 <= c < n for c, n in zip(corner, shape, strict=True))
            expected.append(int(labels[tuple(corner)]) if inside else CLASSES)
        assert corners[:, i].tolist() == expected
        assert codes[i] == (expected[0] if len(set(expected)) == 1 else CLASSES + 1)
        assert points[:, i].tolist() == pytest.approx([p + 2 for p in position], abs=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
def test_weights_interpolate_and_their_slopes_are_the_gradient(dims: int) -> None:
    generator = torch.Generator().manual_seed(0)
    fraction = torch.rand((dims, 7), generator=generator, dtype=torch.float64, requires_grad=True)
    values = torch.rand((2**dims, 7), generator=generator, dtype=torch.float64)
    weights = corner_weights(fraction)
    torch.testing.assert_close(weights.sum(0), torch.ones(7, dtype=torch.float64))
    # A function that is linear along the axes is met exactly: corner o has the value o_0 + 2 o_1 + 4 o_2.
    linear = torch.tensor([sum(2**k * o for k, o in enumerate(c)) for c in itertools.product((0.0, 1.0), repeat=dims)])
    steps = torch.tensor([2.0**k for k in range(dims)], dtype=torch.float64)
    torch.testing.assert_close(linear.double() @ weights, steps @ fraction)
    (gradient,) = torch.autograd.grad((weights * values).sum(), fraction)
    torch.testing.assert_close(interpolation_slopes(values, fraction.detach()), gradient)
