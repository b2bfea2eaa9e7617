# SPDX-License-Identifier: Apache-2.0
"""Pairs of scans as they come from the scanner: any grid, any orientation, brought to the grid a network wants."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Identityd, MapTransform
from torch import Tensor

from common.checks import InputError
from common.data.dataset import PairDataset, plain_tensor
from common.data.guides import guides_of_pair
from common.data.readers.listing import LANDMARKS, MASK
from common.data.scan_pair import align_scans, alone, grids_of, overlap, registered_part, scaled, seen
from common.data.working_grid import along_ras, sized_grid, turned_grid
from common.spatial import Grid, resample, working_grid
from common.spatial.plane import laid, lifted

logger = logging.getLogger(__name__)
_MOST_VOXELS = 1 << 30
_SPACING = "The spacing {} must be {}, or None for that of the fixed scan."
_COARSE = 8.0
"""Times as long as the scan's own voxels: what is seen of it with voxels of this size is hardly worth registering."""


class ScanPairDataset(PairDataset):
    """Pairs of scans on grids of their own, seen by the network on one working grid.

    The working grid covers the foreground of the fixed scan, has the network's voxel size and array axes nearest to
    RAS+, or to another ``orientation``. Both scans are sampled there, the moving one by the header geometry and, if
    asked, an affine alignment. Images of two dimensions are treated alike, in their plane: they take part as slices
    (:mod:`common.spatial.plane`), and the network sees them without the third axis, their axes as the fixed image has
    them.

    Args:
        data: subjects {"id", "image", "label", "mask" and "landmarks" (these three optional)}.
        transform: loads and checks one subject, see :class:`common.data.PairDataset`.
        spacing: voxel size in millimetres that the network was trained with, for the axes right, anterior, superior, or
            those of ``orientation``; for images of two dimensions the first two count, and volumes of one slice may
            have two alone; None takes that of the fixed scan.
        affine: whether to align the moving scan affinely before the network sees it.
        intensity: applied to both images on the working grid, (1, *spatial) to the same: what the network was trained
            with. Then they are brought to scale, see :func:`common.data.intensity.fit_intensity`.
        spatial_size: voxels of the working grid, about the centre of the fixed scan in place of its foreground, for a
            network that is made for images of one size; None for the foreground.
        orientation: where the axes of arrays went to in training, see :func:`common.data.working_grid.turned_grid`.
        masked: whether the network sees what label maps cover alone, 0 elsewhere, where both scans have one; so does
            the affine alignment.
        cache_rate: see :class:`common.data.PairDataset`.
        guides: what an optimisation on the pair looks at beside both images, of "mask", "label" and "landmarks": it
            comes to the working grid, too, see :func:`common.data.guides.guides_of_pair`. The affine alignment sees
            what these masks leave.

    Raises:
        InputError: as :class:`common.data.PairDataset` and, on access, of guides as that function; by the sampler or on
            access, for a header that cannot be inverted, two scans that do not overlap in the scanner's world without
            ``affine``, and an image of two dimensions with a volume.
    """

    # Files are written of the scans as they are.
    scale: MapTransform = Identityd("image", allow_missing_keys=True)

    def __init__(
        self,
        data: Sequence[dict[str, Any]],
        transform: Callable[..., Any],
        spacing: Sequence[float] | None = None,
        affine: bool = False,
        intensity: Callable[[Tensor], Tensor] | None = None,
        spatial_size: Sequence[int] | None = None,
        orientation: str = "RAS",
        masked: bool = False,
        cache_rate: float = 1.0,
        guides: Sequence[str] = (),
    ) -> None:
        super().__init__(data, transform, cache_rate, progress=len(data) > 2)
        # Labels of one scan are of use by themselves: they are warped.
        self.labelled = []
        self.spacing = _checked_spacing(spacing)
        self.affine = affine
        self.intensity = intensity
        self.spatial_size = spatial_size
        self.orientation = orientation
        self.masked = masked
        self.guides = tuple(guides)

    def __getitem__(self, index: tuple[Any, ...]) -> dict[str, Any]:
        """One pair.

        Args:
            index: (moving, fixed), indices of subjects; what follows does not count.

        Returns:
            "moving" and "fixed" (1, *working) float32, what the network sees; "moving_scan" and "fixed_scan"
            (1, *own grid) float32 and, where there are such, "moving_scan_label" and "fixed_scan_label", and in voxels
            of these grids (N, d), "moving_scan_landmarks" and "fixed_scan_landmarks"; their affines "moving_affine",
            "fixed_affine" and "affine", that of the working grid, (4, 4) float64, and its "spacing" (d,); "alignment"
            (4, 4), fixed world to moving world; "aligned", a dictionary of what the affine alignment says of itself,
            empty without one; what the pair is guided by; "moving_id", "fixed_id", "path_moving", "path_fixed".
        """
        sides = dict(zip(("moving", "fixed"), index[:2], strict=True))
        subjects = {side: self._subject(position) for side, position in sides.items()}
        paths = {side: str(self.data[position]["image"]) for side, position in sides.items()}
        grids = self._grids({side: subject["image"] for side, subject in subjects.items()}, paths)
        dims = grids["fixed"].dims
        scans = {side: lifted(plain_tensor(subject["image"]).float(), dims) for side, subject in subjects.items()}
        spacing, size = (along_ras(values, self.orientation) for values in (self.spacing, self.spatial_size))
        working = working_grid(registered_part(scans["fixed"], grids["fixed"]), spacing)
        _check_scale(grids["fixed"], working, paths["fixed"])
        if size is not None:
            working = sized_grid(grids["fixed"], spacing, [int(n) for n in size])
        working = turned_grid(working, self.orientation)
        masks = self._masks(subjects, dims)
        guides = self._masks_of_guides(subjects, dims)
        within = {side: alone(scaled(scans[side], self.intensity), mask) for side, mask in guides.items()}
        # As the network sees them.
        within |= {side: scaled(scans[side], self.intensity) * mask for side, mask in masks.items()}
        matrix, aligned = self._aligned(scans | within, grids, paths)
        item: dict[str, Any] = {
            "moving": self._seen(scans["moving"], grids["moving"], working, paths["moving"], matrix),
            "fixed": self._seen(scans["fixed"], grids["fixed"], working, paths["fixed"]),
            "affine": working.affine,
            "alignment": matrix,
            "aligned": aligned,
            "spacing": torch.tensor(working.spacing[:dims]),
        }
        for side, subject in subjects.items():
            item[f"{side}_scan"] = laid(scans[side], dims)
            item[f"{side}_affine"] = grids[side].affine
            item[f"{side}_id"], item[f"path_{side}"] = self.data[sides[side]]["id"], paths[side]
            for key in {"label", LANDMARKS} & subject.keys():
                item[f"{side}_scan_{key}"] = plain_tensor(subject[key])
        for side, mask in masks.items():
            way = matrix if side == "moving" else None
            seen = resample(mask[None], grids[side], working, way, "nearest", 0.0)[0]
            item[side] = item[side] * laid(seen, dims)
        files = {side: self.data[position].get(LANDMARKS) for side, position in sides.items()}
        return item | guides_of_pair(subjects, grids, files, working, matrix, self.guides)

    def _masks(self, subjects: dict[str, Any], dims: int) -> dict[str, Tensor]:
        """What is seen of both scans, (1, *own grid) of 0 and 1, by side; empty where one has no label map."""
        if not self.masked or not all("label" in subject for subject in subjects.values()):
            return {}
        return {side: lifted((plain_tensor(s["label"]) != 0).float(), dims) for side, s in subjects.items()}

    def _masks_of_guides(self, subjects: dict[str, Any], dims: int) -> dict[str, Tensor]:
        """The same of the masks that a pair is guided by; each side may have one."""
        masked = {side: s[MASK] for side, s in subjects.items() if MASK in self.guides and MASK in s}
        return {side: lifted((plain_tensor(mask) != 0).float(), dims) for side, mask in masked.items()}

    def _check_pair(self, moving: tuple[MetaTensor | None, str], fixed: tuple[MetaTensor | None, str]) -> None:
        paths = {"moving": moving[1], "fixed": fixed[1]}
        outlines = {"moving": moving[0], "fixed": fixed[0]}
        grids = self._grids({side: outline for side, outline in outlines.items() if outline is not None}, paths)
        if not self.affine and len(grids) == 2:
            _check_overlap(grids, paths)

    def _grids(self, images: dict[str, Tensor], paths: dict[str, str]) -> dict[str, Grid]:
        """Grids of both sides, which have to be of as many dimensions; two sizes are for these or a single slice."""
        grids = grids_of(images, paths)
        if self.spacing is not None and len(self.spacing) == 2 and any(grid.shape[2] > 1 for grid in grids.values()):
            raise InputError(_SPACING.format(list(self.spacing), "three voxel sizes in millimetres, such as [1,1,1]"))
        return grids

    def _aligned(
        self, scans: dict[str, Tensor], grids: dict[str, Grid], paths: dict[str, str]
    ) -> tuple[Tensor, dict[str, Any]]:
        identity = torch.eye(4, dtype=torch.float64)
        name = f"{paths['moving']} to {paths['fixed']}"
        if not self.affine:
            _check_overlap(grids, paths)
            if not grids["fixed"].same_as(grids["moving"]):
                logger.info("%s: the moving scan is brought to the fixed grid by its header.", name)
            return identity, {}
        return align_scans(scans, grids, paths)

    def _seen(self, scan: Tensor, grid: Grid, working: Grid, path: str, alignment: Tensor | None = None) -> Tensor:
        return seen(scan, grid, working, path, alignment, self.intensity)


