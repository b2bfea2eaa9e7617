# SPDX-License-Identifier: Apache-2.0
"""The picture of a registered pair: what is drawn where."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from common.report.panels import COLUMNS, DETERMINANTS, FOLDED, as_png, as_rgb, panel, preview
from common.spatial import identity_grid, jacobian_determinant

SHAPES = [(12, 10), (12, 10, 14)]


def images(shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    fixed, moving, warped = torch.rand((3, 1, *shape), generator=torch.Generator().manual_seed(0))
    return fixed, moving, warped


def draw(shape: Sequence[int], ddf: Tensor | None = None, title: str = "") -> tuple[Figure, list[list[Axes]]]:
    fixed, moving, warped = images(shape)
    figure = panel(moving, fixed, warped, torch.zeros(len(shape), *shape) if ddf is None else ddf, title)
    *axes, _ = figure.axes
    return figure, [axes[i : i + len(COLUMNS)] for i in range(0, len(axes), len(COLUMNS))]


def draw_images(fixed: Tensor, moving: Tensor, warped: Tensor) -> tuple[Figure, list[list[Axes]]]:
    figure = panel(moving, fixed, warped, torch.zeros(3, *fixed.shape[1:]))
    return figure, [figure.axes[i : i + len(COLUMNS)] for i in range(0, 3 * len(COLUMNS), len(COLUMNS))]


def shown(axis: Axes) -> np.ndarray:
    (image,) = axis.get_images()
    return np.asarray(image.get_array())


@pytest.mark.parametrize(("shape", "rows"), [(SHAPES[0], 1), (SHAPES[1], 3)])
def test_rows_are_planes_and_columns_are_named(shape: tuple[int, ...], rows: int) -> None:
    _, axes = draw(shape)
    assert [len(row) for row in axes] == [7] * rows
    assert [axis.get_title() for axis in axes[0]] == list(COLUMNS)


def test_rows_are_the_middle_slices_with_the_first_axis_to_the_right_and_the_second_up() -> None:
    _, axes = draw(SHAPES[1])
    fixed, moving, warped = (x[0].numpy() for x in images(SHAPES[1]))
    middle = [(slice(None), slice(None), 7), (slice(None), 5), (6,)]
    low, high = zip(*[np.quantile(x, (0.001, 0.999)) for x in (fixed, moving)], strict=True)
    stretched = [(x - low[k]) / (high[k] - low[k]) for x, k in ((fixed, 0), (moving, 1), (warped, 1))]
    for row, place in zip(axes, middle, strict=True):
        pictures = [fixed, moving, warped, stretched[1] - stretched[0], stretched[2] - stretched[0]]
        for axis, picture in zip(row, pictures, strict=False):
            np.testing.assert_allclose(shown(axis), picture[place].T, atol=1e-6)
            assert axis.get_images()[0].origin == "lower"


def test_differences_do_not_depend_on_the_scale_of_either_scanner() -> None:
    fixed, moving, warped = images(SHAPES[1])
    ddf = torch.zeros(3, *SHAPES[1])
    plain = panel(moving, fixed, warped, ddf).axes
    scaled = panel(moving * 7 + 3, fixed * 500 - 200, warped * 7 + 3, ddf).axes
    for column in (3, 4):
        np.testing.assert_allclose(shown(scaled[column]), shown(plain[column]), atol=1e-5)
        below, above = plain[column].get_images()[0].get_clim()
        assert below == -above


def test_moving_and_warped_image_share_one_grey_scale_in_all_planes() -> None:
    fixed, moving, warped = images(SHAPES[1])
    _, axes = draw_images(fixed, moving * 500 - 200, warped * 100)
    limits = {axis.get_images()[0].get_clim() for row in axes for axis in row[1:3]}
    ((low, high),) = limits
    assert -201 < low < -190 and 290 < high < 301
    assert all(row[0].get_images()[0].get_clim()[1] <= 1 for row in axes)


def test_maps_stand_before_the_last_column_with_the_ends_of_their_colours() -> None:
    fixed, moving, warped = images((30, 40))
    values = 0.25 + 0.75 * torch.linspace(0, 1, 1200).view(1, 30, 40)
    figure = panel(moving, fixed, warped, torch.zeros(2, 30, 40), maps={"mm": values, "way": torch.ones(2, 30, 40)})
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[6:9] == ["mm: 0.25 to 1", "way: 1.4 to 1.4", COLUMNS[-1]]
    # The ends are the quantiles 0.001 and 0.999: 0.00075 from those of an even scale of 0.75.
    assert figure.axes[6].get_images()[0].get_clim() == pytest.approx((0.25, 1), abs=1e-3)


def test_one_bright_voxel_does_not_darken_the_rest() -> None:
    fixed, moving, warped = images((30, 40))
    fixed[0, 3, 4] = 1000
    figure = panel(moving, fixed, warped, torch.zeros(2, 30, 40))
    assert figure.axes[0].get_images()[0].get_clim()[1] < 2


def test_rows_of_a_picture_can_run_down() -> None:
    fixed, moving, warped = images(SHAPES[0])
    usual, turned = (panel(moving, fixed, warped, torch.zeros(2, *SHAPES[0]), downwards=way) for way in (False, True))
    for one, other in zip(usual.axes[: len(COLUMNS)], turned.axes, strict=False):
        assert one.get_ylim() == other.get_ylim()[::-1] and one.get_xlim() == other.get_xlim()


def test_constant_images_can_be_drawn() -> None:
    zero = torch.zeros(1, *SHAPES[0])
    assert as_rgb(panel(zero, zero, zero, torch.zeros(2, *SHAPES[0]))).dtype == torch.uint8


@pytest.mark.parametrize("shape", SHAPES)
def test_grid_is_shifted_by_the_displacement_within_the_plane(shape: tuple[int, ...]) -> None:
    shift = torch.tensor([1.5, -2.0, 0.25])[: len(shape)]
    _, axes = draw(shape, shift.view(-1, *[1] * len(shape)).expand(-1, *shape))
    planes = [(0, 1)] if len(shape) == 2 else [(0, 1), (0, 2), (1, 2)]
    for row, (across, up) in zip(axes, planes, strict=True):
        points = np.concatenate([line.get_xydata() for line in row[5].get_lines()])
        assert set(points[:, 0]) == {n + float(shift[across]) for n in range(shape[across])}
        assert set(points[:, 1]) == {n + float(shift[up]) for n in range(shape[up])}
        assert row[5].get_xlim() == row[0].get_xlim() and row[5].get_ylim() == row[0].get_ylim()


@pytest.mark.parametrize("shape", SHAPES)
def test_grid_is_made_of_the_slices_alone(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def counted(size: Sequence[int]) -> Tensor:
        made.append(tuple(size))
        return identity_grid(size)

    monkeypatch.setattr("common.report.panels.identity_grid", counted)
    draw(shape)
    assert made == ([shape] if len(shape) == 2 else [shape[:2], shape[::2], shape[1:]])


@pytest.mark.parametrize("shape", SHAPES)
def test_folding_stands_out_and_other_determinants_are_on_a_logarithmic_scale(shape: tuple[int, ...]) -> None:
    ddf = torch.zeros(len(shape), *shape)
    # Across the first axis: a stretch by 2 in one half, a fold at the middle.
    steps = torch.arange(shape[0]).view(-1, *[1] * (len(shape) - 1)).float()
    ddf[0] = torch.where(steps < 6, steps, -2 * steps)
    _, axes = draw(shape, ddf)
    picture = axes[0][6].get_images()[0]
    across = np.asarray(picture.get_array())[3]
    np.testing.assert_allclose(across[:5], 2, rtol=1e-6)
    assert (across[5:] < DETERMINANTS[0]).all()
    colours = picture.cmap(picture.norm(across))
    assert matplotlib.colors.to_hex(colours[8]) == FOLDED
    assert FOLDED not in {matplotlib.colors.to_hex(colour) for colour in picture.cmap(np.linspace(0, 1, 64))}


def test_determinant_of_a_slice_is_that_of_the_volume() -> None:
    ddf = torch.rand((3, *SHAPES[1]), generator=torch.Generator().manual_seed(0))
    volume = jacobian_determinant(ddf[None])[0, 0].numpy()
    _, axes = draw(SHAPES[1], ddf)
    low, high = DETERMINANTS
    for row, place in zip(axes, [(slice(None), slice(None), 7), (slice(None), 5), (6,)], strict=True):
        picture, expected = shown(row[6]), volume[place].T
        unfolded = expected > 0
        np.testing.assert_allclose(picture[unfolded], expected[unfolded].clip(low, high), atol=1e-5)
        assert (picture[~unfolded] < low).all()


def test_strong_shrinking_is_not_taken_for_folding() -> None:
    ddf = torch.zeros(2, *SHAPES[0])
    ddf[0] = -0.9 * torch.arange(12.0).view(-1, 1)
    _, axes = draw(SHAPES[0], ddf)
    np.testing.assert_allclose(shown(axes[0][6]), DETERMINANTS[0])


def test_slices_have_the_proportions_of_millimetres() -> None:
    fixed, moving, warped = images(SHAPES[1])
    axes = panel(moving, fixed, warped, torch.zeros(3, *SHAPES[1]), spacing=(1.5, 2.0, 10.0)).axes
    for row, aspect in enumerate((2 / 1.5, 10 / 1.5, 10 / 2)):
        assert {axis.get_aspect() for axis in axes[7 * row : 7 * row + 7]} == {aspect}


def test_grid_has_a_line_for_every_thick_slice() -> None:
    scan = torch.rand(1, 96, 96, 6)
    axes = panel(scan, scan, scan, torch.zeros(3, *scan.shape[1:]), spacing=(1.5, 1.5, 10.0)).axes
    assert len(axes[len(COLUMNS) + 5].get_lines()) == 96 // 3 + 6


@pytest.mark.parametrize("size", [2, 3])
def test_thin_volumes_can_be_drawn(size: int) -> None:
    thin = torch.rand(1, 8, 9, size)
    assert as_rgb(panel(thin, thin, thin, torch.zeros(3, 8, 9, size))).dtype == torch.uint8


def test_png_is_small_and_looks_like_the_figure() -> None:
    content = as_png(draw(SHAPES[1])[0], 60)
    seen = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    expected = as_rgb(draw(SHAPES[1])[0], 60).movedim(0, -1).numpy()
    assert seen.shape == expected.shape and np.abs(seen - expected).max() < 25
    assert len(content) < expected.size / 8


def test_large_grid_is_thinned_out() -> None:
    _, axes = draw((160, 96))
    assert len(axes[0][5].get_lines()) == 160 // 5 + -(-96 // 5)


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
    assert len(panel(moving, fixed, warped.requires_grad_(), ddf).axes) == 22


def test_drawing_opens_no_window() -> None:
    import matplotlib.pyplot as plt

    draw(SHAPES[0])
    assert plt.get_fignums() == []


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_of_a_single_slice_the_slice_alone_is_drawn(axis: int) -> None:
    shape = [20, 24]
    shape.insert(axis, 1)
    image = torch.rand(1, *shape)
    figure = panel(image, image, image, torch.rand(3, *shape), spacing=(1.0, 1.0, 1.0))
    # Seven columns in one row, and the bar.
    assert len(figure.axes) == len(COLUMNS) + 1
    shown = figure.axes[0].get_images()[0].get_array()
    assert shown is not None and np.array_equal(shown, image.squeeze().numpy().T)


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 10)])
def test_preview_is_the_first_plane_of_the_panel_in_one_row(shape: tuple[int, ...]) -> None:
    fixed, moving, warped = images(shape)
    ddf = torch.rand(len(shape), *shape)
    figure = preview(moving, fixed, warped, ddf)
    assert [axis.get_title() for axis in figure.axes] == ["fixed", "moving", "warped", "grid"]
    whole = panel(moving, fixed, warped, ddf).axes
    for small, large in zip(figure.axes[:3], whole, strict=False):
        assert np.array_equal(shown(small), shown(large))
    lines, grid = ([line.get_xydata() for line in axis.lines] for axis in (figure.axes[3], whole[5]))
    assert len(lines) == len(grid) and all(map(np.array_equal, lines, grid))
    turned = preview(moving, fixed, warped, ddf, downwards=True)
    assert [axis.yaxis_inverted() for axis in turned.axes] == 4 * [True]
