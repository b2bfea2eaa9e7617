# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.blocks.affine_norm import AffineNorm, normalise


def made(dims: int, slope: float, channels: int = 3) -> tuple[AffineNorm, Tensor]:
    torch.manual_seed(0)
    norm = AffineNorm(channels, slope).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = 4 + torch.randn(2, channels, *(3, 4, 2)[:dims], dtype=torch.float64)
    return norm, x.requires_grad_()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("slope", [0.2, 1.0])
@pytest.mark.parametrize("last", [False, True])
def test_it_is_the_instance_norm_of_torch(dims: int, slope: float, last: bool) -> None:
    norm, x = made(dims, slope)
    layout = torch.contiguous_format if not last else torch.channels_last if dims == 2 else torch.channels_last_3d
    given = x.detach().contiguous(memory_format=layout).requires_grad_()
    expected = F.leaky_relu(F.instance_norm(x, weight=norm.weight, bias=norm.bias), slope)
    found = norm(given)
    torch.testing.assert_close(found.value, expected)
    torch.testing.assert_close(found.again(), expected)
    assert not found.again().requires_grad
    with torch.no_grad():
        torch.testing.assert_close(norm(given).value, expected)
    inputs = [(y, norm.weight, norm.bias) for y in (given, x)]
    results = (found.value, expected)
    gradients = [torch.autograd.grad(y.square().sum(), of) for y, of in zip(results, inputs, strict=True)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dims", [2, 3])
def test_gradients_are_exact(dims: int) -> None:
    norm, x = made(dims, 0.2)

    def normalised(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        value: Tensor = torch.func.functional_call(norm, {"weight": weight, "bias": bias}, x).value
        return value

    assert torch.autograd.gradcheck(normalised, (x, norm.weight, norm.bias))


def test_an_image_of_one_intensity_becomes_the_shift() -> None:
    norm, _ = made(3, 0.2)
    x = torch.full((1, 3, 2, 2, 2), 7.0, dtype=torch.float64, requires_grad=True)
    found = norm(x)
    expected = F.leaky_relu(norm.bias, 0.2).detach().view(1, 3, 1, 1, 1).expand_as(x)
    torch.testing.assert_close(found.value.detach(), expected)
    torch.testing.assert_close(found.again(), expected)


def test_half_precision_keeps_its_type_and_float32_statistics() -> None:
    norm, x = made(3, 0.2)
    norm = norm.float()
    half = x.detach().bfloat16().requires_grad_()
    found = norm(half)
    assert found.value.dtype == torch.bfloat16
    torch.testing.assert_close(found.value.float(), norm(half.float()).value, rtol=1e-2, atol=1e-2)
    found.value.float().square().sum().backward()
    assert half.grad is not None and half.grad.dtype == torch.bfloat16


def test_traced_form_is_the_same() -> None:
    norm, x = made(3, 0.2)
    norm.requires_grad_(False)
    traced = torch.jit.trace(lambda x: norm(x).value, (x.detach(),))
    torch.testing.assert_close(traced(x.detach()), norm(x).value)


@pytest.mark.parametrize("dims", [2, 3])
def test_without_scale_and_shift_it_is_that_with_ones_and_zeros(dims: int) -> None:
    _, x = made(dims, 0.2)
    ones, zeros = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    plain, affine = normalise(x, 0.2), normalise(x, 0.2, ones, zeros)
    torch.testing.assert_close(plain.value, affine.value)
    torch.testing.assert_close(plain.again(), affine.value)
    gradients = [torch.autograd.grad(y.value.square().sum(), x) for y in (plain, affine)]
    torch.testing.assert_close(*gradients)
    traced = torch.jit.trace(lambda x: normalise(x, 0.2).value, (x.detach(),))
    torch.testing.assert_close(traced(x.detach()), affine.value)


def test_statistics_of_a_million_voxels_are_exact_to_rounding() -> None:
    torch.manual_seed(0)
    x = (3 + torch.randn(1, 2, 80, 112, 96)).contiguous(memory_format=torch.channels_last_3d)
    expected = F.instance_norm(x.double())
    # Sums of one value after the other, as torch 2.13 has them in this layout, are off by 1e-3.
    torch.testing.assert_close(normalise(x, 1.0).value.double(), expected, rtol=0, atol=5e-6)
