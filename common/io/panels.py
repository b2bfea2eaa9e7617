# SPDX-License-Identifier: Apache-2.0
"""One picture of a registered pair: fixed, moving, warped, difference before and after, warped grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from common.spatial import identity_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ("fixed", "moving", "warped", "moving - fixed", "warped - fixed", "warped grid")
GRID_LINES = 32
"""Grid lines along the longest axis, about: more of them run together."""
COLUMN_WIDTH = 2.4


def panel(fixed: Tensor, moving: Tensor, warped: Tensor, ddf: Tensor, title: str = "") -> Figure:
    """Draw the middle slice across each axis (the image itself in 2D).

    Slices are shown with the first remaining array axis to the right and the second upwards, which for RAS+ volumes is
    the usual view: anterior or superior up.

    Args:
        fixed: (1, *spatial).
        moving: (1, *spatial).
        warped: (1, *spatial), the moving image on the fixed grid.
        ddf: (d, *spatial) in voxels.
        title: line above the picture.

    Returns:
        A matplotlib figure that belongs to no window; rows are planes, columns as in ``COLUMNS``.
    """
    from matplotlib.figure import Figure

    images = [x[0].detach().float().cpu().numpy() for x in (fixed, moving, warped)]
    positions = (identity_grid(ddf.shape[1:])[0] + ddf.detach().float().cpu()).numpy()
    planes = [None] if images[0].ndim == 2 else [2, 1, 0]
    # A row is as high as its pictures, unless they are very slim.
    heights = [COLUMN_WIDTH * min(up / across, 2) for across, up in (_slice(images[0], p).shape for p in planes)]
    figure = Figure(figsize=(COLUMN_WIDTH * len(COLUMNS), sum(heights) + 0.6), layout="constrained")
    axes = figure.subplots(len(planes), len(COLUMNS), squeeze=False, height_ratios=heights)
    bottom, top = _range(images[0], images[1])
    half = (top - bottom) / 2
    for row, plane in zip(axes, planes, strict=True):
        slices = [_slice(image, plane) for image in images]
        pictures = [*slices, slices[1] - slices[0], slices[2] - slices[0]]
        for column, picture in enumerate(pictures):
            signed = column > 2
            row[column].imshow(
                picture.T, origin="lower", cmap="RdBu_r" if signed else "gray", vmin=-half if signed else bottom,
                vmax=half if signed else top, interpolation="nearest",
            )  # fmt: skip
        _draw_grid(row[-1], positions, plane)
        for axis in row:
            axis.set_xticks([])
            axis.set_yticks([])
    for axis, name in zip(axes[0], COLUMNS, strict=True):
        axis.set_title(name, fontsize=10)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def _slice(volume: np.ndarray, plane: int | None) -> np.ndarray:
    return volume if plane is None else volume.take(volume.shape[plane] // 2, axis=plane)


def _range(*images: np.ndarray) -> tuple[float, float]:
    """Darkest and brightest value shown; the few voxels beyond would take the contrast from the rest."""
    bounds = np.array([np.quantile(image, (0.001, 0.999)) for image in images])
    bottom, top = float(bounds[:, 0].min()), float(bounds[:, 1].max())
    return bottom, max(top, bottom + 1e-6)


def _draw_grid(axis: Axes, positions: np.ndarray, plane: int | None) -> None:
    """Where a regular grid of the fixed image comes from, within the plane."""
    shown = [k for k in range(positions.shape[0]) if k != plane]
    across, up = (_slice(positions[k], plane) for k in shown)
    step = max(1, round(max(across.shape) / GRID_LINES))
    axis.plot(across[::step].T, up[::step].T, color="black", linewidth=0.4)
    axis.plot(across[:, ::step], up[:, ::step], color="black", linewidth=0.4)
    axis.set_aspect("equal")
    axis.set_xlim(-0.5, across.shape[0] - 0.5)
    axis.set_ylim(-0.5, across.shape[1] - 0.5)


def as_rgb(figure: Figure) -> Tensor:
    """A figure as a picture tensor (3, height, width), uint8, for TensorBoard."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy()).movedim(-1, 0)
