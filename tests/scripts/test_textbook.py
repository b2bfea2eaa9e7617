# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks compare with is the same function as ours, in value and in gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.blocks.vector_field_attention import expected_offset
from common.losses import WarpedDiceLoss, image_pyramid
from scripts.textbook import StoredGridWarp, blurred_pyramid, one_hot_dice
from scripts.textbook_vfa import unfolded_attention


def assert_close_in_norm(a: Tensor, b: Tensor, allowed: float) -> None:
    assert (a - b).norm() <= allowed * b.norm()


def test_unfolded_attention_is_the_expected_offset() -> None:
    query, key = torch.randn(1, 3, 4, 5, 6), torch.randn(1, 3, 6, 7, 8)
    torch.testing.assert_close(unfolded_attention(query, key), expected_offset(query, key))


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
