# SPDX-License-Identifier: Apache-2.0
"""Local cross-correlation against a textbook loop, its invariances and its gradient."""

from __future__ import annotations

import inspect
import itertools
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from common.losses import LNCCLoss


def _textbook(i: np.ndarray, j: np.ndarray, size: int, eps: float, mean: bool, guard: str = "add") -> float:
    """Visit every voxel of one channel, cut its window out of the zero-padded images, correlate."""
    i, j = np.pad(i, size // 2), np.pad(j, size // 2)
    values = []
    for corner in itertools.product(*(range(n - size + 1) for n in i.shape)):
        window = tuple(slice(c, c + size) for c in corner)
        a, b = i[window].ravel() - i[window].mean(), j[window].ravel() - j[window].mean()
        n = a.size if mean else 1
        a, b, c = (a * a).sum() / n, (b * b).sum() / n, (a * b).sum() / n
        if guard == "each":
            a, b, c = (max(statistic, eps) for statistic in (a, b, c))
            values.append((c / a) * (c / b))
        else:
            values.append(c**2 / (max(a * b, eps) if guard == "max" else a * b + eps))
    return float(np.mean(values))


def _pair(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(shape, generator=generator, dtype=dtype), torch.rand(shape, generator=generator, dtype=dtype)


@pytest.mark.parametrize("statistics", ["sum", "mean"])
@pytest.mark.parametrize(
    ("shape", "size"), [((6, 9, 7), 3), ((5, 4, 6), 5), ((4, 3, 5), 9), ((1, 6, 5), 7), ((9, 12), 5), ((3, 4), 7)]
)
def test_value_equals_the_textbook_loop(shape: tuple[int, ...], size: int, statistics: str) -> None:
    i, j = _pair(2, 2, *shape)
    expected = [
        _textbook(i[b, c].numpy(), j[b, c].numpy(), size, 0.01, statistics == "mean") for b in (0, 1) for c in (0, 1)
    ]
    loss = LNCCLoss(len(shape), size, eps=0.01, statistics=statistics)
    assert loss(i, j).item() == pytest.approx(1 - np.mean(expected), abs=1e-10)


def _plain_form() -> Callable[..., torch.Tensor]:
    """The code in the docstring of the loss."""
    lines = inspect.cleandoc(LNCCLoss.__doc__ or "").split("value and gradient::\n\n")[1].splitlines()
    code = list(itertools.takewhile(lambda line: line.startswith("    "), lines))
    names: dict[str, Any] = {"torch": torch}
    exec(textwrap.dedent("\n".join(code)), names)
    assert len(code) == 9
    function: Callable[..., torch.Tensor] = names["plain_lncc"]
    return function


@pytest.mark.parametrize("size", [3, 9])
def test_value_and_gradients_equal_the_plain_form_of_the_docstring(size: int) -> None:
    results = []
    for loss in (LNCCLoss(3, size, eps=0.01), lambda i, j: _plain_form()(i, j, size, 0.01, 1.0)):
        i, j = (image.requires_grad_() for image in _pair(2, 1, 11, 8, 9))
        value = loss(i, j)
        results.append((value.detach(), *torch.autograd.grad(value, (i, j))))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("statistics", ["sum", "mean"])
def test_eps_can_be_the_least_of_each_variance_and_of_the_covariance(statistics: str) -> None:
    i, j = (image.requires_grad_() for image in _pair(1, 1, 6, 5, 4))
    # Of some windows one, of others the other variance is above it, and the covariance of a tenth.
    eps = 0.06 if statistics == "mean" else 0.06 * 27
    loss = LNCCLoss(3, 3, eps=eps, statistics=statistics, guard="each", offset=0.0)
    volumes = i.detach()[0, 0].numpy(), j.detach()[0, 0].numpy()
    # Both lines: sums over 27 voxels in float64, of values up to 1 from which means are taken off afterwards.
    assert loss(i, j).item() == pytest.approx(-_textbook(*volumes, 3, eps, statistics == "mean", "each"), abs=1e-13)
    assert loss(i, j, torch.ones_like(i)).item() == pytest.approx(loss(i, j).item(), abs=1e-13)
    weight = 0.5 + i.detach() / 2
    for bound in (eps / 100, eps):
        assert torch.autograd.gradcheck(LNCCLoss(3, 3, eps=bound, statistics=statistics, guard="each"), (i, j))
    some = [image.detach()[:, :, :3, :4].requires_grad_() for image in (i, j)]
    assert torch.autograd.gradcheck(loss, (*some, weight[:, :, :3, :4]))


@pytest.mark.parametrize("statistics", ["sum", "mean"])
def test_eps_can_be_the_least_that_is_divided_by(statistics: str) -> None:
    i, j = (image.requires_grad_() for image in _pair(1, 1, 6, 5, 4))
    # Half of the windows have variances whose product is above it.
    eps = 0.0049 if statistics == "mean" else 0.0049 * 27**2
    loss = LNCCLoss(3, 3, eps=eps, statistics=statistics, guard="max", offset=0.0)
    volumes = i.detach()[0, 0].numpy(), j.detach()[0, 0].numpy()
    assert loss(i, j).item() == pytest.approx(-_textbook(*volumes, 3, eps, statistics == "mean", "max"), abs=1e-10)
    for bound in (eps / 100, eps, 100 * eps):
        assert torch.autograd.gradcheck(LNCCLoss(3, 3, eps=bound, statistics=statistics, guard="max"), (i, j))


def test_value_and_gradient_do_not_depend_on_the_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    i, j = _pair(1, 1, 23, 6, 5)
    results = []
    for slab in (1, 1 << 12, 1 << 22):
        monkeypatch.setattr("common.losses.lncc_stream._CPU_SLAB", slab)
        x, y = i.clone().requires_grad_(), j.clone().requires_grad_()
        value = LNCCLoss(kernel_size=5)(x, y)
        value.backward()
        results.append((value.detach(), x.grad, y.grad))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("shape", "size"), [((2, 1, 6, 4, 5), 3), ((1, 2, 7, 6), 5), ((1, 1, 3, 4, 2), 9), ((1, 1, 3, 3), 1)]
)
@pytest.mark.parametrize("statistics", ["sum", "mean"])
def test_gradients_to_both_images_are_exact(shape: tuple[int, ...], size: int, statistics: str) -> None:
    i, j = (image.requires_grad_() for image in _pair(*shape))
    loss = LNCCLoss(len(shape) - 2, size, eps=0.01, statistics=statistics)
    assert torch.autograd.gradcheck(loss, (i, j))
    assert torch.autograd.gradcheck(loss, (i, j.detach()))
    assert torch.autograd.gradcheck(loss, (i.detach(), j))


def test_image_against_itself_is_a_perfect_match() -> None:
    i, _ = _pair(2, 1, 8, 7, 9)
    assert LNCCLoss(kernel_size=3)(i, i).item() == pytest.approx(0, abs=1e-3)
    assert LNCCLoss(kernel_size=3, offset=0.0)(i, i).item() == pytest.approx(-1, abs=1e-3)


def test_affine_intensity_changes_leave_the_interior_unchanged() -> None:
    i, j = _pair(1, 1, 9, 8, 10)
    i, j = (torch.nn.functional.pad(image, [2] * 6) for image in (i, j))
    scaled = LNCCLoss(kernel_size=3, eps=0.0 + 1e-12)(3 * i, -2 * j)
    assert scaled.item() == pytest.approx(LNCCLoss(kernel_size=3, eps=1e-12)(i, j).item(), abs=1e-6)


def test_loss_is_symmetric() -> None:
    i, j = _pair(1, 2, 7, 8)
    assert LNCCLoss(2, 5)(i, j).item() == pytest.approx(LNCCLoss(2, 5)(j, i).item(), abs=1e-12)


def test_constant_images_give_no_similarity_and_no_gradient() -> None:
    i = torch.zeros(1, 1, 6, 6, 6, requires_grad=True)
    value = LNCCLoss(kernel_size=3)(i, torch.zeros(1, 1, 6, 6, 6))
    value.backward()
    assert value.item() == 1
    assert i.grad is not None and not i.grad.any()


@pytest.mark.parametrize("flat", [(0, 1), (0,), (1,)])
def test_flat_parts_of_bright_images_are_no_similarity(flat: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (2, 1, 1, 16, 14, 20), generator=generator).float()
    for k in flat:
        images[k, ..., :14] = 0.9 * 255 if k else 255
    results = []
    for dtype in (torch.float32, torch.float64):
        i, j = (image.to(dtype).requires_grad_() for image in images)
        value = LNCCLoss()(i, j)
        results.append((value.detach().double(), *(g.double() for g in torch.autograd.grad(value, (i, j)))))
    (value, *gradients), (exact, *exact_gradients) = results
    assert value.item() == pytest.approx(exact.item(), abs=1e-6)
    # Where one image alone is flat its gradient is what rounding makes of a large quotient, but it stays small.
    for k, (gradient, expected) in enumerate(zip(gradients, exact_gradients, strict=True)):
        allowed = 1e-5 if len(flat) == 2 or k not in flat else 1.0
        assert (gradient - expected).norm() <= allowed * expected.norm()


def test_autocast_and_half_precision_inputs_compute_in_float32() -> None:
    i, j = _pair(1, 1, 8, 9, 7, dtype=torch.float32)
    i, j = i.bfloat16(), j.bfloat16()
    x = i.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = LNCCLoss(kernel_size=3)(x, j)
    value.backward()
    assert value.dtype == torch.float32
    assert x.grad is not None and x.grad.dtype == torch.bfloat16
    torch.testing.assert_close(value, LNCCLoss(kernel_size=3)(i.float(), j.float()))


def test_non_contiguous_images_give_the_same_value_and_gradient() -> None:
    i, j = _pair(1, 2, 6, 7, 8)
    x, y = i.clone().requires_grad_(), i.permute(0, 1, 4, 3, 2).contiguous().permute(0, 1, 4, 3, 2).requires_grad_()
    LNCCLoss(kernel_size=3)(x, j).backward()
    LNCCLoss(kernel_size=3)(y, j.flip(2).flip(2)).backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_gradient_follows_the_factor_of_the_loss_and_survives_a_second_backward() -> None:
    i, j = _pair(1, 1, 6, 5)
    x = i.clone().requires_grad_()
    value = 3 * LNCCLoss(2, 3)(x, j)
    (first,) = torch.autograd.grad(value, x, retain_graph=True)
    (second,) = torch.autograd.grad(value, x)
    (single,) = torch.autograd.grad(LNCCLoss(2, 3)(x, j), x)
    torch.testing.assert_close(first, 3 * single)
    torch.testing.assert_close(first, second)


def test_no_history_without_gradients() -> None:
    i, j = _pair(1, 1, 6, 5)
    assert not LNCCLoss(2, 3)(i, j).requires_grad
    with torch.no_grad():
        assert not LNCCLoss(2, 3)(i.requires_grad_(), j).requires_grad


@pytest.mark.parametrize(
    "arguments", [{"kernel_size": 4}, {"kernel_size": 0}, {"spatial_dims": 1}, {"statistics": "max"}]
)
def test_bad_settings_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(arguments))}="):
        LNCCLoss(**arguments)


@pytest.mark.parametrize("size", [(9, 8), (9, 8, 7)])
def test_number_of_axes_is_that_of_the_images(size: tuple[int, ...]) -> None:
    i, j = torch.rand(2, 2, 1, *size, generator=torch.Generator().manual_seed(0))
    for statistics in ("sum", "mean"):
        taken, stated = (LNCCLoss(dims, 3, statistics=statistics)(i, j) for dims in (None, len(size)))
        assert taken.item() == stated.item() < 1


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"spatial_dims=3 got an image of shape \(1, 1, 4, 4\)"):
        LNCCLoss(3)(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match="pass .batch, channels, 2 or 3 spatial axes"):
        LNCCLoss()(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4))
    with pytest.raises(ValueError, match="resample one to the other's grid"):
        LNCCLoss()(torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 1, 4, 4, 5))
