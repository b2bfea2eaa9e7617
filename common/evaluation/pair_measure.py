# SPDX-License-Identifier: Apache-2.0
"""All figures of one pair whose displacement field is a file: read, judge the convention, measure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from common.checks import InputError
from common.data.dataset import plain_tensor
from common.data.label_groups import MapLabelsd, read_label_groups
from common.data.transforms import CheckSubjectd, LoadSubjectd
from common.evaluation.diagnosis import Sides, diagnose
from common.evaluation.pair_files import LandmarkFiles, PairFiles
from common.io.fields import read_field, says_voxels
from common.io.landmarks import read_landmarks
from common.io.nifti import IMAGES, read_grid
from common.metrics.pair import Landmarks, RegisteredPair, pair_figures
from common.spatial import displacement_to_moving, warp_labels, warp_within
from common.spatial.foreground import foreground, mask_or_everywhere
from common.spatial.plane import laid, laid_field, lifted
from common.spatial.world import Grid, between_grids

FOREGROUNDS = ("fixed", "moving", "fixed_label", "moving_label", "none")


@dataclass(frozen=True)
class Measures:
    """How pairs are measured.

    Attributes:
        convention: of the fields, one of ``common.io.fields.CONVENTIONS``.
        labels: values that count; None for all that occur in either label map of a pair.
        label_groups: file that joins labels to groups, see :func:`common.data.label_groups.read_label_groups`.
        label_numbering: which values the label maps have, "ids" or "original" of that file.
        hd95: "voxels", "millimetres" or None.
        foreground: where folding counts, one of ``FOREGROUNDS``: the foreground of that image
            (:func:`common.spatial.foreground.foreground`), or where that label map is not 0.
        headers: whether the moving image lies where its header says; the challenges ignore headers.
        trust: whether to leave out the judgement of the convention by the images.
        shape: spatial shape that fields must have, None for any.
        coordinates: of tables of landmarks, "voxel", "ras" or "lps".
        lumir: whether landmarks are measured in voxels, as LUMIR does.
    """

    convention: str = "auto"
    labels: tuple[int, ...] | None = None
    label_groups: str | None = None
    label_numbering: str = "ids"
    hd95: str | None = "voxels"
    foreground: str = "fixed"
    headers: bool = True
    trust: bool = False
    shape: tuple[int, ...] | None = None
    lumir: bool = False
    coordinates: str = "voxel"


@dataclass
class LoadedPair:
    """Everything about one pair in memory; images (1, *own grid), label maps integers.

    Images of two dimensions are slices here, see :mod:`common.spatial.plane`; what is measured are the images.
    """

    files: PairFiles
    measures: Measures
    moving_grid: Grid
    fixed_grid: Grid
    images: dict[str, Tensor] = field(default_factory=dict)
    ddf: Tensor = field(default_factory=lambda: torch.empty(0))
    convention: str = ""
    inverse_ddf: Tensor | None = None

    @property
    def same_grid(self) -> bool:
        """Whether the field in voxels of the fixed image also points into the moving one."""
        alike = self.fixed_grid.same_as(self.moving_grid) if self.measures.headers else True
        return alike and self.fixed_grid.shape == self.moving_grid.shape

    @property
    def between(self) -> Tensor:
        """(4, 4), voxels of the fixed grid to voxels of the moving grid."""
        if self.same_grid:
            return torch.eye(4, dtype=torch.float64)
        return between_grids(self.moving_grid, self.fixed_grid)

    @cached_property
    def to_moving(self) -> Tensor:
        """(1, 3, *fixed grid), where to sample arrays on the moving grid."""
        return self.ddf if self.same_grid else displacement_to_moving(self.moving_grid, self.fixed_grid, self.ddf)

    @cached_property
    def to_moving_before(self) -> Tensor:
        """The same without registration."""
        if self.same_grid:
            return torch.zeros_like(self.ddf)
        return displacement_to_moving(self.moving_grid, self.fixed_grid)

    def moving_on_fixed(self, to_moving: Tensor) -> tuple[Tensor, Tensor | None]:
        """The moving image (1, *fixed grid) and its labels, if there are any, sampled where ``to_moving`` says."""
        image, label = self.images["moving"][None], self.images.get("moving_label")
        sampled = warp_within(image, to_moving, outside=float(image.min()))[0]
        return sampled, None if label is None else warp_labels(label[None], to_moving, by_header=not self.same_grid)[0]


def measure_pair(files: PairFiles, measures: Measures) -> dict[str, Any]:
    """Measure one pair.

    Args:
        files: of the pair.
        measures: what is measured.

    Returns:
        ``moving_id``, ``fixed_id``, figures as :class:`common.metrics.handlers.RegistrationMetrics` keeps them in
        ``cases``, ``labels_skipped`` (labels that only one image or none has), ``convention`` (as found), and what
        the registration took (where known).

    Raises:
        InputError: when a file is unusable, or the field is in another convention than it was read in.
    """
    pair = load_pair(files, measures)
    case: dict[str, Any] = {"moving_id": files.moving_id, "fixed_id": files.fixed_id}
    labels = _labels(pair)
    case |= pair_figures(_registered(pair), labels, measures.hd95)
    if labels is not None:
        case["labels_skipped"] = _skipped(pair, case["dice_per_label"])
    case["convention"] = pair.convention
    return {**case, **dict(files.costs)}


def load_pair(files: PairFiles, measures: Measures, judge: bool = True) -> LoadedPair:
    """Read images, labels and field of a pair, each once, and check them against each other.

    Raises:
        InputError: as :func:`measure_pair`.
    """
    sides = {side: getattr(files, side) or getattr(files, f"{side}_label") for side in ("moving", "fixed")}
    pair = LoadedPair(files, measures, moving_grid=read_grid(sides["moving"]), fixed_grid=read_grid(sides["fixed"]))
    if pair.fixed_grid.flat != pair.moving_grid.flat:
        raise InputError(
            f"{sides['moving']} is {pair.moving_grid.dims}D and {sides['fixed']} {pair.fixed_grid.dims}D: a pair is "
            "two images or two volumes."
        )
    if not measures.headers and pair.fixed_grid.shape != pair.moving_grid.shape:
        raise InputError(
            f"{sides['moving']} has shape {pair.moving_grid.shape} and {sides['fixed']} {pair.fixed_grid.shape}: a "
            "challenge's images have one shape; state --grids header to go by the headers."
        )
    if measures.shape is not None and pair.fixed_grid.shape != measures.shape:
        raise InputError(f"{sides['fixed']} has shape {pair.fixed_grid.shape}, but the task has {measures.shape}.")
    for side in sides:
        pair.images.update(_load_side(files, measures, side))
    if files.fixed_mask is not None:
        pair.images["mask"] = _load({"mask_label": files.fixed_mask})["mask_label"]
    grids = pair.fixed_grid, pair.moving_grid
    pair.ddf, pair.convention = read_field(files.field, grids[0], measures.convention, grids[1])
    if files.inverse is not None:
        pair.inverse_ddf, _ = read_field(files.inverse, grids[0], measures.convention, grids[0])
    if judge and not measures.trust:
        _judge(pair)
    return pair


def _load_side(files: PairFiles, measures: Measures, side: str) -> dict[str, Tensor]:
    paths = {"image": getattr(files, side), "label": getattr(files, f"{side}_label")}
    loaded = _load({key: path for key, path in paths.items() if path is not None}, measures)
    return {side if key == "image" else f"{side}_label": image for key, image in loaded.items()}


def _load(paths: dict[str, str], measures: Measures | None = None) -> dict[str, Tensor]:
    subject: Any = LoadSubjectd(list(paths))(paths)
    subject = CheckSubjectd(list(paths))(subject)
    if measures is not None and measures.label_groups is not None:
        lookup, _ = read_label_groups(measures.label_groups, measures.label_numbering)
        subject = MapLabelsd("label", lookup)(subject)
    images = {key: plain_tensor(subject[key]) for key in paths}
    return {key: lifted(image, image.ndim - 1) for key, image in images.items()}


def _judge(pair: LoadedPair) -> None:
    images = pair.images
    sides = [
        Sides(moving=images["moving" + kind], fixed=images["fixed" + kind], is_label=bool(kind))
        for kind in ("", "_label")
        if "fixed" + kind in images
    ]
    guessed = pair.measures.convention == "auto" and pair.convention == "voxels" and not says_voxels(pair.files.field)
    sentence = diagnose(
        pair.files.field,
        pair.ddf,
        sides,
        pair.fixed_grid,
        pair.between,
        pair.convention,
        images.get("fixed_label"),
        guessed,
    )
    if sentence is not None:
        raise InputError(sentence)


def _registered(pair: LoadedPair) -> RegisteredPair:
    """The pair as figures are taken of it, in its own dimensions."""
    mask, dims = _foreground(pair), pair.fixed_grid.dims
    labels = {name: pair.images[name][None] for name in ("moving_label", "fixed_label") if name in pair.images}
    return RegisteredPair(
        laid_field(pair.ddf, dims),
        **{name: laid(label, dims) for name, label in labels.items()},
        foreground=None if mask is None else laid(mask[None], dims),
        inverse_ddf=None if pair.inverse_ddf is None else laid_field(pair.inverse_ddf, dims),
        spacing=pair.fixed_grid.spacing[:dims],
        landmarks={files.figure: _landmarks(pair, files) for files in pair.files.landmarks},
        to_moving=laid_field(pair.to_moving, dims),
        to_moving_before=None if pair.same_grid else laid_field(pair.to_moving_before, dims),
        by_header=not pair.same_grid,
    )


def _labels(pair: LoadedPair) -> list[int] | None:
    """Values that count; None without label maps, or where both are empty."""
    if "fixed_label" not in pair.images:
        return None
    if pair.measures.labels is not None:
        return list(pair.measures.labels)
    occurring = {int(value) for side in ("moving", "fixed") for value in pair.images[f"{side}_label"].unique()}
    return sorted(occurring - {0}) or None


def _skipped(pair: LoadedPair, dice: Mapping[int, float]) -> int:
    """How many labels have no figure because an image lacks them.

    Raises:
        InputError: when that is so of all.
    """
    skipped = sum(math.isnan(value) for value in dice.values())
    if skipped == len(dice):
        raise InputError(
            f"None of the {len(dice)} labels occurs in both {pair.files.moving_label} and {pair.files.fixed_label}: "
            "check --label_groups and --label_values."
        )
    return skipped


def _foreground(pair: LoadedPair) -> Tensor | None:
    """(1, *fixed grid) bool, where folding counts, None for everywhere."""
    name, images = pair.measures.foreground, pair.images
    if "mask" in images:
        return mask_or_everywhere(images["mask"] > 0, str(pair.files.fixed_mask))
    if name == "none":
        return None
    if name not in images:
        name = f"{name}_label" if f"{name}_label" in images else name.removesuffix("_label")
    if images[name].shape[1:] != pair.ddf.shape[2:]:
        raise InputError(
            f"The foreground of {pair.files.moving_id} was asked for, but it has another grid than "
            f"{pair.files.fixed_id}: state --ndv_mask fixed."
        )
    mask = images[name] != 0 if name.endswith("_label") else foreground(images[name])
    return mask_or_everywhere(mask, str(getattr(pair.files, name)))


def _landmarks(pair: LoadedPair, files: LandmarkFiles) -> Landmarks:
    """Points or volumes; errors count in millimetres of the moving image (LUMIR: in voxels)."""
    dims = pair.fixed_grid.dims
    if files.fixed.endswith(IMAGES):
        loaded = _load({"moving_label": files.moving, "fixed_label": files.fixed})
        volumes = {name.removesuffix("_label"): laid(label[None], dims) for name, label in loaded.items()}
        return Landmarks(**volumes, spacing=None if pair.measures.lumir else pair.fixed_grid.spacing[:dims])
    sides = ((files.moving, pair.moving_grid), (files.fixed, pair.fixed_grid))
    moving, fixed = (read_landmarks(path, dims, grid, pair.measures.coordinates)[None] for path, grid in sides)
    # The field is continued as zero outside by the metric, so a change of grid is made on the points.
    inverse = torch.linalg.inv(pair.between)
    moving = moving @ inverse[:dims, :dims].T + inverse[:dims, 3]
    return Landmarks(moving, fixed, (pair.moving_grid if pair.same_grid else pair.fixed_grid).spacing[:dims])
