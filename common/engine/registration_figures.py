# SPDX-License-Identifier: Apache-2.0
"""What the record of a registered pair says beside its files: distances of landmarks, what it was guided by, a line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from common.data.guides import GUIDES
from common.io.landmarks import in_space
from common.spatial import Grid, sample_at


def landmark_errors(
    pair: Mapping[str, Any], stages: Callable[[], Mapping[str, Tensor]], moving: Grid
) -> dict[str, Any]:
    """Mean distance in millimetres between corresponding landmarks at each stage; empty without landmarks.

    Args:
        pair: with "moving_scan_landmarks" and "fixed_scan_landmarks", each (N, d) in voxels of its scan, or without.
        stages: makes, by name, displacements (1, 3, *fixed) in voxels of the moving scan, see
            :func:`common.spatial.displacement_to_moving`; linear between voxels, as ITK takes it.
        moving: grid of the moving scan.
    """
    names = [f"{side}_scan_landmarks" for side in ("moving", "fixed")]
    if not all(name in pair for name in names):
        return {}
    ends, starts = (in_space(pair[name].float().cpu()) for name in names)
    sizes = ends.new_tensor(moving.spacing)
    distances = {}
    for name, displacement in stages().items():
        reached = starts + sample_at(displacement, starts[None])[0].T
        distances[name] = float(((reached - ends) * sizes).norm(dim=1).mean())
    return {"landmark_distance_mm": distances, "landmarks": len(starts)}


def guided_by(pair: Mapping[str, Any]) -> dict[str, Any]:
    """Names of what an optimisation could look at beside the images, as figures of the same are none of what is new."""
    names = [f"{side}_{kind}" for kind in GUIDES for side in ("moving", "fixed")]
    found = [name for name in names if name in pair]
    return {"guided_by": found} if found else {}


def sentence(entry: Mapping[str, Any]) -> str:
    """An entry of the record in a line."""
    text = (
        f"folded voxels {entry['folded_percent']:.4f} %, "
        f"largest displacement {entry['largest_displacement_voxels']} voxels"
    )
    if "inverse_consistency" in entry:
        error = entry["inverse_consistency"]
        text += f", there and back {error['mean_voxels']:.4f} voxels off, at most {error['largest_voxels']:.4f}"
    if "landmark_distance_mm" in entry:
        text += ", landmarks (mm) " + _stages(entry["landmark_distance_mm"], 2)
    if "dice" in entry:
        text += ", Dice " + _stages(entry["dice"], 4)
    return text


def _stages(figures: Mapping[str, float], digits: int) -> str:
    return ", ".join(f"{stage} {value:.{digits}f}" for stage, value in figures.items())
