# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from itertools import permutations, product

import nibabel
import numpy as np
import pytest
import torch

from common.spatial.upright import upright

TURN = np.linalg.qr(np.array([[1.0, 0.2, -0.1], [-0.15, 1.0, 0.25], [0.1, -0.2, 1.0]]))[0]
STORED = [(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]


@pytest.mark.parametrize(("order", "signs"), STORED)
def test_every_way_of_storing_comes_out_as_nibabel_has_it(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    affine = np.eye(4)
    affine[:3, :3] = (TURN * np.array([1.0, 2.0, 3.0]))[:, order] * signs
    affine[:3, 3] = (7, -5, 3)
    image = np.random.default_rng(0).random((4, 5, 6))
    expected = nibabel.as_closest_canonical(nibabel.Nifti1Image(image, affine))
    turned, matrix = upright(torch.from_numpy(image)[None], torch.from_numpy(affine))
    np.testing.assert_array_equal(turned[0], np.asarray(expected.dataobj))
    # A NIfTI header holds float32.
    np.testing.assert_allclose(matrix, expected.affine, atol=1e-5)
