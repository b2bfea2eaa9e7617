# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks compare with is the same function as ours, in value and in gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.losses import WarpedDiceLoss, image_pyramid
from scripts import benchmark
from scripts.textbook import StoredGridWarp, blurred_pyramid, one_hot_dice

SIZE = (32, 48, 32)


def assert_close_in_norm(a: Tensor, b: Tensor, allowed: float) -> None:
    assert (a - b).norm() <= allowed * b.norm()


def test_training_steps_of_the_benchmark_have_one_loss_and_one_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    # It would change the allocator of the process.
    monkeypatch.setattr("common.engine.memory.keep_freed_memory", lambda: None)
    torch.manual_seed(0)
    textbook, textbook_loss, textbook_forward = benchmark._published(SIZE, 4)
    ours, our_loss, our_forward = benchmark._ours("ours, float32", 4)
    for one, other in zip(textbook.parameters(), ours.parameters(), strict=True):
        one.data.copy_(other.data)
    moving, fixed = torch.rand((2, 1, 1, *SIZE))
    totals = [loss(moving, fixed) for loss in (textbook_loss, our_loss)]
    assert totals[1].item() == pytest.approx(totals[0].item(), rel=2e-6)
    for total in totals:
        total.backward()
    # Normalisation takes biases in front of it out again: their gradients are rounding.
    pairs = [
        (a, b)
        for (name, a), b in zip(ours.named_parameters(), textbook.parameters(), strict=True)
        if not ("encoder" in name and name.endswith("bias"))
    ]
    assert len(pairs) == 36
    for a, b in pairs:
        assert_close_in_norm(a.grad, b.grad, 1e-3)
    with torch.no_grad():
        assert_close_in_norm(our_forward(moving, fixed), textbook_forward(moving, fixed)[1][0], 1e-4)


def test_one_hot_dice_is_the_warped_dice_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (2, 1, 1, 3, 4, 3), generator=generator).float()
    moving, fixed = (F.interpolate(label, size=(12, 14, 11)).to(torch.uint8) for label in labels)
    ddf = torch.randn((1, 3, 12, 14, 11), generator=generator).requires_grad_()
    expected = one_hot_dice(moving, fixed, ddf, 4, StoredGridWarp((12, 14, 11)))
    value = WarpedDiceLoss(4)(moving, fixed, ddf)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_close_in_norm(torch.autograd.grad(value, ddf)[0], torch.autograd.grad(expected, ddf)[0], 1e-4)


def test_dense_blur_makes_the_image_pyramid() -> None:
    image = torch.rand((1, 2, 32, 48, 34), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(blurred_pyramid(image, 4), image_pyramid(image, 4), rtol=0, atol=1e-6)
