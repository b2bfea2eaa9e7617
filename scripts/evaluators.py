# SPDX-License-Identifier: Apache-2.0
"""The metrics that ``benchmark.py metrics`` compares: a pair of scans, our form and a plain one of each.

The plain forms are re-enactments of the published evaluators, written from their description: one pass over the whole
volume per label, distance transforms, every difference of a determinant a correlation of its own, double precision.
They take nothing from ``common`` and so check its values too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from common.io.learn2reg import from_half_resolution
from common.metrics import dice_l2r, hd95_l2r, ndv_lumir, sdlogj_l2r
from common.spatial.labels import warp_labels

SIZE = (160, 224, 192)
LABELS = list(range(1, 36))
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
PUBLISHED, OURS = "published form, re-enacted", "ours"

Array = NDArray[Any]


class Case(NamedTuple):
    """One pair: label maps (*SIZE) uint8, displacement (3, *SIZE) float32 in voxels, and where they come from."""

    source: str
    moving: Array
    fixed: Array
    ddf: Array


@cache
def case() -> Case:
    """Two brains at 1 mm and the field of an independent network, made-up ones where they are not at hand."""
    files = [DATA / "brain" / "aligned_1mm" / "labelsTr" / f"MALF_{n}_0000.nii.gz" for n in (1006, 1018)]
    field = DATA / "oasis_pair" / "clapirn_1mm_half.npz"
    if not all(file.is_file() for file in (*files, field)):
        return _made_up()
    import nibabel

    groups = json.loads((DATA / "brain" / "label_groups.json").read_text())["lookup_table"]
    table = np.array([groups[str(n)] for n in range(len(groups))] if isinstance(groups, dict) else groups, np.uint8)
    fixed, moving = (table[np.asarray(nibabel.load(file).dataobj).astype(int)] for file in files)
    with np.load(field) as content:
        ddf = from_half_resolution(content["arr_0"].astype(np.float32))
    return Case("two brains at 1 mm, field of C-LapIRN", moving, fixed, np.asarray(ddf, np.float32))


def _made_up() -> Case:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(2, len(LABELS) + 1, 10, 14, 12, generator=generator)
    maps = [F.interpolate(one[None], size=SIZE, mode="trilinear").argmax(1)[0].byte().numpy() for one in noise]
    coarse = 3 * torch.randn(1, 3, 10, 14, 12, generator=generator)
    ddf = F.interpolate(coarse, size=SIZE, mode="trilinear", align_corners=True)[0].numpy()
    return Case("made-up labels and field", maps[1], maps[0], ddf)


def metrics() -> dict[str, dict[str, Callable[[], Array]]]:
    """Both forms of each metric; each call returns its value or values.

    The warped labels are made once: Dice and HD95 are timed from there on.
    """
    pair = case()
    moving, fixed, ddf = (torch.from_numpy(a)[None] for a in (pair.moving[None], pair.fixed[None], pair.ddf))
    warped = warp_labels(moving, ddf)
    plain = warped[0, 0].numpy()
    return {
        "warp of the labels": {
            PUBLISHED: lambda: plain_warp(pair.moving, pair.ddf),
            OURS: lambda: _warped(moving, ddf),
        },
        "Dice": {
            PUBLISHED: lambda: plain_dice(plain, pair.fixed, pair.moving),
            OURS: lambda: dice_l2r(warped, fixed, LABELS, moving).numpy()[0],
        },
        "NDV": {
            PUBLISHED: lambda: plain_ndv(pair.ddf, pair.moving > 0),
            OURS: lambda: ndv_lumir(ddf, moving).percent.numpy(),
        },
        "SDlogJ": {PUBLISHED: lambda: plain_sdlogj(pair.ddf), OURS: lambda: sdlogj_l2r(ddf).numpy()},
        "HD95": {
            PUBLISHED: lambda: plain_hd95(plain, pair.fixed, pair.moving),
            OURS: lambda: hd95_l2r(warped, fixed, LABELS, moving).numpy()[0],
        },
    }


def _warped(moving: Tensor, ddf: Tensor) -> Array:
    return warp_labels(moving, ddf)[0, 0].numpy()


def plain_warp(moving: Array, ddf: Array) -> Array:
    """Labels at the nearest voxel of ``x + ddf(x)``."""
    return np.asarray(ndimage.map_coordinates(moving, np.indices(moving.shape) + ddf.astype(float), order=0))


def plain_dice(warped: Array, fixed: Array, moving: Array) -> Array:
    """Dice of each label from its masks; NaN for a label that is missing before warping."""
    values = []
    for label in LABELS:
        a, b = fixed == label, warped == label
        missing = a.sum() == 0 or (moving == label).sum() == 0
        values.append(np.nan if missing else 2 * (a & b).sum() / (a.sum() + b.sum()))
    return np.array(values)


def plain_hd95(warped: Array, fixed: Array, moving: Array) -> Array:
    """95th percentile surface distance of each label, in voxels, by distance transforms inside its bounding box."""
    values = []
    for label in LABELS:
        missing = (fixed == label).sum() == 0 or (moving == label).sum() == 0
        values.append(np.nan if missing else _surface_quantile(fixed == label, warped == label))
    return np.array(values)


def _surface_quantile(a: Array, b: Array) -> float:
    from monai.metrics.utils import get_code_to_measure_table

    if not b.any():
        return float("inf")
    extents = [np.flatnonzero((a | b).any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    box = tuple(slice(e[0], e[-1] + 1) for e in extents)
    kernel = (1 << np.arange(7, -1, -1)).reshape(2, 2, 2)
    masks = [np.pad(mask[box], [(0, 1)] * 3).astype(np.uint8) for mask in (a, b)]
    codes = [ndimage.correlate(mask, kernel, mode="constant", cval=0) for mask in masks]
    edges = [(code != 0) & (code != 255) for code in codes]
    table, _ = get_code_to_measure_table([1.0, 1.0, 1.0])
    areas = np.asarray(table, np.float64)
    return max(
        _quantile(ndimage.distance_transform_edt(~edges[1 - k])[edges[k]], areas[codes[k][edges[k]]]) for k in (0, 1)
    )


def _quantile(distances: Array, areas: Array) -> float:
    order = np.argsort(distances, kind="stable")
    covered = np.cumsum(areas[order]) / areas.sum()
    return float(distances[order[min(int(np.searchsorted(covered, 0.95)), len(order) - 1)]])


def _line(axis: int, taps: tuple[float, float, float]) -> Array:
    return np.array(taps).reshape([3 if k == axis else 1 for k in range(3)])


def _diagonal(first: int, second: int, step: int) -> Array:
    """Kernel of ``f(x + step (e_first + e_second)) - f(x)``."""
    kernel = np.zeros([3 if k in (first, second) else 1 for k in range(3)])
    kernel[tuple(n // 2 for n in kernel.shape)] = -1
    kernel[tuple(1 + step if n == 3 else 0 for n in kernel.shape)] = 1
    return kernel


def _determinant(field: Array, kernels: list[Array], mode: str = "nearest", identity: bool = False) -> Array:
    """Determinant whose rows are the field's three components correlated with one kernel each."""
    rows = [[ndimage.correlate(component, kernel, mode=mode) for component in field] for kernel in kernels]
    for k in range(3 if identity else 0):
        rows[k][k] += 1
    (a, b, c), (d, e, f), (g, h, i) = rows
    return np.asarray(a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g))


