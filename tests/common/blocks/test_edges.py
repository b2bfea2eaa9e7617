# SPDX-License-Identifier: Apache-2.0
"""Edges of images of any contrast."""

from __future__ import annotations

import pytest
import torch

from common.blocks.edges import edges


@pytest.mark.parametrize("size", [(24, 20), (12, 10, 16)])
def test_they_are_the_same_of_inverted_and_of_darker_images(size: tuple[int, ...]) -> None:
    image = torch.rand(2, 2, *size, generator=torch.Generator().manual_seed(0))
    found = edges(image)
    assert found.shape == image.shape and 0 <= found.min() and found.max() < 1
    # float32: 1 - image and its blur are rounded by 6e-8, which is 5e-6 of edges where the image is as flat as here.
    torch.testing.assert_close(edges(1 - image), found, rtol=0, atol=2e-5)
    # What counts as faint does not shrink with the contrast: of 0.3 it takes up to 0.0043 off.
    torch.testing.assert_close(edges(0.5 + 0.3 * image), found, rtol=0, atol=5e-3)


def test_a_step_is_found_where_it_is_and_nothing_elsewhere() -> None:
    image = torch.zeros(1, 1, 32, 32)
    image[..., 16:] = 1
    found = edges(image)[0, 0]
    assert (found.argmax(1) == 15).all() and found[:, 15].min() > 0.5
    assert found[:, :8].max() < 1e-5 and found[:, 24:].max() < 1e-5


def test_each_image_is_compared_with_itself_alone() -> None:
    image = torch.rand(1, 2, 16, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(edges(image)[:, :1], edges(image[:, :1]))
    assert torch.isfinite(edges(torch.zeros(1, 2, 8, 8, requires_grad=True))).all()
