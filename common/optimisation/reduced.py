# SPDX-License-Identifier: Apache-2.0
"""A pair and what is known of it, on a coarser grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common.spatial import resize_image
from common.spatial.resize import shrunk_image, voxel_ratios

_TINY = 1e-6


def reduced_pair(targets: Mapping[str, Any], size: Sequence[int]) -> dict[str, Any]:
    """Images and masks blurred and resampled corner to corner, labels by the nearest voxel, landmarks in new voxels.

    Where an image has a mask only what lies in it adds to the coarse image: what a mask leaves out has no influence.

    Args:
        targets: "moving" and "fixed" (B, 1, *spatial) and, of each, "_mask" (the same shape, 0 to 1), "_label" (the
            same shape, integers), "_landmarks" (B, N, d) in voxels; besides "spacing" (B, d). The rest stays.
        size: of the coarser grid.
    """
    found = dict(targets)
    for name in ("moving", "fixed"):
        image = targets[name]
        if tuple(image.shape[2:]) == tuple(size):
            continue
        if (mask := targets.get(name + "_mask")) is None:
            found[name] = shrunk_image(image, size)
        else:
            seen = (mask > 0).to(image.dtype)
            found[name + "_mask"] = weight = shrunk_image(seen, size)
            found[name] = shrunk_image(image * seen, size) / weight.clamp(min=_TINY)
        if (label := targets.get(name + "_label")) is not None:
            found[name + "_label"] = resize_image(label, size, "nearest")
        ratios = voxel_ratios(image.shape[2:], size, image)
        if (points := targets.get(name + "_landmarks")) is not None:
            found[name + "_landmarks"] = points * ratios.to(points.dtype)
        if name == "fixed" and (spacing := targets.get("spacing")) is not None:
            found["spacing"] = spacing / ratios.to(spacing.dtype)
    return found