def plain_ndv(ddf: Array, mask: Array) -> Array:
    """Percentage of non-diffeomorphic volume inside ``mask``, from ten determinants of ``x + ddf(x)``."""
    inner = (slice(1, -1),) * 3
    position = np.indices(ddf.shape[1:]) + ddf.astype(float)
    steps = ((0.0, -1.0, 1.0), (-1.0, 1.0, 0.0))
    kernels = [[_line(k, taps) for k, taps in enumerate(chosen)] for chosen in product(steps, repeat=3)]
    kernels += [[_diagonal(*axes, -1) for axes in ((0, 1), (0, 2), (1, 2))]]
    kernels += [[_diagonal(*axes, 1) for axes in ((0, 1), (1, 2), (0, 2))]]
    volume = np.zeros([n - 2 for n in mask.shape])
    for chosen in kernels:
        volume -= 0.5 * np.minimum(_determinant(position, chosen)[inner], 0) / 6
    inside = mask[inner]
    return np.array([100 * (volume * inside).sum() / inside.sum()])


def plain_sdlogj(ddf: Array) -> Array:
    """Standard deviation of log(clip(det + 3)), two voxels off the border."""
    kernels = [_line(k, (-0.5, 0.0, 0.5)) for k in range(3)]
    determinant = _determinant(ddf.astype(float), kernels, mode="constant", identity=True)
    return np.array([np.log((determinant[2:-2, 2:-2, 2:-2] + 3).clip(1e-9, 1e9)).std()])
