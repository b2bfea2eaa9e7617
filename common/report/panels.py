# SPDX-License-Identifier: Apache-2.0
"""One picture of a registered pair: fixed, moving, warped, difference before and after, warped grid, Jacobian."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from common.spatial import identity_grid, jacobian_determinant
from common.spatial.lengths import lengths

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ("fixed", "moving", "warped", "moving - fixed", "warped - fixed", "warped grid", "Jacobian determinant")
GRID_LINES = 32
"""Grid lines along the longest axis, about: more of them run together."""
COLUMN_WIDTH = 2.4
FOLDED = "#ff1493"
"""Colour of voxels whose Jacobian determinant is not positive; in no other colour map of the picture."""
DETERMINANTS = (0.25, 4.0)
"""Ends of the colours for shrinking and growing; what lies beyond is drawn as the end."""


def panel(
    moving: Tensor,
    fixed: Tensor,
    warped: Tensor,
    ddf: Tensor,
    title: str = "",
    spacing: Sequence[float] | None = None,
    maps: Mapping[str, Tensor] | None = None,
    downwards: bool = False,
) -> Figure:
    """Draw the middle slice across each axis (the image itself in 2D, and the slice of a volume of one).

    Slices are shown with the first remaining array axis to the right and the second upwards, which for RAS+ volumes is
    the usual view: anterior or superior up. The fixed image has its own grey scale, moving and warped image share
    theirs; differences are of images that are stretched by these scales to [0, 1], so that scanners may differ.

    Args:
        moving: (1, *spatial).
        fixed: (1, *spatial).
        warped: (1, *spatial), the moving image on the fixed grid.
        ddf: (d, *spatial) in voxels.
        title: line above the picture.
        spacing: (d,) size of a voxel along each axis, in any unit; None for cubes.
        maps: title to a further image on the fixed grid, (1, *spatial), or a vector per voxel, (d, *spatial), of which
            the length is drawn; the ends of its colours stand beside the title.
        downwards: whether the second axis shown runs down the picture, as the rows of PNG do.

    Returns:
        A matplotlib figure that belongs to no window; rows are planes, columns as in ``COLUMNS``, the maps before the
        last, then the axis of the colour bar.
    """
    from matplotlib.figure import Figure

    images = [x[0].detach().float().cpu().numpy() for x in (fixed, moving, warped)]
    field = ddf.detach().float().cpu()
    further = {name: _one_channel(values) for name, values in (maps or {}).items()}
    limits = {name: _range(values) for name, values in further.items()}
    titles = [f"{name}: {low:.2g} to {high:.2g}" for name, (low, high) in limits.items()]
    columns = [*COLUMNS[:-1], *titles, COLUMNS[-1]]
    sizes = [1.0] * images[0].ndim if spacing is None else [float(size) for size in spacing]
    planes = _planes(images[0].shape)
    aspects = [sizes[up] / sizes[across] for across, up in map(_shown_axes, planes)]
    shapes = [_slice(images[0], plane).shape for plane in planes]
    # A row is as high as its pictures, unless they are very slim.
    heights = [COLUMN_WIDTH * min(a * up / across, 2) for (across, up), a in zip(shapes, aspects, strict=True)]
    figure = Figure(figsize=(COLUMN_WIDTH * len(columns) + 0.7, sum(heights) + 0.6), layout="constrained")
    # Given at once: every tick that is made and taken away again costs time.
    blank: dict[str, Any] = {"xticks": [], "yticks": []}
    axes = figure.subplots(len(planes), len(columns), squeeze=False, height_ratios=heights, subplot_kw=blank)
    ranges = [_range(images[0]), _range(images[1])]
    for row, plane, aspect in zip(axes, planes, aspects, strict=True):
        slices = [_slice(image, plane) for image in images]
        _draw_images(row, slices, ranges, aspect)
        _draw_grid(row[5], field, plane, aspect)
        for axis, (name, values) in zip(row[6:], further.items(), strict=False):
            _draw_map(axis, _slice(values, plane), limits[name], aspect)
        mapped = _draw_determinant(row[-1], field, plane, aspect)
    if downwards:
        for axis in axes.flat:
            axis.invert_yaxis()
    for axis, name in zip(axes[0], columns, strict=True):
        axis.set_title(name, fontsize=10)
    _draw_bar(figure, mapped, axes)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def preview(moving: Tensor, fixed: Tensor, warped: Tensor, ddf: Tensor, downwards: bool = False) -> Figure:
    """A pair in one small row: fixed, moving and warped image and the warped grid, middle slice across the last axis.

    Args:
        moving: (1, *spatial).
        fixed: (1, *spatial).
        warped: (1, *spatial), the moving image on the fixed grid.
        ddf: (d, *spatial) in voxels.
        downwards: whether the second axis shown runs down the picture, as the rows of PNG do.

    Returns:
        A matplotlib figure that belongs to no window, of four axes.
    """
    from matplotlib.figure import Figure

    images = [x[0].detach().float().cpu().numpy() for x in (fixed, moving, warped)]
    field = ddf.detach().float().cpu()
    plane = _planes(images[0].shape)[0]
    figure = Figure(figsize=(5.6, 1.62), layout="constrained")
    axes = figure.subplots(1, 4, subplot_kw={"xticks": [], "yticks": []})
    for axis, image, scale in zip(axes, images, (images[0], images[1], images[1]), strict=False):
        low, high = _range(scale)
        axis.imshow(_slice(image, plane).T, cmap="gray", vmin=low, vmax=high, origin="lower", interpolation="nearest")
    _draw_grid(axes[3], field, plane, 1.0)
    for axis, name in zip(axes, (*COLUMNS[:3], "grid"), strict=True):
        axis.set_title(name, fontsize=9)
        if downwards:
            axis.invert_yaxis()
    return figure


def _one_channel(values: Tensor) -> np.ndarray:
    channels = values.detach().float().cpu()
    return (channels[0] if len(channels) == 1 else lengths(channels[None])[0, 0]).numpy()


def _planes(shape: Sequence[int]) -> list[int | None]:
    """Axes across which to cut, without cuts that are one voxel high or wide."""
    if len(shape) == 2:
        return [None]
    wide = [plane for plane in (2, 1, 0) if min(shape[k] for k in range(3) if k != plane) > 1]
    return list(wide or [2])


def _shown_axes(plane: int | None) -> tuple[int, int]:
    """Array axes to the right and upwards."""
    across, up = [k for k in range(3) if k != plane] if plane is not None else (0, 1)
    return across, up


def _slice(volume: np.ndarray, plane: int | None) -> np.ndarray:
    return volume if plane is None else volume.take(volume.shape[plane] // 2, axis=plane)


def _range(image: np.ndarray) -> tuple[float, float]:
    """Darkest and brightest value shown; the few voxels beyond would take the contrast from the rest."""
    bottom, top = map(float, np.quantile(image, (0.001, 0.999)))
    return bottom, max(top, bottom + 1e-6)


def _draw_images(
    row: Sequence[Axes], slices: Sequence[np.ndarray], ranges: Sequence[tuple[float, float]], aspect: float
) -> None:
    """Grey images and differences of stretched ones."""
    scales = [ranges[0], ranges[1], ranges[1]]
    options: dict[str, Any] = {"origin": "lower", "interpolation": "nearest", "aspect": aspect}
    for axis, picture, (bottom, top) in zip(row, slices, scales, strict=False):
        axis.imshow(picture.T, cmap="gray", vmin=bottom, vmax=top, **options)
    stretched = [(picture - low) / (high - low) for picture, (low, high) in zip(slices, scales, strict=True)]
    for axis, picture in zip(row[3:5], stretched[1:], strict=True):
        axis.imshow((picture - stretched[0]).T, cmap="RdBu_r", vmin=-0.5, vmax=0.5, **options)


def _draw_map(axis: Axes, values: np.ndarray, limits: tuple[float, float], aspect: float) -> None:
    low, high = limits
    axis.imshow(values.T, cmap="viridis", vmin=low, vmax=high, origin="lower", interpolation="nearest", aspect=aspect)


def _draw_grid(axis: Axes, field: Tensor, plane: int | None, aspect: float) -> None:
    """Where a regular grid of the fixed image comes from, within the plane."""
    cut = field if plane is None else field.select(1 + plane, field.shape[1 + plane] // 2)
    across, up = (identity_grid(cut.shape[1:])[0] + cut[list(_shown_axes(plane))]).numpy()
    # Meshes are square in millimetres where the voxels allow it.
    mesh = max(across.shape[0], across.shape[1] * aspect) / GRID_LINES
    right, high = max(1, round(mesh)), max(1, round(mesh / aspect))
    axis.plot(across[::right].T, up[::right].T, color="black", linewidth=0.4)
    axis.plot(across[:, ::high], up[:, ::high], color="black", linewidth=0.4)
    axis.set_aspect(aspect)
    axis.set_xlim(-0.5, across.shape[0] - 0.5)
    axis.set_ylim(-0.5, across.shape[1] - 0.5)


def _draw_determinant(axis: Axes, field: Tensor, plane: int | None, aspect: float) -> Any:
    """Shrinking and growing on a logarithmic scale, folding in a colour of its own."""
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    determinant = _determinant(field, plane).numpy()
    low, high = DETERMINANTS
    # Folds take the colour below the scale; shrinking beyond its end must not, whatever its logarithm is rounded to.
    shown = np.where(determinant <= 0, low / 2, np.clip(determinant, low, high))
    colours = colormaps["BrBG"].with_extremes(under=FOLDED)
    return axis.imshow(
        shown.T, origin="lower", interpolation="nearest", aspect=aspect, cmap=colours, norm=LogNorm(0.999 * low, high)
    )


def _determinant(field: Tensor, plane: int | None) -> Tensor:
    """Determinants of the slice; of the volume only the neighbouring slices are looked at."""
    if plane is None:
        return jacobian_determinant(field[None])[0, 0]
    size = field.shape[1 + plane]
    start = min(max(size // 2 - 1, 0), max(size - 3, 0))
    slab = field.narrow(1 + plane, start, min(3, size))
    return jacobian_determinant(slab[None])[0, 0].select(plane, size // 2 - start)


def _draw_bar(figure: Figure, mapped: Any, axes: Any) -> None:
    low, high = DETERMINANTS
    marks = [low, 0.5, 1, 2, high]
    bar = figure.colorbar(mapped, ax=axes[:, -1], extend="min", ticks=marks, aspect=14 * len(axes), pad=0.03)
    bar.ax.minorticks_off()
    bar.ax.set_yticklabels([f"{mark:g}" for mark in marks], fontsize=8)
    bar.set_label("pink: folding (≤ 0)", fontsize=8)


def as_rgb(figure: Figure, dpi: float | None = None) -> Tensor:
    """A figure as a picture tensor (3, height, width), uint8, for TensorBoard."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    if dpi is not None:
        figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy()).movedim(-1, 0)


def as_png(figure: Figure, dpi: float = 90) -> bytes:
    """A figure as PNG of at most 256 colours, a third of the size and alike to the eye; for a page or a file."""
    from PIL import Image

    picture = Image.fromarray(as_rgb(figure, dpi).movedim(0, -1).contiguous().numpy())
    file = io.BytesIO()
    picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(file, "png", optimize=True)
    return file.getvalue()
