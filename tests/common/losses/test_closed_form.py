# SPDX-License-Identifier: Apache-2.0
"""Scalars that carry a gradient computed beforehand."""

from __future__ import annotations

import torch

from common.losses.closed_form import computing_dtype, with_gradient


def test_given_gradients_are_propagated_to_the_inputs_that_have_one() -> None:
    a, b = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    value = with_gradient(torch.tensor(5.0), [a, b], [torch.tensor([1.0, 2.0, 3.0]), None])
    assert value.item() == 5
    (2 * value).backward()
    torch.testing.assert_close(a.grad, torch.tensor([2.0, 4.0, 6.0]))
    assert b.grad is None


def test_value_without_gradients_has_no_history() -> None:
    assert not with_gradient(torch.tensor(5.0), [torch.ones(1)], [None]).requires_grad


def test_half_precision_computes_in_float32_and_double_in_double() -> None:
    half, double = torch.ones(1, dtype=torch.float16), torch.ones(1, dtype=torch.float64)
    assert computing_dtype(half, half) == torch.float32
    assert computing_dtype(half, double) == torch.float64
