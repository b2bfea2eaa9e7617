# SPDX-License-Identifier: Apache-2.0
"""What the indices of windows tell."""

from __future__ import annotations

import pytest
import torch

from common.checks import InputError
from common.weights.swin_unet import position_index, window_of


@pytest.mark.parametrize("window", [(2, 3, 4), (1, 1, 2), (5, 6, 7), (3, 2), (4, 4)])
def test_windows_are_told_by_their_indices(window: tuple[int, ...]) -> None:
    patch = torch.zeros(4, 2, *[4] * len(window))
    state = {
        "transformer.patch_embed.proj.weight": patch,
        "a.attn.relative_position_index": position_index(window),
    }
    assert window_of(state) == {"window": [*window]}
    with pytest.raises(InputError, match="not the index of any window"):
        window_of({**state, "a.attn.relative_position_index": position_index(window).flip(0)})
    with pytest.raises(InputError, match="windows of several sizes"):
        window_of({**state, "b.attn.relative_position_index": position_index([n + 1 for n in window])})
