# SPDX-License-Identifier: Apache-2.0
"""Self-similarity contexts against a loop over voxels, and what they are invariant to."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from common.losses import MINDSSCLoss


def textbook(image: NDArray[np.float64], radius: int, dilation: int) -> NDArray[np.float64]:
    """Channels of one image, (channels, *spatial)."""
    dims, last = image.ndim, np.array(image.shape) - 1
    ways = [sign * np.eye(dims, dtype=int)[axis] for axis in range(dims) for sign in (-1, 1)]
    pairs = [(p, q) for p, q in itertools.combinations(ways, 2) if ((p - q) ** 2).sum() == 2]
    channels = np.empty((len(pairs), *image.shape))
    for x in np.ndindex(*image.shape):
        for k, (p, q) in enumerate(pairs):
            total = []
            for step in itertools.product(range(-radius, radius + 1), repeat=dims):
                centre = np.clip(np.array(x) + step, 0, last)
                ends = [image[tuple(np.clip(centre + dilation * way, 0, last))] for way in (p, q)]
                total.append((ends[0] - ends[1]) ** 2)
            channels[(k, *x)] = np.mean(total)
    channels -= channels.min(0)
    variance = channels.mean(0)
    found: NDArray[np.float64] = np.exp(-channels / np.clip(variance, 1e-3 * variance.mean(), 1e3 * variance.mean()))
    return found


@pytest.mark.parametrize(("shape", "radius", "dilation"), [((6, 7), 2, 2), ((7, 5), 1, 1), ((4, 5, 4), 1, 2)])
def test_contexts_are_those_of_the_definition(shape: tuple[int, ...], radius: int, dilation: int) -> None:
    images = torch.rand((2, 1, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss = MINDSSCLoss(radius, dilation)
    found = loss.context(images)
    expected = np.stack([textbook(image, radius, dilation) for image in images[:, 0].numpy()])
    assert found.shape[1] == {2: 4, 3: 12}[len(shape)]
    # The order of the channels is no matter.
    # Sums of some float64 around 1 in another order.
    np.testing.assert_allclose(np.sort(found.numpy(), axis=1), np.sort(expected, axis=1), rtol=0, atol=1e-12)
    mask = torch.zeros(1, 1, *shape)
    mask[..., 1:3] = 2
    square = (expected[:1] - expected[1:]) ** 2
    assert loss(images[:1], images[1:]).item() == pytest.approx(square.mean(), abs=1e-12)
    inside = (square * (mask.numpy() != 0)).mean()
    assert 0 < inside < square.mean() and loss(images[:1], images[1:], mask).item() == pytest.approx(inside, abs=1e-12)


def test_contrast_does_not_matter() -> None:
    image = torch.rand(1, 1, 8, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert MINDSSCLoss()(image, 5 - 3 * image).item() == pytest.approx(0, abs=1e-12)
    assert MINDSSCLoss()(image, image.flip(2)).item() > 1e-3


def test_gradient_is_exact_and_finite_for_a_constant_image() -> None:
    images = [torch.rand(1, 1, 5, 6, generator=torch.Generator().manual_seed(k)).double() for k in (0, 1)]
    # The typical variance counts as a constant: where it limits nothing, it has no part in the gradient.
    assert torch.autograd.gradcheck(MINDSSCLoss(1, 1), [image.requires_grad_() for image in images])
    pred = torch.full((1, 1, 6, 7, 8), 0.3, requires_grad=True)
    loss = MINDSSCLoss()(pred, torch.rand(1, 1, 6, 7, 8))
    loss.backward()
    assert loss.isfinite() and pred.grad is not None and pred.grad.isfinite().all()
