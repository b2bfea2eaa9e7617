# SPDX-License-Identifier: Apache-2.0
"""Pyramids against an explicit dense convolution followed by interpolation."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from common.losses import ImagePyramid, image_pyramid, label_pyramid


def _taps(sigma: float) -> torch.Tensor:
    weights = torch.tensor([math.exp(-(k**2) / (2 * sigma**2)) for k in range(-2, 3)], dtype=torch.float64)
    return weights / weights.sum()


def _one_hot(label: torch.Tensor, classes: int) -> torch.Tensor:
    return F.one_hot(label[:, 0].long(), classes).movedim(-1, 1).float()


@pytest.mark.parametrize(("kernel", "sigmas"), [("published", (1, math.inf, 0.5**0.5)), ("isotropic", (1, 1, 1))])
def test_levels_equal_dense_blur_and_interpolation(kernel: str, sigmas: tuple[float, ...]) -> None:
    image = torch.rand(2, 2, 12, 13, 9, dtype=torch.float64)
    weights = torch.einsum("i,j,k->ijk", *[_taps(sigma) for sigma in sigmas])[None, None].repeat(2, 1, 1, 1, 1)
    level = image
    for result in image_pyramid(image, 3, kernel)[1:]:
        level = F.conv3d(level, weights, padding=2, groups=2)
        level = F.interpolate(level, scale_factor=0.5, mode="trilinear", align_corners=True)
        torch.testing.assert_close(result, level, rtol=1e-12, atol=1e-14)


def test_two_dimensions_and_in_plane_form() -> None:
    image = torch.rand(1, 1, 10, 9, 3, dtype=torch.float64)
    weights = torch.outer(_taps(1), _taps(1))[None, None]
    blurred = [F.conv2d(image[..., k], weights, padding=2) for k in range(3)]
    slices = [F.interpolate(plane, scale_factor=0.5, mode="bilinear", align_corners=True) for plane in blurred]
    in_plane = image_pyramid(image, 2, "isotropic", axes=(0, 1))[1]
    torch.testing.assert_close(in_plane, torch.stack(slices, dim=-1), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(image_pyramid(image[..., 0], 2)[1], slices[0], rtol=1e-12, atol=1e-14)


def test_finest_level_is_the_image_and_gradients_pass() -> None:
    image = torch.rand(1, 1, 6, 5, 4, dtype=torch.float64, requires_grad=True)
    assert image_pyramid(image, 1)[0] is image
    assert torch.autograd.gradcheck(lambda x: image_pyramid(x, 3)[2], (image,))


def test_non_contiguous_images_and_autocast() -> None:
    image = torch.rand(1, 1, 8, 6, 10)
    turned = image.transpose(2, 4).contiguous().transpose(2, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        level = image_pyramid(turned, 2)[1]
    assert level.dtype == torch.float32
    torch.testing.assert_close(level, image_pyramid(image, 2)[1])


@pytest.mark.parametrize("shape", [(13, 8, 9), (11, 10)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_label_pyramid_equals_the_pyramid_of_the_one_hot_map(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    label = torch.randint(0, 4, (2, 1, *shape), generator=torch.Generator().manual_seed(0)).to(dtype)
    label[label == 2] = 5
    label[0, 0, 3:5] = 6
    expected = image_pyramid(_one_hot(label, 8), 3)[1:]
    result = label_pyramid(label, 8, 3)
    assert len(result) == 2
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)


def test_label_pyramid_in_plane_keeps_the_other_axis() -> None:
    label = torch.randint(0, 4, (1, 1, 8, 9, 5))
    label[..., 1:3] = 3
    expected = image_pyramid(_one_hot(label, 4), 2, "isotropic", axes=(0, 1))[1]
    torch.testing.assert_close(label_pyramid(label, 4, 2, "isotropic", axes=(0, 1))[0], expected, rtol=0, atol=1e-6)


def test_recipe_object_gives_images_and_labels() -> None:
    label = torch.randint(0, 3, (1, 1, 8, 8))
    pyramid = ImagePyramid(num_classes=3)
    levels = pyramid.labels(label, 3)
    assert levels[0] is label
    assert [tuple(level.shape) for level in levels[1:]] == [(1, 3, 4, 4), (1, 3, 2, 2)]
    assert [level.shape[2] for level in pyramid(label.float(), 3)] == [8, 4, 2]
    with pytest.raises(ValueError, match="has no num_classes"):
        ImagePyramid().labels(label, 2)


def test_bad_input_is_refused() -> None:
    image = torch.zeros(1, 1, 8, 8, 4)
    with pytest.raises(ValueError, match="pyramid of 4 levels"):
        image_pyramid(image, 4)
    with pytest.raises(ValueError, match="pyramid of 0 levels"):
        image_pyramid(image, 0)
    with pytest.raises(ValueError, match="kernel='box'"):
        image_pyramid(image, 2, "box")
    with pytest.raises(ValueError, match=r"axes=\(3,\)"):
        image_pyramid(image, 2, axes=(3,))
    with pytest.raises(ValueError, match="1 spatial axes"):
        image_pyramid(torch.zeros(1, 1, 8), 2)
    with pytest.raises(ValueError, match="label contains the label 7"):
        label_pyramid(torch.full((1, 1, 4, 4), 7), 3, 2)
