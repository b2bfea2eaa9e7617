# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from common.engine.export import exported
from common.spatial import resize_image
from common.tracing import is_traced, same_size, without_autocast

SAID: list[bool] = []


class _Says(nn.Module):
    """Takes down what the functions say while it is recorded; recorders put its own attributes back."""

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[2]
        SAID[:] = [is_traced(), same_size([n, 3], [n, 3]), same_size([n], [5]), same_size([2 * n], [n + 5])]
        with without_autocast(x):
            return x * 2


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_what_is_known_of_sizes_while_a_network_is_recorded() -> None:
    says, x = _Says(), torch.rand(1, 1, 5)
    says(x)
    assert SAID == [False, True, True, True]
    torch.jit.trace(says, x, check_trace=False)
    assert SAID == [True, True, True, True]
    program = torch.export.export(says, (x,), dynamic_shapes=({2: torch.export.Dim.DYNAMIC},))
    # Of a symbol it is not known that it is 5.
    assert SAID == [True, True, False, False]
    assert "autocast" not in str(program.graph)
    assert program.module()(torch.rand(1, 1, 9)).shape == (1, 1, 9)


def test_without_autocast_types_are_kept() -> None:
    x = torch.rand(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with without_autocast(x):
            assert (x @ x).dtype == torch.float32


class _Resizes(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        size = [2 * image.shape[2], (image.shape[3] + 1) // 2, image.shape[4]]
        return resize_image(image, size)


def test_an_image_is_resized_the_same_way_when_exported() -> None:

    image = torch.rand(1, 2, 5, 8, 6)
    module = exported(_Resizes(), image).module()
    for size in ((5, 8, 6), (3, 1, 1), (9, 2, 4)):
        image = torch.rand(1, 2, *size)
        torch.testing.assert_close(module(image), _Resizes()(image))
