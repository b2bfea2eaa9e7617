# SPDX-License-Identifier: Apache-2.0
"""Local correlation, against loops over voxels and offsets."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from common.blocks import correlation_lines
from common.blocks.correlation import local_correlation, reversed_correlation
from common.checks import InputError

SIZES = {2: (4, 3), 3: (2, 4, 3)}
each_window = pytest.mark.parametrize(("dims", "radius"), [(2, 1), (2, 2), (3, 1), (3, 2)])
each_padding = pytest.mark.parametrize("padding_mode", ["zeros", "border"])


def features(dims: int, channels: int = 3, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(dims)
    one, other = torch.randn((2, batch, channels, *SIZES[dims]), generator=generator, dtype=torch.float64)
    return one.requires_grad_(), other.requires_grad_()


def voxel_by_voxel(reference: Tensor, searched: Tensor, radius: int, padding_mode: str) -> np.ndarray:
    a, b = (x.detach().movedim(1, -1).numpy() for x in (reference, searched))
    size = a.shape[1:-1]
    offsets = list(itertools.product(range(-radius, radius + 1), repeat=len(size)))
    result = np.zeros((*a.shape[:-1], len(offsets)))
    for place in np.ndindex(a.shape[:-1]):
        sample, *p = place
        for k, offset in enumerate(offsets):
            q = [i + o for i, o in zip(p, offset, strict=True)]
            nearest = [min(max(i, 0), n - 1) for i, n in zip(q, size, strict=True)]
            if padding_mode == "border" or q == nearest:
                result[(*place, k)] = a[place] @ b[(sample, *nearest)] / a.shape[-1] ** 0.5
    return np.moveaxis(result, -1, 1)


@each_window
@each_padding
@pytest.mark.parametrize("piece", [1, 400, 2**18])
def test_every_voxel_meets_its_neighbours(
    dims: int, radius: int, padding_mode: Any, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(correlation_lines, "_CPU_PIECE", piece)
    images = features(dims)
    expected = torch.from_numpy(voxel_by_voxel(*images, radius, padding_mode))
    torch.testing.assert_close(local_correlation(*images, radius, padding_mode).detach(), expected)


@each_window
@each_padding
@pytest.mark.parametrize("piece", [60, 2**18])
def test_gradients_are_exact(
    dims: int, radius: int, padding_mode: Any, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(correlation_lines, "_CPU_PIECE", piece)
    images = features(dims, channels=2, batch=1)
    # Along random directions: entry by entry the thousands of products of a large window take minutes.
    directions = dims == 3 or radius > 1
    correlate = functools.partial(local_correlation, radius=radius, padding_mode=padding_mode)
    assert torch.autograd.gradcheck(correlate, images, fast_mode=directions)


@each_window
@each_padding
def test_reversal_is_the_correlation_of_the_exchanged_images(dims: int, radius: int, padding_mode: Any) -> None:
    one, other = (x.detach() for x in features(dims))
    found = reversed_correlation(local_correlation(one, other, radius, padding_mode), radius, padding_mode)
    torch.testing.assert_close(found, local_correlation(other, one, radius, padding_mode), rtol=0, atol=1e-14)


@each_window
@each_padding
def test_gradient_of_the_reversal_is_exact(dims: int, radius: int, padding_mode: Any) -> None:
    one, other = features(dims)
    correlation = local_correlation(one, other, radius, padding_mode)
    cotangent = torch.randn(correlation.shape, dtype=torch.float64)
    reverse = reversed_correlation(correlation, radius, padding_mode)
    found = torch.autograd.grad(reverse, (one, other), cotangent)
    expected = torch.autograd.grad(local_correlation(other, one, radius, padding_mode), (one, other), cotangent)
    torch.testing.assert_close(found, expected)
    # Linear, so that one number checks the gradient at what the images cannot make, too.
    leaf = torch.randn(correlation.shape, dtype=torch.float64, requires_grad=True)
    reverse = reversed_correlation(leaf, radius, padding_mode)
    (gradient,) = torch.autograd.grad(reverse, leaf, cotangent)
    torch.testing.assert_close((gradient * leaf).sum(), (cotangent * reverse).sum())


@each_padding
def test_axis_shorter_than_the_window(padding_mode: Any) -> None:
    one, other = torch.randn(2, 1, 3, 1, 2, 5, dtype=torch.float64)
    found = local_correlation(one, other, 2, padding_mode)
    torch.testing.assert_close(found, torch.from_numpy(voxel_by_voxel(one, other, 2, padding_mode)))
    exchanged = local_correlation(other, one, 2, padding_mode)
    torch.testing.assert_close(reversed_correlation(found, 2, padding_mode), exchanged)


@pytest.mark.parametrize("dims", [2, 3])
def test_what_lies_in_memory_in_which_order_makes_no_difference(dims: int) -> None:
    images = features(dims)
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    last = [x.detach().contiguous(memory_format=layout).requires_grad_() for x in images]
    found = [local_correlation(*x) for x in (images, last)]
    torch.testing.assert_close(*found)
    for x in found:
        x.square().sum().backward()
    torch.testing.assert_close([x.grad for x in images], [x.grad for x in last])


@pytest.mark.parametrize("dims", [2, 3])
def test_half_precision_is_computed_in_float32(dims: int) -> None:
    one, other = (x.detach().bfloat16().requires_grad_() for x in features(dims))
    with torch.autocast("cpu", torch.bfloat16):
        found = local_correlation(one, other)
        assert reversed_correlation(found).dtype == torch.float32
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, local_correlation(one.float(), other.float()), rtol=0, atol=0)
    found.sum().backward()
    assert one.grad is not None and one.grad.dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(("dims", "padding_mode"), [(2, "border"), (3, "zeros")])
def test_traced_form_is_the_same(dims: int, padding_mode: Any) -> None:
    def both(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        found = local_correlation(one, other, 1, padding_mode)
        return found, reversed_correlation(found, 1, padding_mode)

    images = tuple(x.detach().float() for x in features(dims))
    torch.testing.assert_close(torch.jit.trace(both, images)(*images), both(*images))


@pytest.mark.parametrize("shape", [(2, 3, 4, 2), (1, 3, 4, 3), (2, 2, 4, 3), (2, 3, 4, 3, 1)])
def test_features_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"expected \(B, C, \*spatial\) twice"):
        local_correlation(torch.zeros(2, 3, 4, 3), torch.zeros(shape))


@pytest.mark.parametrize("radius", [0, -1, 1.5, True, "1"])
def test_radius_that_is_no_whole_number_from_1_is_refused(radius: Any) -> None:
    x = torch.zeros(1, 9, 4, 3)
    for call in (lambda: local_correlation(x, x, radius), lambda: reversed_correlation(x, radius)):
        with pytest.raises(InputError, match="give a whole number from 1"):
            call()


def test_unknown_padding_is_refused() -> None:
    x, mode = torch.zeros(1, 9, 4, 3), "reflection"
    # The type checker would refuse what a configuration may say.
    for call in (lambda: local_correlation(x, x, 1, mode), lambda: reversed_correlation(x, 1, mode)):  # type: ignore[arg-type]
        with pytest.raises(InputError, match="choose zeros or border"):
            call()


@pytest.mark.parametrize("shape", [(1, 9, 4), (1, 9, 3, 4, 3), (1, 27, 4, 3)])
def test_correlation_of_another_window_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="A correlation of radius 1 has shape"):
        reversed_correlation(torch.zeros(shape))
