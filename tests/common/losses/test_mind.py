# SPDX-License-Identifier: Apache-2.0
"""Self-similarity contexts against a loop over voxels, and what they are invariant to."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.checks import InputError
from common.losses import MINDSSCLoss, mind_stream

Array = NDArray[np.float64]


def textbook(image: Array, radius: int, dilation: int, weight: Array | None = None) -> tuple[Array, Array]:
    """Channels of one image, (channels, *spatial), and how much each voxel counts."""
    dims, counts = image.ndim, np.ones_like(image) if weight is None else weight
    ways = [tuple(sign * (k == axis) for k in range(dims)) for axis in range(dims) for sign in (-1, 1)]
    pairs = [
        (p, q) for p, q in itertools.combinations(ways, 2) if sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) == 2
    ]

    def moved(place: tuple[int, ...], step: tuple[int, ...], times: int = 1) -> tuple[int, ...]:
        return tuple(min(max(a + times * b, 0), n - 1) for a, b, n in zip(place, step, image.shape, strict=True))

    channels, known = np.zeros((2, len(pairs), *image.shape))
    for x in np.ndindex(*image.shape):
        for k, (p, q) in enumerate(pairs):
            for step in itertools.product(range(-radius, radius + 1), repeat=dims):
                one, other = (moved(moved(x, step), way, dilation) for way in (p, q))
                share = counts[one] * counts[other]
                known[(k, *x)] += share
                channels[(k, *x)] += share * (image[one] - image[other]) ** 2
    channels /= np.where(known > 0, known, 1)
    channels -= channels.min(0)
    counts = counts * (known > 0).all(0)
    variance = channels.mean(0)
    typical = (counts * variance).sum() / counts.sum()
    return np.exp(-channels / np.clip(variance, 1e-3 * typical, 1e3 * typical)), counts


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def partly(*shape: int) -> Tensor:
    """Weights, of which some are 0 and some 1."""
    return (1.6 * drawn(*shape, seed=7) - 0.3).clamp(0, 1)


@pytest.mark.parametrize(("shape", "radius", "dilation"), [((6, 7), 2, 2), ((7, 5), 1, 1), ((4, 5, 4), 1, 2)])
def test_contexts_are_those_of_the_definition(shape: tuple[int, ...], radius: int, dilation: int) -> None:
    images = drawn(2, 1, *shape)
    loss = MINDSSCLoss(radius, dilation)
    found = loss.context(images)
    expected = np.stack([textbook(image, radius, dilation)[0] for image in images[:, 0].numpy()])
    assert found.shape[1] == {2: 4, 3: 12}[len(shape)]
    # The order of the channels is no matter.
    # Sums of some float64 around 1 in another order.
    np.testing.assert_allclose(np.sort(found.numpy(), axis=1), np.sort(expected, axis=1), rtol=0, atol=1e-12)
    square = (expected[:1] - expected[1:]) ** 2
    assert loss(images[:1], images[1:]).item() == pytest.approx(square.mean(), abs=1e-12)


@pytest.mark.parametrize(("shape", "radius", "dilation"), [((9, 8), 1, 2), ((9, 8), 2, 1), ((4, 6, 5), 1, 1)])
def test_weighted_patches_are_those_of_the_definition(shape: tuple[int, ...], radius: int, dilation: int) -> None:
    images, weight = drawn(2, 1, *shape), partly(1, 1, *shape)
    (first, counts), (second, _) = (textbook(x, radius, dilation, weight[0, 0].numpy()) for x in images[:, 0].numpy())
    assert 0 < (counts > 0).mean() < 1
    expected = (counts * ((first - second) ** 2).mean(0)).sum() / counts.sum()
    found = MINDSSCLoss(radius, dilation)(images[:1], images[1:], weight)
    # The rounding of float64.
    assert found.item() == pytest.approx(expected, abs=1e-12)


SIZES = [(1, 4, 3), (23, 6, 7), (9, 14), (3, 2)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("radius", "dilation"), [(2, 2), (0, 1), (3, 1)])
def test_value_and_gradients_are_those_of_contexts_in_any_slabs(
    size: tuple[int, ...], radius: int, dilation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = MINDSSCLoss(radius, dilation)
    images = [drawn(2, 1, *size, seed=k).requires_grad_() for k in (0, 1)]
    contexts = [loss.context(image) for image in images]
    expected = (contexts[0] - contexts[1]).square().mean()
    gradients = torch.autograd.grad(expected, images)
    for slab, part, kept in ((1, 7, 1 << 20), (1 << 10, 64, 0), (1 << 17, 1 << 13, 0)):
        monkeypatch.setattr(mind_stream, "_CPU_SLAB", slab)
        monkeypatch.setattr(mind_stream, "_CPU_PART", part)
        monkeypatch.setattr(mind_stream, "_KEPT", kept)
        value = loss(*images)
        # Sums of some float64 in another order.
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(torch.autograd.grad(value, images), gradients, rtol=1e-9, atol=1e-13)


def test_contrast_does_not_matter() -> None:
    image = drawn(1, 1, 8, 9, seed=1)
    assert MINDSSCLoss()(image, 5 - 3 * image).item() == pytest.approx(0, abs=1e-12)
    assert MINDSSCLoss()(image, image.flip(2)).item() > 1e-3


@pytest.mark.parametrize("shape", [(2, 1, 5, 6), (1, 1, 4, 3, 5)])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_are_exact(shape: tuple[int, ...], weighted: bool) -> None:
    images = [drawn(*shape, seed=k).requires_grad_() for k in (0, 1)]
    weight = partly(shape[0], 1, *shape[2:]) if weighted else None
    # The typical variance counts as a constant: where it limits nothing, it has no part in the gradient.
    assert torch.autograd.gradcheck(lambda x, y: MINDSSCLoss(1, 1)(x, y, weight), images, fast_mode=True)


def test_gradient_is_finite_for_a_constant_image() -> None:
    for weight in (None, torch.ones(1, 1, 6, 7, 8)):
        pred = torch.full((1, 1, 6, 7, 8), 0.3, requires_grad=True)
        loss = MINDSSCLoss()(pred, torch.rand(1, 1, 6, 7, 8), weight)
        loss.backward()
        assert loss.isfinite() and pred.grad is not None and pred.grad.isfinite().all()


def test_voxels_without_weight_have_no_influence() -> None:
    shape = (1, 1, 12, 11, 10)
    pred, target = drawn(*shape), drawn(*shape, seed=1)
    weight = torch.ones(shape)
    weight[..., 3:8, 4:9, :] = 0
    results = []
    for outside in (0.0, 1e6, torch.nan):
        moving = torch.where(weight > 0, pred, outside).requires_grad_()
        value = MINDSSCLoss()(moving, torch.where(weight > 0, target, outside), weight)
        results.append((value.detach(), *torch.autograd.grad(value, moving)))
    gradient = results[0][1]
    assert gradient.isfinite().all() and gradient[weight > 0].all() and not gradient[weight == 0].any()
    for found in results[1:]:
        assert all(one.equal(other) for one, other in zip(found, results[0], strict=True))
    ones = MINDSSCLoss()(pred, target, torch.ones(shape))
    # The rounding of float64: a weight of 1 is multiplied by.
    torch.testing.assert_close(ones, MINDSSCLoss()(pred, target), rtol=1e-12, atol=1e-14)


def test_samples_without_weights_count_as_nothing() -> None:
    pred, target, weight = drawn(2, 1, 7, 8), drawn(2, 1, 7, 8, seed=1), torch.ones(2, 1, 7, 8)
    weight[1] = 0
    value = MINDSSCLoss(1, 1)(pred.requires_grad_(), target, weight)
    value.backward()
    assert value.item() == pytest.approx(MINDSSCLoss(1, 1)(pred[:1], target[:1]).item() / 2)
    assert pred.grad is not None and pred.grad[0].any() and not pred.grad[1].any()


def test_other_images_and_weights_are_refused() -> None:
    image = drawn(1, 1, 6, 7)
    for bad, sentence in (
        ((image, image[..., 1:]), "resample one to the other's grid"),
        ((image.expand(1, 2, 6, 7),) * 2, "2 or 3 spatial axes"),
        ((image[0], image[0]), "2 or 3 spatial axes"),
        ((image, image, image[..., 1:]), "one weight per voxel"),
    ):
        with pytest.raises(InputError, match=sentence):
            MINDSSCLoss()(*bad)
