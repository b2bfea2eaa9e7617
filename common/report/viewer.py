# SPDX-License-Identifier: Apache-2.0
"""A slice viewer inside a page: volumes as sprites of slices, and a script that draws any plane of them."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.spatial.plane import downwards

PARTS = ("viewer.css", "viewer.js")
"""What ``common.report.page.document`` adds to a page that holds a viewer."""
PAIR_BYTES = 3_000_000
PAGE_BYTES = 6_000_000
"""Room in the page for one pair and for all of them; larger volumes are shown at a coarser spacing."""
QUALITY = 85
QUANTILES = (0.001, 0.999)
_SHRINK = 0.9


@dataclass(frozen=True)
class ViewedScan:
    """An image on the fixed grid and its labels.

    Attributes:
        image: (1, *spatial), any intensities.
        label: (1, *spatial), integers, outlined on request; at most 255 different ones.
    """

    image: Tensor
    label: Tensor | None = None


@dataclass(frozen=True)
class ViewedPair:
    """What can be looked at of one pair, all on the fixed grid.

    Attributes:
        caption: name in the list of pairs.
        moving: the moving scan brought to the fixed grid by its header alone.
        fixed: the fixed scan.
        warped: name of a method to the moving scan as that method warped it.
        affine: (4, 4), fixed voxels to RAS millimetres; turns the slices the usual way, an image of two dimensions
            upright, and gives them their proportions. Without it the axes are drawn as they are, with cubic voxels.
    """

    caption: str
    moving: ViewedScan
    fixed: ViewedScan
    warped: Mapping[str, ViewedScan] = field(default_factory=dict)
    affine: Tensor | None = None


def viewer_section(pairs: Sequence[ViewedPair]) -> str:
    """Section of a page with the viewer and its data; the page needs ``PARTS``.

    Args:
        pairs: in the order of the list; of two or three dimensions.

    Returns:
        HTML of at most about ``PAGE_BYTES``, empty without pairs.
    """
    if not pairs:
        return ""
    budget = min(PAIR_BYTES, PAGE_BYTES // len(pairs))
    content = {"pairs": [_encoded(pair, budget) for pair in pairs]}
    # No text inside may end the element early.
    data = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
    return (
        '<section id="viewer" class="viewer"><h2>Slices</h2>'
        '<p class="note">Arrow keys or a sideways drag over the picture change the slice. Each image is stretched to '
        "its own range; differences are of the stretched images.</p>"
        '<noscript><p class="note">The slices need JavaScript; nothing is loaded from elsewhere.</p></noscript>'
        f'<script type="application/json" id="viewer-data">{data}</script></section>'
    )


def _encoded(pair: ViewedPair, budget: int) -> dict[str, Any]:
    """A pair as the script reads it, at the finest spacing that fits into ``budget`` bytes."""
    scans = [pair.fixed, pair.moving, *pair.warped.values()]
    images, spacing = zip(*[_upright(_grey(scan, pair), pair.affine) for scan in scans], strict=True)
    labels = [None if scan.label is None else _upright(scan.label[0], pair.affine)[0] for scan in scans]
    labels = _ranks(labels)
    shape, step = tuple(images[0].shape), spacing[0]
    while True:
        entries = [_sprites(image, label, shape) for image, label in zip(images, labels, strict=True)]
        used = sum(len(uri) for entry in entries for uri in entry.values())
        if used <= budget or max(shape) <= 16:
            break
        shape = _coarser(tuple(images[0].shape), step, math.prod(shape) * budget / used * _SHRINK)
    named = [{"name": name, **entry} for name, entry in zip(pair.warped, entries[2:], strict=True)]
    return {
        "caption": pair.caption,
        "shape": shape,
        "spacing": [size * full / few for size, full, few in zip(step, images[0].shape, shape, strict=True)],
        "full": list(images[0].shape),
        "letters": pair.affine is not None and pair.fixed.image.ndim == 4,
        "fixed": entries[0],
        "images": [{"name": "Moving (before)", **entries[1]}, *named],
    }


def _grey(scan: ViewedScan, pair: ViewedPair) -> Tensor:
    """(*spatial) in 0..255; moving and warped images share the range of the moving one."""
    reference = scan.image if scan is pair.fixed else pair.moving.image
    bottom, top = np.quantile(reference.detach().float().cpu().numpy(), QUANTILES)
    image = scan.image[0].detach().float().cpu()
    return (image - float(bottom)).div(max(float(top - bottom), 1e-6)).clamp(0, 1) * 255


def _ranks(labels: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Labels of all scans as 1, 2, ... that fit a byte; beyond 255 they repeat, which outlines hardly show."""
    present = sorted({0, *(int(n) for label in labels if label is not None for n in label.unique())})
    values = torch.tensor(present)
    table = torch.zeros(len(present))
    table[values != 0] = torch.arange(len(present) - 1).remainder(255).float() + 1
    return [None if label is None else table[torch.searchsorted(values, label.long())] for label in labels]


def _upright(volume: Tensor, affine: Tensor | None) -> tuple[Tensor, list[float]]:
    """(X, Y, Z) with axes towards right, anterior and superior as nearly as whole turns allow, and its spacing."""
    if affine is None:
        return volume if volume.ndim == 3 else volume[..., None], [1.0, 1.0, 1.0]
    if volume.ndim == 2:
        image = volume.flip(1) if downwards(affine) else volume
        return image[..., None], [*affine[:3, :2].norm(dim=0).tolist(), 1.0]
    import nibabel

    matrix = affine.detach().cpu().double().numpy()
    turns = nibabel.orientations.io_orientation(matrix)
    turned = nibabel.orientations.apply_orientation(volume.detach().cpu().numpy(), turns)
    sizes = np.linalg.norm(matrix[:3, :3], axis=0)
    return torch.from_numpy(np.ascontiguousarray(turned)), [float(sizes[k]) for k in np.argsort(turns[:, 0])]


def _coarser(shape: Sequence[int], spacing: Sequence[float], voxels: float) -> tuple[int, ...]:
    """The largest grid of about ``voxels`` voxels: axes that are coarse already stay as they are."""
    target = min(spacing)
    while True:
        few = tuple(max(1, min(n, round(n * size / target))) for n, size in zip(shape, spacing, strict=True))
        if math.prod(few) <= max(voxels, 1):
            return few
        target *= 1.03


def _sprites(image: Tensor, label: Tensor | None, shape: Sequence[int]) -> dict[str, str]:
    size = list(shape)
    if size != list(image.shape):
        image = F.interpolate(image[None, None], size=size, mode="area")[0, 0]
        label = None if label is None else F.interpolate(label[None, None], size=size, mode="nearest-exact")[0, 0]
    entry = {"image": _uri(image, "jpeg", quality=QUALITY)}
    if label is not None:
        entry["label"] = _uri(label, "png", compress_level=6)
    return entry


def _uri(volume: Tensor, kind: str, **options: Any) -> str:
    """Slices across the last axis, side by side in rows, as a picture in a data URI."""
    from PIL import Image

    width, height, depth = volume.shape
    columns = sprite_columns(width, height, depth)
    rows = -(-depth // columns)
    slices = np.zeros((rows * columns, height, width), np.uint8)
    slices[:depth] = volume.round().to(torch.uint8).numpy().transpose(2, 1, 0)
    sheet = slices.reshape(rows, columns, height, width).transpose(0, 2, 1, 3).reshape(rows * height, columns * width)
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def sprite_columns(width: int, height: int, depth: int) -> int:
    """Slices in one row of a sheet that is about square, as browsers limit both sides; the script counts the same."""
    return max(1, math.ceil(math.sqrt(depth * height / width)))
