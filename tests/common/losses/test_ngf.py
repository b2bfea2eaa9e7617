# SPDX-License-Identifier: Apache-2.0
"""Normalised gradient fields against their definition in plain torch, and what they are invariant to."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.checks import InputError
from common.losses import NGFLoss


def case(*size: int, batch: int = 1, channels: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(len(size))
    images = torch.rand((2, batch, channels, *size), generator=generator, dtype=torch.float64)
    weight = torch.rand((batch, 1, *size), generator=generator, dtype=torch.float64)
    return images[0], images[1], torch.where(weight > 0.1, weight, 0)


def plain(pred: Tensor, target: Tensor, edge: float, weight: Tensor | None = None) -> Tensor:
    """Of each sample and channel with ``torch.gradient``."""
    values = []
    for b in range(pred.shape[0]):
        least = torch.ones_like(pred[b, 0]) if weight is None else weight[b, 0]
        around = F.pad(least, [1] * (2 * least.ndim), value=1.0)
        for axis in range(least.ndim):
            lines = [slice(1, -1)] * least.ndim
            for place in (slice(0, -2), slice(2, None)):
                least = torch.minimum(least, around[tuple(lines[:axis] + [place] + lines[axis + 1 :])])
        for c in range(pred.shape[1]):
            slopes = [torch.stack(torch.gradient(image[b, c])) for image in (pred, target)]
            sizes = [slope.square().sum(0) for slope in slopes]
            etas = [edge * (least * size.sqrt()).sum() / least[size > 0].sum() for size in sizes]
            ngf = (slopes[0] * slopes[1]).sum(0) ** 2 / (sizes[0] + etas[0] ** 2) / (sizes[1] + etas[1] ** 2)
            values.append((least * ngf).sum() / least.sum())
    return 1 - torch.stack(values).mean()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", [(9, 7), (6, 5, 7)])
def test_value_and_gradients_are_those_of_the_definition(size: tuple[int, ...], weighted: bool) -> None:
    pred, target, weight = case(*size, batch=2, channels=2)
    pred.requires_grad_()
    target.requires_grad_()
    value = NGFLoss(0.7)(pred, target, weight if weighted else None)
    expected = plain(pred, target, 0.7, weight if weighted else None)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(
        torch.autograd.grad(value, (pred, target)), torch.autograd.grad(expected, (pred, target))
    )


@pytest.mark.parametrize("size", [(5, 6), (4, 3, 5), (2, 1, 4)])
def test_gradients_to_both_images_are_exact(size: tuple[int, ...]) -> None:
    pred, target, weight = case(*size)
    for images in ((pred.requires_grad_(), target), (pred.detach(), target.requires_grad_()), (pred, target)):
        assert torch.autograd.gradcheck(NGFLoss(), images)
        assert torch.autograd.gradcheck(NGFLoss(), (*images, weight.clamp(min=0.1)))


def test_value_and_gradient_do_not_depend_on_the_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for slab in (1, 90, 1 << 17):
        monkeypatch.setattr("common.losses.ngf._CPU_SLAB", slab)
        pred, target, weight = case(11, 6, 5)
        value = NGFLoss()(pred.requires_grad_(), target, weight)
        results.append((value.detach(), *torch.autograd.grad(value, pred)))
    for other in results[1:]:
        # Sums of float64 in another order.
        torch.testing.assert_close(other, results[0], rtol=1e-10, atol=1e-14)


def test_contrast_and_an_empty_background_make_no_difference_to_the_sum() -> None:
    pred, target, _ = case(9, 8, 7)
    pred, target = (F.pad(image, [2] * 6) for image in (pred, target))
    value = NGFLoss()(pred, target)
    torch.testing.assert_close(NGFLoss()(-100 * pred + 3, 0.01 * target), value)
    wide = NGFLoss()(*(F.pad(image, [3] * 6) for image in (pred, target)))
    size, more = (torch.tensor([n + extra for n in (13, 12, 11)]).prod() for extra in (0, 6))
    torch.testing.assert_close((1 - wide) * more, (1 - value) * size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_of_one_are_none_and_voxels_of_weight_0_may_hold_anything(dtype: torch.dtype) -> None:
    pred, target, weight = (x.to(dtype) for x in case(9, 8, 7))
    ones = torch.ones_like(weight, dtype=torch.bool)
    torch.testing.assert_close(NGFLoss()(pred, target, ones), NGFLoss()(pred, target), rtol=0, atol=0)
    results = []
    for outside in (0.0, -1e30):
        images = [image.where(weight > 0, outside).requires_grad_() for image in (pred, target)]
        value = NGFLoss()(*images, weight)
        results.append((value.detach(), *torch.autograd.grad(value, images)))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
    assert all(not gradient[weight == 0].any() and gradient.any() for gradient in results[0][1:])


def test_flat_images_and_samples_without_weights_resemble_nothing() -> None:
    pred, target, weight = case(6, 7, batch=2)
    pred[0], weight[1] = 0.25, 0
    pred.requires_grad_()
    value = NGFLoss()(pred, target, weight)
    assert value.item() == 1 and not torch.autograd.grad(value, pred)[0].any()


def test_half_precision_is_computed_in_float32() -> None:
    pred, target, _ = case(6, 7)
    assert NGFLoss()(pred.half(), target.half()).dtype == torch.float32


def test_bad_input_is_refused() -> None:
    pred, target, weight = case(6, 7)
    with pytest.raises(InputError, match="edge=0; give a number above 0"):
        NGFLoss(0)
    with pytest.raises(InputError, match="NGFLoss got pred of shape"):
        NGFLoss()(pred, target[..., 1:])
    with pytest.raises(InputError, match="and a weight of shape"):
        NGFLoss()(pred, target, weight[..., 1:])
    with pytest.raises(InputError, match="NGFLoss got images of shape"):
        NGFLoss()(pred[0], target[0])
