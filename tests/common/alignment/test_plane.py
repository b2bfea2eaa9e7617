# SPDX-License-Identifier: Apache-2.0
"""Images of two dimensions are aligned within their plane."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from common.alignment.affine import align
from common.checks import InputError
from common.spatial import Grid, resample


def scene() -> tuple[Tensor, Grid]:
    """An ellipse of smooth noise, pixels of 1 x 1.2 mm whose second axis runs to the back."""
    noise = torch.rand(1, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    pattern = torch.nn.functional.interpolate(noise, (90, 80), mode="bicubic")[0]
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 90), torch.linspace(-1, 1, 80), indexing="ij")
    inside = (rows / 0.7) ** 2 + (columns / 0.55) ** 2 < 1
    return ((pattern + 0.5) * inside)[..., None], Grid.of((90, 80), torch.diag(torch.tensor([1.0, -1.2, 1.0, 1.0])))


@pytest.mark.parametrize(("degrees", "scale"), [(115, 1.0), (17, 0.8)])
def test_a_known_map_is_found_in_the_plane(degrees: float, scale: float) -> None:
    fixed, grid = scene()
    cosine, sine = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    known = torch.eye(4, dtype=torch.float64)
    known[:2, :2] = torch.tensor([[cosine, -sine], [sine, 1.1 * cosine]])
    known[:2, 3] = torch.tensor([40.0, -70.0])
    affine = torch.diag(torch.tensor([1.5, 1.5, 1.0, 1.0], dtype=torch.float64))
    middle = known @ torch.tensor([45.0, -48, 0, 1], dtype=torch.float64)
    affine[:2, 3] = middle[:2] - torch.tensor([75.0, 82.0], dtype=torch.float64)
    moving_grid = Grid.of((100, 110), affine)
    moving = resample(fixed[None], grid, moving_grid, torch.linalg.inv(known))[0]
    found = align(moving, moving_grid, fixed, grid)
    assert found.converged and found.similarity_after > 0.95
    points = torch.tensor([[20.0, -30, 0, 1], [60, -60, 0, 1], [50, -20, 0, 1]], dtype=torch.float64)
    assert float((points @ (found.matrix - known).T).norm(dim=1).max()) < 0.3
    torch.testing.assert_close(found.matrix[2], known[2])
    torch.testing.assert_close(found.matrix[:, 2], known[:, 2])


def test_an_image_and_a_volume_are_not_aligned() -> None:
    image, grid = scene()
    volume = Grid(grid.shape, grid.affine)
    with pytest.raises(InputError, match="the moving image is 3D, but the fixed image is 2D"):
        align(image, volume, image, grid)
