# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.spatial import gather
from common.spatial.coordinates import sampling_grid
from common.spatial.gather import sample_channels
from common.spatial.warp import MANY_CHANNELS, warp

SHAPES = [((7, 6, 5), (6, 7, 8)), ((9, 8), (7, 6)), ((4, 3, 5), (1, 3, 2))]


def _inputs(grid: tuple[int, ...], source: tuple[int, ...], scale: float = 2.0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    image = torch.randn(2, MANY_CHANNELS + 1, *source, dtype=torch.float64, requires_grad=True)
    ddf = (scale * torch.randn(2, len(grid), *grid, dtype=torch.float64)).requires_grad_()
    return image, ddf


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
@pytest.mark.parametrize(("grid", "source"), SHAPES)
def test_many_channels_equal_grid_sample(
    grid: tuple[int, ...], source: tuple[int, ...], padding_mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather, "PIECE", 50)
    image, ddf = _inputs(grid, source)
    expected = F.grid_sample(image, sampling_grid(ddf.detach(), source), padding_mode=padding_mode, align_corners=True)
    torch.testing.assert_close(warp(image, ddf, padding_mode=padding_mode), expected)


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
@pytest.mark.parametrize(("grid", "source"), [((3, 2, 3), (2, 3, 4)), ((3, 4), (4, 3)), ((2, 2, 2), (1, 3, 2))])
def test_gradients_are_exact(grid: tuple[int, ...], source: tuple[int, ...], padding_mode: str) -> None:
    assert torch.autograd.gradcheck(lambda x, u: warp(x, u, padding_mode=padding_mode), _inputs(grid, source))


@pytest.mark.parametrize("position", [1e30, -1e30, float("inf")])
def test_far_outside_there_is_nothing(position: float) -> None:
    image = torch.randn(1, MANY_CHANNELS, 3, 4, 5)
    ddf = torch.full((1, 3, 3, 4, 5), position)
    assert not sample_channels(image, ddf, zeros=True).any()
    assert sample_channels(image, ddf, zeros=False).isfinite().all()


def test_result_has_channels_last() -> None:
    image = torch.randn(1, MANY_CHANNELS, 3, 4, 5)
    result = warp(image, torch.zeros(1, 3, 3, 4, 5))
    assert result.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(result, image)
