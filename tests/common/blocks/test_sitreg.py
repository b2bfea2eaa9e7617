# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.blocks.sitreg import AffineExtraction, ConvBlock, FeatureExtractor, UpdateExtraction

SIZES = [(9, 6), (5, 6, 7)]


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("rectify_first", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_block_is_convolution_normalisation_and_relu_in_either_order(
    size: tuple[int, ...], rectify_first: bool
) -> None:
    block = ConvBlock(len(size), 3, 4, 2, 2, rectify_first).double()
    x = expected = normal(2, 3, *size)
    for conv, norm in zip(block.convolutions, block.normalisations, strict=True):
        y = conv(expected)
        expected = norm(F.relu(y)) if rectify_first else F.relu(norm(y))
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("finest", [False, True])
@pytest.mark.parametrize("groups", [None, 2])
@pytest.mark.parametrize("size", SIZES)
def test_updates_are_those_of_difference_and_sum(size: tuple[int, ...], groups: int | None, finest: bool) -> None:
    module = UpdateExtraction(len(size), 3, 4, 2, groups, finest).double()
    first, second = (normal(2, 3, *size).add(k).requires_grad_() for k in (0, 1))
    expected = [module.head(module.block(torch.cat([d, first + second], 1))) for d in (first - second, second - first)]
    found = module(first, second)
    torch.testing.assert_close(found, tuple(expected))
    inputs = [first, second, *module.parameters()]
    gradients = [
        torch.autograd.grad(sum((k + 1) * u.square().sum() for k, u in enumerate(pair)), inputs)
        for pair in (found, expected)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)
    swapped = module(second, first)
    assert torch.equal(swapped[0], found[1]) and torch.equal(swapped[1], found[0])


def test_features_of_odd_sizes_are_those_of_the_image_padded_at_the_end() -> None:
    extractor = FeatureExtractor(2, (2, 4, 4), (1, 1, 1), 2, False).double()
    features = extractor(normal(1, 1, 9, 6))
    assert [tuple(f.shape) for f in features] == [(1, 2, 9, 6), (1, 4, 5, 3), (1, 4, 3, 2)]
    # The last row of the second level sees one row of the first, and zeros beside it.
    down: Any = extractor.downsamplings[0]
    skip = F.pad(extractor.projection(normal(1, 1, 9, 6)), (0, 0, 0, 1))
    pooled = down.downsampling(F.pad(features[0], (0, 0, 0, 1))) + down.projection(F.avg_pool2d(skip, 2))
    torch.testing.assert_close(features[1], down.block(pooled))


@pytest.mark.parametrize("dims", [2, 3])
def test_affine_maps_are_inverse_to_each_other_and_change_places_with_the_images(dims: int) -> None:
    module = AffineExtraction(dims, 8, 2).double()
    first, second = normal(2, 2, *[1] * (dims - 1), 4), normal(2, 2, *[1] * (dims - 1), 4) + 1
    there, back = module(first, second)
    torch.testing.assert_close(there @ back, torch.eye(dims + 1).double().expand(2, -1, -1))
    assert torch.equal(module(second, first)[0], back)
    assert (torch.linalg.det(there) > 0).all() and (there - torch.eye(dims + 1)).abs().max() > 0.1


def test_affine_parameters_are_scales_shears_rotations_and_translations() -> None:
    from common.blocks.sitreg import _affine_matrix

    parameters = torch.zeros(1, 12, dtype=torch.float64)
    torch.testing.assert_close(_affine_matrix(parameters, 3)[0], torch.eye(4).double())
    parameters[0, :3] = torch.tensor([0.1, 0.2, 0.3])
    parameters[0, 9] = 0.5
    expected = torch.diag(torch.tensor([0.1, 0.2, 0.3, 0.0]).double().exp())
    expected[0, 3] = 0.5 * expected[0, 0]
    torch.testing.assert_close(_affine_matrix(parameters, 3)[0], expected)
    turned = torch.zeros(1, 6, dtype=torch.float64)
    turned[0, 3] = 0.3
    angle = torch.tensor(0.3).double()
    rotation = torch.stack([angle.cos(), angle.sin(), -angle.sin(), angle.cos()]).view(2, 2)
    torch.testing.assert_close(_affine_matrix(turned, 2)[0, :2, :2], rotation)
