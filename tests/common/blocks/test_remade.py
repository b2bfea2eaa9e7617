# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gc
import weakref

import torch

from common.blocks.remade import Remade, not_stored


def test_tensor_is_made_again_and_its_gradient_is_the_same() -> None:
    x, factor = torch.arange(1.0, 5.0).requires_grad_(), torch.arange(2.0, 6.0).requires_grad_()
    made: list[int] = []

    def again() -> torch.Tensor:
        made.append(1)
        return x.detach().exp()

    y = Remade(x.exp(), again)
    with not_stored(y):
        total = (y.value * factor).sum()
    assert not made
    total.backward()
    assert len(made) == 1
    torch.testing.assert_close(factor.grad, x.detach().exp())
    torch.testing.assert_close(x.grad, factor.detach() * x.detach().exp())


def test_tensor_is_not_kept() -> None:
    x, factor = torch.ones(4), torch.ones(4).requires_grad_()
    y = Remade(x + 1, lambda: x + 1)
    alive = weakref.ref(y.value.untyped_storage())
    with not_stored(y):
        total = (y.value * factor).sum()
    del y
    gc.collect()
    assert alive() is None
    total.backward()
    torch.testing.assert_close(factor.grad, torch.full((4,), 2.0))


def test_other_tensors_and_other_shapes_of_the_same_memory_are_stored() -> None:
    x, factor = torch.arange(4.0), torch.ones(2, 2).requires_grad_()

    def never() -> torch.Tensor:
        raise AssertionError

    with not_stored(Remade(x, never)):
        total = (x.view(2, 2) * factor).sum()
    total.backward()
    torch.testing.assert_close(factor.grad, x.view(2, 2))
