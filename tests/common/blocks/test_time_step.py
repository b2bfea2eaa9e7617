# SPDX-License-Identifier: Apache-2.0
"""A step of TransMorphTVF against torch's own layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from common.blocks.remade import stored
from common.blocks.time_step import TimeStep


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("dims", [2, 3])
def test_it_is_three_convolutions_that_are_normalised_and_a_head(dims: int, norm: Any) -> None:
    torch.manual_seed(0)
    step = TimeStep(dims, 5, 3, 4, norm).double().eval()
    convolution = F.conv2d if dims == 2 else F.conv3d
    size = (6, 4, 5)[:dims]
    features, pair = (torch.randn(2, n, *size, dtype=torch.float64, requires_grad=True) for n in (5, 2))
    x = convolution(pair, step.of_images.conv.weight, padding=1)
    if step.of_images.norm is None:
        x = F.instance_norm(x)
    else:
        step.of_images.norm.running_mean.normal_()  # type: ignore[union-attr]  # it has one
        x = step.of_images.norm(x)
    x = torch.cat([features, F.leaky_relu(x, 0.01)], dim=1)
    for layer in (step.first, step.second):
        x = F.leaky_relu(F.instance_norm(convolution(x, layer.conv.weight, padding=1)), 0.01)
    expected = convolution(x, step.head.conv.weight, step.head.conv.bias, padding=1)
    found = step(stored(features), pair)
    torch.testing.assert_close(found, expected)
    inputs = (features, pair, *step.parameters())
    weight = torch.randn_like(expected)
    torch.testing.assert_close(*(torch.autograd.grad(field, inputs, weight) for field in (found, expected)))
