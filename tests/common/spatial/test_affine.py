# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch

from common.spatial.affine import affine_in_voxels, followed_by_affine, normalised_spacing


def test_longest_extent_has_length_two() -> None:
    assert normalised_spacing((224, 192), None) == (2 / 224, 2 / 224)
    assert normalised_spacing((10, 16, 4), (2.0, 1.0, 1.5)) == (2 * 2 / 20, 2 * 1 / 20, 2 * 1.5 / 20)


def test_identity_stays_and_translation_is_counted_in_voxels() -> None:
    matrix = torch.eye(3)[None].repeat(2, 1, 1)
    ddf = torch.randn(2, 2, 5, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(followed_by_affine(ddf, affine_in_voxels(matrix, (5, 7))), ddf, rtol=0, atol=1e-5)
    matrix[:, 0, 2] = 2 / 7
    moved = followed_by_affine(ddf, affine_in_voxels(matrix, (5, 7)))
    torch.testing.assert_close(moved[:, 0], ddf[:, 0] + 1, rtol=0, atol=1e-5)
    torch.testing.assert_close(moved[:, 1], ddf[:, 1], rtol=0, atol=1e-5)


def test_scaling_leaves_the_middle_where_it_is() -> None:
    matrix = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0]))[None]
    voxels = affine_in_voxels(matrix, (5, 7, 9), (1.0, 2.0, 3.0))
    ddf = followed_by_affine(torch.zeros(1, 3, 5, 7, 9), voxels)
    torch.testing.assert_close(ddf[0, :, 2, 3, 4], torch.zeros(3))
    torch.testing.assert_close(ddf[0, :, 4, 6, 8], torch.tensor([2.0, 3.0, 4.0]))


def test_coarse_grid_is_moved_in_voxels_of_the_image() -> None:
    matrix = affine_in_voxels(torch.diag(torch.tensor([1.5, 0.5, 1.0]))[None], (8, 12))
    fine = followed_by_affine(torch.zeros(1, 2, 8, 12), matrix)
    coarse = followed_by_affine(torch.zeros(1, 2, 4, 6), matrix, 2)
    pooled = torch.nn.functional.avg_pool2d(fine, 2)
    torch.testing.assert_close(coarse, pooled)
