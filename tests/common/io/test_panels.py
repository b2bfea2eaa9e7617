# SPDX-License-Identifier: Apache-2.0
"""The picture of a registered pair: what is drawn where."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from common.io.panels import COLUMNS, as_rgb, panel

SHAPES = [(12, 10), (12, 10, 14)]


def images(shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    fixed, moving, warped = torch.rand((3, 1, *shape), generator=torch.Generator().manual_seed(0))
    return fixed, moving, warped


def draw(shape: Sequence[int], ddf: Tensor | None = None, title: str = "") -> tuple[Figure, list[list[Axes]]]:
    fixed, moving, warped = images(shape)
    figure = panel(fixed, moving, warped, torch.zeros(len(shape), *shape) if ddf is None else ddf, title)
    axes = figure.axes
    return figure, [axes[i : i + len(COLUMNS)] for i in range(0, len(axes), len(COLUMNS))]


def shown(axis: Axes) -> np.ndarray:
    (image,) = axis.get_images()
    return np.asarray(image.get_array())


@pytest.mark.parametrize(("shape", "rows"), [(SHAPES[0], 1), (SHAPES[1], 3)])
def test_rows_are_planes_and_columns_are_named(shape: tuple[int, ...], rows: int) -> None:
    _, axes = draw(shape)
    assert [len(row) for row in axes] == [6] * rows
    assert [axis.get_title() for axis in axes[0]] == list(COLUMNS)


def test_rows_are_the_middle_slices_with_the_first_axis_to_the_right_and_the_second_up() -> None:
    _, axes = draw(SHAPES[1])
    fixed, moving, warped = (x[0].numpy() for x in images(SHAPES[1]))
    middle = [(slice(None), slice(None), 7), (slice(None), 5), (6,)]
    for row, place in zip(axes, middle, strict=True):
        pictures = [fixed, moving, warped, moving - fixed, warped - fixed]
        for axis, picture in zip(row, pictures, strict=False):
            np.testing.assert_allclose(shown(axis), picture[place].T, atol=1e-6)
            assert axis.get_images()[0].origin == "lower"


def test_images_share_one_grey_scale_and_differences_one_scale_about_zero() -> None:
    fixed, moving, warped = (x * 500 - 200 for x in images(SHAPES[1]))
    figure = panel(fixed, moving, warped, torch.zeros(3, *SHAPES[1]))
    limits = [axis.get_images()[0].get_clim() for axis in figure.axes if axis.get_images()]
    greys, signed = ({limits[row * 5 + k] for row in range(3) for k in columns} for columns in ((0, 1, 2), (3, 4)))
    ((low, high),) = greys
    assert -201 < low < -190 and 290 < high < 301
    ((below, above),) = signed
    assert below == -above


def test_one_bright_voxel_does_not_darken_the_rest() -> None:
    fixed, moving, warped = images((30, 40))
    fixed[0, 3, 4] = 1000
    figure = panel(fixed, moving, warped, torch.zeros(2, 30, 40))
    assert figure.axes[0].get_images()[0].get_clim()[1] < 2


def test_constant_images_can_be_drawn() -> None:
    zero = torch.zeros(1, *SHAPES[0])
    assert as_rgb(panel(zero, zero, zero, torch.zeros(2, *SHAPES[0]))).dtype == torch.uint8


@pytest.mark.parametrize("shape", SHAPES)
def test_grid_is_shifted_by_the_displacement_within_the_plane(shape: tuple[int, ...]) -> None:
    shift = torch.tensor([1.5, -2.0, 0.25])[: len(shape)]
    _, axes = draw(shape, shift.view(-1, *[1] * len(shape)).expand(-1, *shape))
    planes = [(0, 1)] if len(shape) == 2 else [(0, 1), (0, 2), (1, 2)]
    for row, (across, up) in zip(axes, planes, strict=True):
        points = np.concatenate([line.get_xydata() for line in row[-1].get_lines()])
        assert set(points[:, 0]) == {n + float(shift[across]) for n in range(shape[across])}
        assert set(points[:, 1]) == {n + float(shift[up]) for n in range(shape[up])}
        assert row[-1].get_xlim() == row[0].get_xlim() and row[-1].get_ylim() == row[0].get_ylim()


def test_large_grid_is_thinned_out() -> None:
    _, axes = draw((160, 96))
    assert len(axes[0][-1].get_lines()) == 160 // 5 + -(-96 // 5)


@pytest.mark.parametrize("shape", SHAPES)
def test_picture_is_three_channels_of_bytes_and_not_blank(shape: tuple[int, ...]) -> None:
    picture = as_rgb(draw(shape, title="moving to fixed")[0])
    assert picture.dtype == torch.uint8 and picture.ndim == 3 and picture.shape[0] == 3
    assert picture.float().std() > 10


def test_title_stands_above_the_picture() -> None:
    assert draw(SHAPES[0], title="moving to fixed")[0].get_suptitle() == "moving to fixed"
    assert draw(SHAPES[0])[0].get_suptitle() == ""


def test_tensors_with_gradient_and_in_half_precision_can_be_drawn() -> None:
    fixed, moving, warped = (x.bfloat16() for x in images(SHAPES[1]))
    ddf = torch.zeros(3, *SHAPES[1], requires_grad=True)
    assert len(panel(fixed, moving, warped.requires_grad_(), ddf).axes) == 18


def test_drawing_opens_no_window() -> None:
    import matplotlib.pyplot as plt

    draw(SHAPES[0])
    assert plt.get_fignums() == []
