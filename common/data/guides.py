# SPDX-License-Identifier: Apache-2.0
"""What a pair of scans has beside its images and an optimisation may look at: masks, labels, landmarks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from common.checks import InputError
from common.data.dataset import plain_tensor
from common.data.landmarks import check_correspondence
from common.data.readers.listing import LANDMARKS, MASK
from common.io.landmarks import in_space
from common.spatial import Grid, resample
from common.spatial.plane import laid, lifted
from common.spatial.world import between_grids

LABEL = "label"
GUIDES = (MASK, LABEL, LANDMARKS)
"""Entries of subjects, by which a pair may be guided."""
FEWEST = 4
"""Landmarks: three of them tell no more than a plane."""
Sides = Mapping[str, Any]
"""By "moving" and "fixed"."""


def guides_of_loss(looks_at: Collection[str], steps: int | Sequence[int]) -> tuple[str, ...]:
    """What of :data:`GUIDES` an optimisation on a pair looks at.

    Args:
        looks_at: names that the terms of its loss look at, ``RegistrationLoss.details``.
        steps: of the optimisation; without any it looks at nothing.

    Raises:
        InputError: for labels or landmarks in a loss that is not made use of.
    """
    named = [kind for kind in GUIDES if any(f"{side}_{kind}" in looks_at for side in ("moving", "fixed"))]
    if any([steps] if isinstance(steps, int) else steps):
        return tuple(named)
    if set(named) - {MASK}:
        raise InputError(
            "Labels or landmarks are to guide the optimisation on a pair, but --io_steps is 0: give steps."
        )
    return ()


def guides_of_pair(
    subjects: Sides, grids: Sides, files: Sides, working: Grid, alignment: Tensor, wanted: Sequence[str]
) -> dict[str, Tensor]:
    """Masks, labels and landmarks on the grid where both images are seen, named as the terms of a loss name them.

    Args:
        subjects: loaded, with what they have of :data:`GUIDES`: masks and label maps (1, *own grid), landmarks (N, d)
            in voxels of the own grid.
        grids: of the scans.
        files: of the landmarks, for messages.
        working: where both are seen.
        alignment: (4, 4), fixed world to moving world.
        wanted: which of :data:`GUIDES` count.

    Returns:
        "moving_mask" and "fixed_mask" (1, *working) float32, 1 where the image counts and 0 elsewhere and outside of
        it, of each side that has one; "moving_label" and "fixed_label" (1, *working) int32, of which the labels that
        both maps have are numbered from 1 on; "moving_landmarks" and "fixed_landmarks" (N, d) float32 in voxels of the
        working grid.

    Raises:
        InputError: no label that both maps have, landmarks that do not correspond or fewer than :data:`FEWEST`, and a
            mask of which nothing lies where the fixed scan is registered.
    """
    ways = {"moving": alignment, "fixed": torch.eye(4, dtype=torch.float64)}
    found: dict[str, Tensor] = {}
    for side, subject in subjects.items():
        if MASK in wanted and MASK in subject:
            mask = _seen((plain_tensor(subject[MASK]) != 0).float(), grids[side], working, ways[side])
            if not bool(mask.any()):
                raise InputError(f"Nothing of the mask of the {side} scan lies where the fixed scan is registered.")
            found[f"{side}_{MASK}"] = mask
    if LABEL in wanted:
        for side, classes in _classes(subjects).items():
            found[f"{side}_{LABEL}"] = _seen(classes, grids[side], working, ways[side]).to(torch.int32)
    if LANDMARKS in wanted:
        _check_landmarks(subjects, files)
        for side, subject in subjects.items():
            # Where the scan's voxel is seen: the other way round than images are sampled.
            place = torch.linalg.inv(between_grids(grids[side], working, ways[side]))
            points = in_space(subject[LANDMARKS].double()) @ place[:3, :3].T + place[:3, 3]
            found[f"{side}_{LANDMARKS}"] = points[:, : working.dims].float()
    return found


def _seen(values: Tensor, grid: Grid, working: Grid, way: Tensor) -> Tensor:
    """A mask or label map on the working grid, by the nearest voxel and 0 outside."""
    return laid(resample(lifted(values, grid.dims)[None], grid, working, way, "nearest", 0.0)[0], grid.dims)


def _classes(subjects: Sides) -> dict[str, Tensor]:
    """Label maps whose common labels are 1, 2, ..., and all others background: float32 holds these exactly."""
    maps = {side: plain_tensor(subject[LABEL]).long() for side, subject in subjects.items()}
    values = [set(labels.unique().tolist()) for labels in maps.values()]
    common = torch.tensor(sorted(set.intersection(*values) - {0}))
    if not len(common):
        raise InputError("The label maps of the moving and the fixed scan have no label in common to be guided by.")
    found = {}
    for side, labels in maps.items():
        place = torch.searchsorted(common, labels).clamp_(max=len(common) - 1)
        found[side] = ((place + 1) * (common[place] == labels)).float()
    return found


def _check_landmarks(subjects: Sides, files: Sides) -> None:
    moving, fixed = (subjects[side][LANDMARKS] for side in ("moving", "fixed"))
    check_correspondence(moving, fixed, files["moving"], files["fixed"])
    if len(fixed) < FEWEST:
        raise InputError(
            f"{files['fixed']} holds {len(fixed)} landmark(s), but {FEWEST} or more are needed to guide a registration."
        )
