# SPDX-License-Identifier: Apache-2.0
"""The fused normalisation and activation against the formula and torch's own modules.

Torch's modules serve for contiguous memory only: on the CPU, its instance normalisation of a single sample with
channels last returns a wrong gradient (seen in 2.13).
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from common.blocks.normalisation import EPS, instance_norm_prelu, plain_form

SHAPES = [(2, 3, 6, 5), (2, 3, 4, 5, 3), (1, 4, 3, 5, 2)]
LAYOUTS = ["contiguous", "channels last"]


def in_layout(x: Tensor, layout: str) -> Tensor:
    if layout == "contiguous":
        return x.contiguous()
    return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)


def tensors(count: int, shape: Sequence[int], layout: str = "contiguous", grad: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    values = [torch.randn(tuple(shape), generator=generator, dtype=torch.float64) * (i + 1) + i for i in range(count)]
    return [in_layout(x, layout).requires_grad_(grad) for x in values]


def normalised(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, tuple(range(2, x.ndim)), correction=0, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()


def textbook(branches: Sequence[Tensor], slope: Tensor, residual: Tensor | None = None) -> Tensor:
    total = sum((normalised(x) for x in branches), torch.zeros_like(branches[0]) if residual is None else residual)
    return torch.where(total > 0, total, slope * total)


def slope_of(value: float, grad: bool = False) -> Tensor:
    return torch.tensor([value], dtype=torch.float64, requires_grad=grad)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("slope", [0.25, 1.4, -0.3])
def test_value_and_gradients_equal_those_of_the_formula(
    shape: tuple[int, ...], layout: str, count: int, with_residual: bool, slope: float
) -> None:
    weight = tensors(1, shape)[0].flip(1)
    results = []
    for function in (instance_norm_prelu, textbook):
        *branches, residual = tensors(count + 1, shape, layout, grad=True)
        parameter = slope_of(slope, grad=True)
        inputs = [*branches, parameter, *([residual] if with_residual else [])]
        out = function(branches, parameter, residual if with_residual else None)
        results.append((out.detach(), *torch.autograd.grad(out, inputs, weight)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_one_branch_equals_torchs_modules(shape: tuple[int, ...]) -> None:
    normalisation = torch.nn.InstanceNorm2d(shape[1]) if len(shape) == 4 else torch.nn.InstanceNorm3d(shape[1])
    activation = torch.nn.PReLU().double()
    (branch,) = tensors(1, shape, grad=True)
    inputs, weight = [branch, activation.weight], tensors(1, shape)[0].flip(1)
    outputs = instance_norm_prelu([branch], activation.weight), activation(normalisation(branch))
    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-12)
    gradients = (torch.autograd.grad(out, inputs, weight) for out in outputs)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("with_residual", [False, True])
def test_gradients_are_those_of_finite_differences(layout: str, with_residual: bool) -> None:
    *branches, residual = tensors(4, (1, 2, 2, 3, 2), layout, grad=True)
    inputs = (slope_of(0.3, grad=True), *branches, *([residual] if with_residual else []))

    def function(slope: Tensor, *rest: Tensor) -> Tensor:
        return instance_norm_prelu(rest[:3], slope, rest[3] if with_residual else None)

    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("count", [1, 3])
def test_large_volume_equals_the_formula_as_well(layout: str, count: int) -> None:
    shape = (1, 5, 37, 41, 43)
    results = []
    for function in (instance_norm_prelu, textbook):
        branches = tensors(count, shape, layout, grad=True)
        out = function(branches, slope_of(0.25))
        results.append((out.detach(), *torch.autograd.grad(out.square().sum(), branches)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("with_residual", [False, True])
def test_gradients_equal_the_formulas_of_the_docstring(with_residual: bool) -> None:
    x, r, g = tensors(3, SHAPES[1])
    a, axes = 0.25, (2, 3, 4)
    x.requires_grad_()
    slope, residual = slope_of(a, grad=True), r.requires_grad_() if with_residual else None
    out = instance_norm_prelu([x], slope, residual)
    found = torch.autograd.grad(out, [x, slope, *([residual] if residual is not None else [])], g)
    with torch.no_grad():
        s = 1 / (x.var(axes, correction=0, keepdim=True) + 1e-5).sqrt()
        y = s * x - s * x.mean(axes, keepdim=True)
        z = y + r if with_residual else y
        h = g + (a - 1) * g * (z <= 0)
        on_x = s * (h - h.mean(axes, keepdim=True) - y * (h * y).mean(axes, keepdim=True))
        expected = [on_x, (g * (z <= 0) * z).sum()[None], *([h] if with_residual else [])]
    torch.testing.assert_close(list(found), expected, rtol=1e-10, atol=1e-12)


def test_plain_form_equals_the_fused_one() -> None:
    a, b, residual = tensors(3, SHAPES[1])
    fused = instance_norm_prelu([a, b], slope_of(0.25), residual)
    torch.testing.assert_close(plain_form([a, b], slope_of(0.25), residual, EPS), fused, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("grad", [False, True])
def test_other_orders_of_axes_are_as_good(grad: bool) -> None:
    results = []
    for order in ("turned", "contiguous"):
        turned = [x.transpose(2, 4).detach() for x in tensors(3, (2, 3, 3, 5, 4))]
        *branches, residual = [(x if order == "turned" else x.contiguous()).requires_grad_(grad) for x in turned]
        out = instance_norm_prelu(branches, slope_of(0.25), residual, overwrite=True)
        gradients = torch.autograd.grad(out.square().sum(), [*branches, residual]) if grad else ()
        results.append((out.detach(), *gradients))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-13)


def test_residual_may_lie_otherwise_in_memory_than_the_branches() -> None:
    gradients = []
    for layout in LAYOUTS:
        (branch,), (residual,) = tensors(1, SHAPES[1], "channels last", grad=True), tensors(1, SHAPES[1], layout)
        residual = residual.requires_grad_()
        out = instance_norm_prelu([branch], slope_of(0.25), residual)
        gradients.append(torch.autograd.grad(out.square().sum(), [branch, residual]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_value_without_gradient_is_the_value_with(layout: str) -> None:
    branches = tensors(2, SHAPES[1], layout, grad=True)
    with_gradient = instance_norm_prelu(branches, slope_of(0.25))
    with torch.no_grad():
        without = instance_norm_prelu(branches, slope_of(0.25))
    assert with_gradient.requires_grad and not without.requires_grad
    torch.testing.assert_close(without, with_gradient, rtol=0, atol=1e-14)


@pytest.mark.parametrize("frozen", ["slope", "branch", "residual"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_right_one(frozen: str) -> None:
    gradients = []
    for function in (instance_norm_prelu, textbook):
        branch, residual = tensors(2, SHAPES[0], grad=True)
        named = {"branch": branch, "residual": residual, "slope": slope_of(0.25, grad=True)}
        named[frozen].requires_grad_(False)
        function([branch], named["slope"], residual).square().sum().backward()
        assert named[frozen].grad is None
        gradients.append([x.grad for name, x in named.items() if name != frozen])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grad", [False, True])
def test_bfloat16_goes_in_and_out_with_float32_statistics(layout: str, grad: bool) -> None:
    branches = [x.detach().bfloat16().requires_grad_(grad) for x in tensors(3, SHAPES[1], layout)]
    slope = torch.tensor([0.25])
    out = instance_norm_prelu(branches, slope)
    assert out.dtype == torch.bfloat16
    expected = textbook([x.detach().float() for x in branches], slope)
    # Rounding of the result alone: eight bits of mantissa.
    torch.testing.assert_close(out.float(), expected, rtol=2**-8, atol=1e-6)
    if grad:
        for gradient in torch.autograd.grad(out.float().square().sum(), branches):
            assert gradient.dtype == torch.bfloat16 and gradient.isfinite().all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layout_of_the_result_is_that_of_the_branches(shape: tuple[int, ...], layout: str) -> None:
    (branch,) = tensors(1, shape, layout)
    assert instance_norm_prelu([branch], slope_of(0.25)).stride() == branch.stride()


def test_large_mean_does_not_cancel_the_variance() -> None:
    (branch,) = tensors(1, SHAPES[1])
    shifted = (branch + 4096).float()
    result = instance_norm_prelu([shifted], torch.tensor([0.25]))
    expected = textbook([shifted.double()], slope_of(0.25))
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-3)


def test_constant_channel_becomes_zero_and_its_gradient_is_finite() -> None:
    branch = torch.full((1, 2, 4, 4), 3.0, requires_grad=True)
    out = instance_norm_prelu([branch], torch.tensor([0.25]))
    (gradient,) = torch.autograd.grad((out * torch.randn_like(out)).sum(), branch)
    assert not out.any()
    assert gradient.isfinite().all()


def test_branches_are_left_as_they_were() -> None:
    branches = tensors(3, SHAPES[1])
    before = [x.clone() for x in branches]
    instance_norm_prelu(branches[:2], slope_of(0.25), branches[2])
    assert all(torch.equal(a, b) for a, b in zip(branches, before, strict=True))


@pytest.mark.filterwarnings("ignore:.*jit.* is deprecated", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("with_residual", [False, True])
def test_traced_equals_eager_on_other_values(with_residual: bool) -> None:
    slope = torch.tensor([0.25])

    def function(a: Tensor, b: Tensor) -> Tensor:
        return instance_norm_prelu([a] if with_residual else [a, b], slope, b if with_residual else None)

    first, second = ([x.float() * s for x in tensors(2, SHAPES[1])] for s in (1, -3))
    with torch.no_grad():
        traced = torch.jit.trace(function, tuple(first), check_trace=False)
        torch.testing.assert_close(traced(*second), function(*second), rtol=0, atol=2e-6)
