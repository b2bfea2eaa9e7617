# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import pytest
import torch
from monai.networks.nets.swin_unetr import window_partition
from torch import Tensor

from common.blocks.swin import SwinBlock, SwinEncoder, places_in_windows, shift_mask


def token_by_token(block: SwinBlock, x: Tensor) -> Tensor:
    """The branch of attention of one sample (*grid, C), for each token over those of its window, as described."""
    window, shift = block.window_size, block.shift_size
    grid = [-(-n // w) * w for n, w in zip(x.shape, window, strict=False)]
    normal = torch.zeros(*grid, x.shape[-1], dtype=x.dtype)
    normal[tuple(slice(n) for n in x.shape[:-1])] = block.norm1(x)
    attention = block.attn
    # Where a token comes to lie is where its window is; tokens that have come round the border are of another region.
    places = list(itertools.product(*(range(n) for n in grid)))
    rolled = {p: tuple((i - s) % n for i, s, n in zip(p, shift, grid, strict=True)) for p in places}
    groups: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for p in places:
        groups.setdefault(tuple(i // w for i, w in zip(rolled[p], window, strict=True)), []).append(p)
    result = torch.zeros_like(normal)
    heads, table = attention.num_heads, attention.relative_position_bias_table
    for members in groups.values():
        q, k, v = attention.qkv(torch.stack([normal[p] for p in members])).view(len(members), 3, heads, -1).unbind(1)
        for i, p in enumerate(members):
            scores = torch.einsum("hc,nhc->nh", q[i], k) * q.shape[-1] ** -0.5
            for j, other in enumerate(members):
                row = 0
                for a, b, w in zip(rolled[p], rolled[other], window, strict=True):
                    row = row * (2 * w - 1) + a - b + w - 1
                came_round = [(c < s) != (d < s) for c, d, s in zip(p, other, shift, strict=True)]
                scores[j] = scores[j] + table[row] - 100 * any(came_round)
            result[p] = attention.proj(torch.einsum("nh,nhc->hc", scores.softmax(0), v).flatten())
    return result[tuple(slice(n) for n in x.shape[:-1])]


@pytest.mark.parametrize(
    ("grid", "window"),
    [((4, 6), (2, 3)), ((3, 5), (4, 2)), ((4, 4), (4, 4)), ((4, 3), (2, 1)), ((3, 2, 4), (2, 3, 2))],
)
@pytest.mark.parametrize("shifted", [False, True])
def test_attention_is_that_of_each_token_over_its_window(
    grid: tuple[int, ...], window: tuple[int, ...], shifted: bool
) -> None:
    torch.manual_seed(0)
    block = SwinBlock(4, 2, window, shifted, qkv_bias=True, drop_path=0.0).double()
    block.attn.relative_position_bias_table.data.normal_()
    x = torch.randn(2, *grid, 4, dtype=torch.float64)
    mask = shift_mask(grid, window, x.device).double()
    with torch.no_grad():
        expected = torch.stack([token_by_token(block, sample) for sample in x])
        torch.testing.assert_close(block.forward_part1(x, mask), expected)
    # With gradients it goes another way.
    torch.testing.assert_close(block.forward_part1(x, mask).detach(), expected)


def test_grids_halve_and_channels_double() -> None:
    encoder = SwinEncoder(2, 2, 4, (1, 2, 1), (1, 2, 4), (2, 3), False, 0.3, (0, 2))
    features = encoder(torch.rand(3, 2, 32, 16))
    assert {i: tuple(x.shape) for i, x in features.items()} == {0: (3, 4, 8, 4), 2: (3, 16, 2, 1)}
    blocks = [module for module in encoder.modules() if isinstance(module, SwinBlock)]
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3]) and encoder.unit == 16


@pytest.mark.parametrize(("grid", "window"), [((6, 4), (3, 2)), ((4, 3, 6), (2, 3, 2)), ((2, 2, 2), (2, 2, 2))])
def test_tokens_are_numbered_as_they_lie_in_windows(grid: tuple[int, ...], window: tuple[int, ...]) -> None:
    x = torch.rand(2, *grid, 3)
    places = places_in_windows(grid, window, x.device)
    tokens = x.flatten(1, -2)[:, places.argsort()]
    assert torch.equal(tokens.flatten(0, 1), window_partition(x, window).flatten(0, 1))
    assert torch.equal(tokens[:, places].view_as(x), x)
