# SPDX-License-Identifier: Apache-2.0
"""Local cross-correlation with weights of voxels against its definition in plain torch."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.checks import InputError
from common.losses import LNCCLoss


def case(*size: int, batch: int = 1, channels: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(len(size))
    images = torch.rand((2, batch, channels, *size), generator=generator, dtype=torch.float64)
    weight = torch.rand((batch, 1, *size), generator=generator, dtype=torch.float64)
    return images[0], images[1], torch.where(weight > 0.4, weight, 0)


def plain(pred: Tensor, target: Tensor, weight: Tensor, size: int, eps: float, form: tuple[str, str]) -> Tensor:
    """Weighted moments of every window, centred, of images with zeros and weights of 1 around them."""
    dims = pred.ndim - 2
    convolve, padding = (F.conv2d, F.conv3d)[dims - 2], [size // 2] * (2 * dims)
    window = pred.new_ones(1, 1, *[size] * dims)
    around = F.pad(weight, padding, value=1.0)
    results = []
    for channel in range(pred.shape[1]):
        i, j = (F.pad(image[:, channel : channel + 1], padding) for image in (pred, target))
        n = convolve(around, window).clamp(min=1e-3)
        (mean_i, mean_j), (ii, jj, ij) = (
            [convolve(around * x, window) / n for x in maps] for maps in ((i, j), (i * i, j * j, i * j))
        )
        a, b, c = ii - mean_i**2, jj - mean_j**2, ij - mean_i * mean_j
        if form[0] == "sum":
            a, b, c = n * a, n * b, n * c
        product = (a * b).clamp(min=eps) if form[1] == "max" else a * b + eps
        results.append(c**2 / product)
    cc = torch.cat(results, 1)
    return 1 - torch.stack([(w * x).sum() / w.expand_as(x).sum() for w, x in zip(weight, cc, strict=True)]).mean()


@pytest.mark.parametrize("form", [*itertools.product(("sum", "mean"), ("add", "max"))])
@pytest.mark.parametrize(("size", "window"), [((6, 9, 7), 3), ((4, 3, 5), 5), ((9, 12), 5), ((3, 4), 7)])
def test_value_and_gradients_are_those_of_the_definition(
    size: tuple[int, ...], window: int, form: tuple[str, str]
) -> None:
    pred, target, weight = case(*size, batch=2, channels=2)
    eps = 0.0049 if form[0] == "mean" else 0.0049 * window ** (2 * len(size))
    loss = LNCCLoss(len(size), window, eps=eps, statistics=form[0], guard=form[1])
    pred.requires_grad_()
    target.requires_grad_()
    value, expected = loss(pred, target, weight), plain(pred, target, weight, window, eps, form)
    # Window sums of float64 in another order.
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(value, (pred, target)),
        torch.autograd.grad(expected, (pred, target)),
        rtol=1e-8,  # Sums of some hundred float64 that cancel.
        atol=1e-12,
    )


@pytest.mark.parametrize("size", [(5, 4, 3), (7, 6)])
def test_gradients_to_both_images_are_exact(size: tuple[int, ...]) -> None:
    pred, target, weight = case(*size, batch=2)
    loss = LNCCLoss(kernel_size=3, eps=0.01)
    for images in ((pred.requires_grad_(), target), (pred.detach(), target.requires_grad_()), (pred, target)):
        assert torch.autograd.gradcheck(loss, (*images, weight))


@pytest.mark.parametrize("statistics", ["sum", "mean"])
def test_weights_of_one_are_no_weights(statistics: str) -> None:
    results = []
    for weights in (lambda x: None, torch.ones_like, lambda x: torch.ones(x.shape, dtype=torch.bool)):
        pred, target, weight = (x.float() for x in case(8, 9, 7))
        pred.requires_grad_()
        value = LNCCLoss(kernel_size=5, statistics=statistics)(pred, target, weights(weight))
        results.append((value.detach(), *torch.autograd.grad(value, pred)))
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[1], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_voxels_of_weight_0_may_hold_anything(dtype: torch.dtype) -> None:
    pred, target, weight = (x.to(dtype) for x in case(9, 8, 11))
    weight[..., 3:7] = 0  # Wider than the window.
    results = []
    for outside in (0.0, -1e30):
        images = [image.where(weight > 0, outside).requires_grad_() for image in (pred, target)]
        value = LNCCLoss(kernel_size=3)(*images, weight)
        results.append((value.detach(), *torch.autograd.grad(value, images)))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
    for gradient in results[0][1:]:
        assert gradient.isfinite().all() and torch.equal(gradient == 0, weight == 0)


def test_value_and_gradient_do_not_depend_on_the_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for slab in (1, 1 << 11, 1 << 22):
        monkeypatch.setattr("common.losses.lncc_stream._CPU_SLAB", slab)
        pred, target, weight = case(23, 6, 5)
        value = LNCCLoss(kernel_size=5)(pred.requires_grad_(), target.requires_grad_(), weight)
        results.append((value.detach(), *torch.autograd.grad(value, (pred, target))))
    for other in results[1:]:
        # Sums of float64 in another order.
        torch.testing.assert_close(other, results[0], rtol=1e-10, atol=1e-14)


def test_a_sample_without_weights_resembles_nothing() -> None:
    pred, target, weight = case(6, 7, batch=2)
    weight[1] = 0
    pred.requires_grad_()
    value = LNCCLoss(kernel_size=3)(pred, target, weight)
    alone = LNCCLoss(kernel_size=3)(pred[:1], target[:1], weight[:1])
    assert value.item() == pytest.approx((alone.item() + 1) / 2)
    assert not torch.autograd.grad(value, pred)[0][1].any()


def test_weights_of_another_grid_are_refused() -> None:
    pred, target, weight = case(6, 7)
    with pytest.raises(InputError, match=r"LNCCLoss got images of shape \(1, 1, 6, 7\) and a weight of shape"):
        LNCCLoss()(pred, target, weight[..., 1:])
