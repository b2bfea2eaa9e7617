# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.blocks import convolution
from common.blocks.convolution import convolve, convolved_again, normalise_and_convolve, rectify_and_convolve

CHANNELS = [(1, 4), (3, 9), (9, 3)]


def _inputs(dims: int, channels: tuple[int, int], size: tuple[int, ...] = (5, 6, 4)) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, channels[0], *size[:dims], dtype=torch.float64, requires_grad=True)
    weight = torch.randn(channels[1], channels[0], *(3, 5, 1)[:dims], dtype=torch.float64, requires_grad=True)
    return x, weight, torch.randn(channels[1], dtype=torch.float64, requires_grad=True)


def _torch(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    padding = [n // 2 for n in weight.shape[2:]]
    return (F.conv2d if x.ndim == 4 else F.conv3d)(x, weight, bias, padding=padding)


def _norm_prelu(x: Tensor, slope: Tensor) -> Tensor:
    return F.prelu(F.instance_norm(x, eps=1e-5), slope)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("channels", CHANNELS)
def test_convolve_equals_torch(dims: int, channels: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "PIECE", 30)
    x, weight, bias = _inputs(dims, channels)
    torch.testing.assert_close(convolve(x, weight, bias), _torch(x, weight, bias))
    with torch.no_grad():
        torch.testing.assert_close(convolve(x, weight, bias), _torch(x, weight, bias))
    torch.testing.assert_close(convolve(x, weight), _torch(x, weight, torch.zeros_like(bias)))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("channels", CHANNELS)
def test_gradients_are_exact(dims: int, channels: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "PIECE", 12)
    x, weight, bias = _inputs(dims, channels, (3, 4, 2))
    slope = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(convolve, (x, weight, bias))
    assert torch.autograd.gradcheck(convolve, (x, weight))
    assert torch.autograd.gradcheck(lambda w, b: convolve(x.detach(), w, b), (weight, bias))
    assert torch.autograd.gradcheck(lambda x, w, b: rectify_and_convolve(x * 1, w, b), (x, weight, bias))
    assert torch.autograd.gradcheck(normalise_and_convolve, (x, slope, weight, bias))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("channels_last", [True, False])
def test_one_voxel_to_few_channels_is_a_product_of_matrices(dims: int, channels_last: bool) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 12, *(5, 6, 4)[:dims]), torch.randn(3, 12, *[1] * dims), torch.randn(3)
    if channels_last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    inputs = [value.requires_grad_() for value in (x, weight, bias)]
    found, expected = convolve(*inputs), _torch(*inputs)
    torch.testing.assert_close(found, expected)
    grad = torch.randn_like(expected)
    gradients = (torch.autograd.grad(y, inputs, grad) for y in (found, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("recorded", [True, False])
def test_activation_comes_before_the_convolution(recorded: bool) -> None:
    x, weight, bias = _inputs(3, (3, 4))
    slope = torch.tensor([0.3], dtype=torch.float64)
    with torch.set_grad_enabled(recorded):
        rectified = rectify_and_convolve(x.detach().clone(), weight, bias)
        normalised = normalise_and_convolve(x.detach().clone(), slope, weight, bias)
    torch.testing.assert_close(rectified, _torch(x.relu(), weight, bias))
    torch.testing.assert_close(normalised, _torch(_norm_prelu(x, slope), weight, bias))


def _stored(function: Callable[[], Tensor]) -> tuple[Tensor, list[int]]:
    pointers: list[int] = []

    def pack(x: Tensor) -> Tensor:
        pointers.append(x.data_ptr())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        return function(), pointers


def test_neither_the_activation_nor_its_input_is_stored() -> None:
    image, weight, bias = _inputs(3, (1, 3))
    image = image.detach()
    slope = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    following, offset = _inputs(3, (3, 4))[1:]
    x = convolve(image, weight, bias)
    expected = torch.autograd.grad(
        normalise_and_convolve(x, slope, following, offset).square().sum(),
        (weight, slope, following),
        retain_graph=True,
    )

    def run() -> Tensor:
        with convolved_again(x, image, weight, bias):
            return normalise_and_convolve(x, slope, following, offset)

    result, pointers = _stored(run)
    assert x.data_ptr() not in pointers
    found = torch.autograd.grad(result.square().sum(), (weight, slope, following))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_autocast_decides_the_type() -> None:
    x, weight, bias = (t.detach().float().requires_grad_() for t in _inputs(3, (1, 4)))
    with torch.autocast("cpu", torch.bfloat16):
        result = convolve(x, weight, bias)
    assert result.dtype == torch.bfloat16
    result.float().sum().backward()
    assert weight.grad is not None and weight.grad.dtype == torch.float32
    torch.testing.assert_close(result.float(), _torch(x, weight, bias), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(("depth", "kernel"), [(2, 3), (4, 5), (8, 3)])
@pytest.mark.parametrize("channels", [(16, 3), (16, 16)])
def test_bfloat16_gradients_are_rounded_whatever_the_first_axis(
    depth: int, kernel: int, channels: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    shapes = [(2, channels[0], depth, 6, 5), (channels[1], channels[0], *[kernel] * 3), channels[1:]]
    # Freed again, so that memory that is never written to shows.
    freed = [torch.full((10**n,), 1e30) for n in range(2, 6)]
    del freed
    inputs = [torch.randn(shape).bfloat16().requires_grad_() for shape in shapes]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    target = torch.randn(2, channels[1], depth, 6, 5).bfloat16()
    found = torch.autograd.grad(convolve(*inputs), inputs, target)
    expected = torch.autograd.grad(_torch(*exact), exact, target.double())
    for a, b in zip(found, expected, strict=True):
        # No value changes by more than this part of it when the exact gradient is rounded to eight bits.
        assert (a.double() - b).norm() < 2**-8 * b.norm()


@pytest.mark.parametrize("size", [(1, 4, 3), (5, 6, 4), (6, 3, 2)])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("channels", [(3, 9), (9, 3), (1, 4)])
def test_small_volumes_give_the_same_in_float32(dims: int, channels: tuple[int, int], size: tuple[int, ...]) -> None:
    exact = [t[:1].detach() if k == 0 else t.detach() for k, t in enumerate(_inputs(dims, channels, size))]
    inputs = [t.float().requires_grad_() for t in exact]
    exact = [t.requires_grad_() for t in exact]
    target = torch.randn(1, channels[1], *size[:dims], dtype=torch.float64)
    found, expected = convolve(*inputs), _torch(*exact)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    found_gradients = torch.autograd.grad(found, inputs, target.float())
    for a, b in zip(found_gradients, torch.autograd.grad(expected, exact, target), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=2e-5)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
def test_small_volumes_take_the_way_of_large_ones() -> None:
    x, weight, bias = (t.detach().float().requires_grad_() for t in _inputs(3, (3, 9), (8, 8, 8)))
    with torch.profiler.profile() as profile:
        convolve(x[:1], weight, bias).sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert "aten::mkldnn_convolution" in names and not any("slow_conv" in name for name in names)
