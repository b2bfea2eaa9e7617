# SPDX-License-Identifier: Apache-2.0
"""Codes of pairs: their sizes, and where they come from."""

from __future__ import annotations

import logging
import math

import pytest
import torch
import torch.nn.functional as F

from common.blocks.hybrid_code import CodeTable, HybridEncoder, halved, random_code


@pytest.mark.parametrize("size", [(17, 12), (17, 12, 9)])
def test_local_code_comes_from_its_level(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    encoder = HybridEncoder(size, (2, 3, 4), 1, 5).eval()
    code = encoder(torch.rand(2, 2, *size))
    assert code.shared.shape == (2, 5) and code.local.shape == (2, 5, *(5, 3, 3)[: len(size)])
    assert encoder.hidden.in_features == 4 * math.prod((3, 2, 2)[: len(size)])


def test_halving_rounds_up() -> None:
    sizes = [175]
    for _ in range(6):
        sizes.append((sizes[-1] + 1) // 2)
    assert [halved((175,), k)[0] for k in range(7)] == sizes == [175, 88, 44, 22, 11, 6, 3]


def test_images_of_another_size_are_resampled_and_the_log_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    encoder, image = HybridEncoder((16, 12), (2, 3), 0, 4).eval(), torch.rand(1, 2, 31, 12)
    with caplog.at_level(logging.WARNING), torch.no_grad():
        found = encoder(image), encoder(image)
        expected = encoder(F.interpolate(image, size=(16, 12), mode="bilinear", align_corners=True))
    for one, other in zip(found[0], expected, strict=True):
        torch.testing.assert_close(one, other)
    assert [record.message for record in caplog.records] == [
        "The encoder is made for images of 16 x 12 voxels, those of its training: it sees these, of 31 x 12, resampled "
        "to that size, and may register them worse."
    ]


def test_codes_are_single_precision_under_autocast() -> None:
    encoder = HybridEncoder((16, 16), (2, 3), 0, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        code = encoder(torch.rand(1, 2, 16, 16))
    assert {part.dtype for part in code} == {torch.float32}


def test_constant_images_have_a_code_and_a_gradient() -> None:
    encoder = HybridEncoder((16, 16), (2, 3), 0, 4)
    code = encoder(torch.zeros(1, 2, 16, 16))
    (code.shared.norm() + code.local.norm()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_rows_of_a_table_are_drawn_as_published_and_chosen_by_number() -> None:
    torch.manual_seed(0)
    table = CodeTable(random_code(50, 16, (4, 3)))
    for values in (table.shared, table.local):
        assert values.std().item() == pytest.approx(1 / 4, rel=0.1)
    code = table(torch.tensor([3, 3, 0]))
    assert torch.equal(code.shared[1], table.shared[3]) and torch.equal(code.local[2], table.local[0])
    code.shared.sum().backward()
    assert table.shared.grad is not None
    assert table.shared.grad.abs().sum(1).nonzero().flatten().tolist() == [0, 3]