def _checked_spacing(spacing: Sequence[float] | None) -> tuple[float, ...] | None:
    if spacing is None:
        return None
    is_list = isinstance(spacing, Sequence) and not isinstance(spacing, str)
    sizes = tuple(float(size) for size in spacing if isinstance(size, int | float)) if is_list else ()
    if len(sizes) not in (2, 3) or not all(0 < size < math.inf for size in sizes):
        raise InputError(
            _SPACING.format(repr(spacing), "three voxel sizes in millimetres, such as [1,1,1] ([1,1] for 2D images)")
        )
    return sizes


def _check_scale(scan: Grid, working: Grid, path: str) -> None:
    """Refuse or warn of voxels of another order than the scan's, as small animals and wrong units bring them."""
    own, seen = ((" x ".join(f"{size:.3g}" for size in grid.spacing[: grid.dims])) for grid in (scan, working))
    sentence = f"The voxels of {path} are {own} mm, those that the network sees {seen} mm"
    if math.prod(working.shape) > _MOST_VOXELS:
        raise InputError(
            f"{sentence}, {' x '.join(map(str, working.shape))} of them: check the unit of its header, or take its own "
            "voxels with --spacing None."
        )
    if math.prod(working.spacing) > _COARSE**scan.dims * math.prod(scan.spacing):
        logger.warning("%s: little of it is left; --spacing None takes its own voxels.", sentence)


def _check_overlap(grids: dict[str, Grid], paths: dict[str, str]) -> None:
    if not overlap(grids["moving"], grids["fixed"]):
        raise InputError(
            f"By their headers the scans {paths['moving']} and {paths['fixed']} do not overlap; align them with "
            "--affine true."
        )
