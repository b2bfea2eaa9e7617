# SPDX-License-Identifier: Apache-2.0
"""Registration of two images of a dictionary as a step among MONAI's dictionary transforms, to be inverted as these."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform
from monai.utils import ImageMetaKey, convert_to_tensor, ensure_tuple_rep
from monai.utils.enums import TraceKeys, TransformBackends
from torch import Tensor

from common.checks import InputError
from common.data.dataset import plain_affine, plain_tensor
from common.data.guides import guides_of_pair
from common.data.scan_pair import align_scans, alone, grids_of, overlap, registered_part, seen
from common.data.transforms import CheckSubjectd
from common.losses import GradientLoss, RegistrationLoss, Term, WeightedLoss, similarity, smoothness_weight
from common.optimisation.field import Field, FieldOfPair
from common.optimisation.inferer import OptimisingInferer
from common.spatial import Grid, displacement_to_moving, resample_ddf, warp_labels, warp_within, working_grid
from common.spatial.plane import laid, laid_field, lifted, lifted_field
from common.spatial.transform import Affine, Transform
from common.spatial.transform import Field as WorldField

_SIDES = ("moving", "fixed")
_MODES = ("bilinear", "nearest")
_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers of so many bytes: what is carried by the nearest voxel is moved as it is, whatever it stands for."""


class RegisterInstanced(MapTransform, InvertibleTransform):
    """Register an image of a dictionary to another one, and bring it and what goes with it to the other one's grid.

    First an affine alignment, then a displacement field that is optimised on these two images alone; no network, no
    training. The images may have any grids: those of their metadata place them in the world, and masks and what is
    carried along are placed by their own. The result is the same each time. It is computed where the images lie.

    The field is stored, too, as :class:`monai.data.MetaTensor` (d, *spatial) on the fixed image's grid, in its voxels
    (docs/conventions.md): the voxel x of the fixed image corresponds to the point ``affine @ (x + field(x))`` of the
    moving image's world. Its metadata has the affine of the fixed image, "alignment", the affine alignment alone
    ((4, 4), fixed world to moving world), and "optimisation", the steps that were made and the loss before and after.

    :class:`monai.transforms.Invertd` with ``orig_keys`` one of ``keys`` carries what lies on the fixed grid back to the
    grid that this key had, by the inverse of the field, and then through the inverses of the steps before this one.
    Metadata of what was carried are those of the fixed image, but for the name of the file, as
    :class:`monai.transforms.ResampleToMatchd` has it: ``SaveImaged(resample=True)`` writes it on the fixed file's grid.

    Where the main process trains on a GPU, torch refuses backward passes in forked workers of a data loader:
    ``torch.multiprocessing.set_start_method("spawn")``, by which MONAI then knows transforms by their class, helps.

    Args:
        keys: the moving image (1, *spatial), 2D or 3D, and what is carried to the fixed grid along with it (C,
            *spatial'), label maps for example, on that grid or others.
        fixed_key: the image (1, *spatial'') that it is registered to; it stays as it is.
        field_key: where the field is stored.
        mode: "bilinear" or "nearest", one for all keys or one for each; None takes the image linearly and all others by
            the nearest voxel. Linear results are float32 with the smallest value outside, the others keep their type,
            with 0 outside.
        affine: whether to align affinely first; without it the images have to overlap in the world.
        similarity: name of what is compared, see :func:`common.losses.similarity`.
        smoothness: of the field: 1 is what suits brains, see :func:`common.losses.smoothness_weight`.
        levels: of the optimisation, see :class:`common.optimisation.Field`.
        steps: to be made at all levels alike, or at each.
        learning_rate: largest step in voxels.
        fixed_mask_key: mask (1, *spatial'') of what of the fixed image counts, where it is not 0; None counts all. The
            affine alignment sees background elsewhere.
        moving_mask_key: mask (1, *spatial) of the moving image.
        allow_missing_keys: whether what is carried along, and masks, may be absent.

    Raises:
        InputError: for options out of range; on a call, for an image that is absent, no image of one channel, constant,
            or not finite, for a mask that is empty or on another grid than its image, and for images that do not
            overlap or of which one is 2D and one 3D.
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        keys: KeysCollection,
        fixed_key: Hashable,
        field_key: Hashable = "ddf",
        mode: str | Sequence[str] | None = None,
        affine: bool = True,
        similarity: str = "lncc",
        smoothness: float = 1.0,
        levels: Sequence[int] = (4, 2, 1),
        steps: int | Sequence[int] = 50,
        learning_rate: float = 0.5,
        fixed_mask_key: Hashable | None = None,
        moving_mask_key: Hashable | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        carried_along = len(self.keys) - 1
        modes = ensure_tuple_rep(mode or ("bilinear", *["nearest"] * carried_along), len(self.keys))
        self.mode = tuple(str(of_key) for of_key in modes)
        if not set(_MODES).issuperset(self.mode):
            raise InputError(f"The modes {[*self.mode]} are not among {', '.join(_MODES)}.")
        if {fixed_key, field_key} & {*self.keys} or fixed_key == field_key:
            raise InputError(f"The fixed image, {fixed_key!r}, and the field, {field_key!r}, need keys of their own.")
        self.images = {"moving": self.keys[0], "fixed": fixed_key}
        self.masks = {"moving": moving_mask_key, "fixed": fixed_mask_key}
        self.field_key, self.affine = field_key, affine
        self.inferer = OptimisingInferer(_loss(similarity, smoothness), steps, Field(levels), learning_rate)

    def __call__(self, data: Mapping[Any, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with what is under ``keys`` on the fixed grid, and with the field."""
        d = dict(data)
        images = {side: self._image(d, key) for side, key in self.images.items()}
        names = {side: _name(images[side]) for side in _SIDES}
        grids = grids_of(images, names)
        ddf, alignment, figures = self._registered(images, self._with_masks(d, images), grids, names)
        for key, mode in self.key_iterator(d, self.mode):
            d[key] = self._warped(_tracked(d[key], key), mode, images["fixed"], grids["fixed"], ddf, alignment)
        total = Transform((WorldField(grids["fixed"], ddf), Affine(alignment))).ddf(grids["fixed"])
        facts = {"alignment": alignment, "optimisation": figures}
        field = laid_field(total[0], grids["fixed"].dims)
        d[self.field_key] = MetaTensor(field, affine=images["fixed"].affine.clone(), meta=facts)
        return d

    def inverse(self, data: Mapping[Any, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with what is under ``keys`` on the grid that it came from."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self._warped_back(d, key)
        return d

    def _image(self, d: Mapping[Hashable, Any], key: Hashable) -> MetaTensor:
        if key not in d:
            raise InputError(f"There is no {key!r} to register among {', '.join(map(repr, d))}.")
        image = _tracked(d[key], key)
        if image.ndim not in (3, 4) or len(image) != 1:
            raise InputError(
                f"The image {_name(image)} has the shape {tuple(image.shape)}, but two images of one channel, "
                "(1, *spatial) in 2D or 3D, can be registered."
            )
        return image

    def _with_masks(self, d: Mapping[Hashable, Any], images: Mapping[str, MetaTensor]) -> dict[str, dict[str, Any]]:
        """Image and, where there is one, mask of each side, which are checked."""
        found: dict[str, dict[str, Any]] = {}
        for side, key in self.masks.items():
            found[side] = {"image": images[side]}
            if key in d:
                found[side]["mask"] = _tracked(d[key], key)
            elif key is not None and not self.allow_missing_keys:
                raise InputError(f"There is no {key!r}, which should be the mask of the {side} image.")
            CheckSubjectd(("image", "mask"))(found[side])
        return found

    def _registered(
        self,
        images: Mapping[str, MetaTensor],
        subjects: Mapping[str, Any],
        grids: Mapping[str, Grid],
        names: Mapping[str, str],
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Displacements (1, 3, *fixed) in voxels of the fixed grid, the affine after it, and what is to be told."""
        dims = grids["fixed"].dims
        scans = {side: lifted(plain_tensor(image).float(), dims) for side, image in images.items()}
        alignment = torch.eye(4, dtype=torch.float64)
        if self.affine:
            alignment, _ = align_scans(scans | _alone(scans, subjects), grids, names)
        elif not overlap(grids["moving"], grids["fixed"]):
            raise InputError(
                f"By their affines {names['moving']} and {names['fixed']} do not overlap: align them with affine=True."
            )
        working = working_grid(registered_part(scans["fixed"], grids["fixed"]), None)
        ways = {"moving": alignment, "fixed": None}
        pair = torch.stack([seen(scans[side], grids[side], working, names[side], ways[side]) for side in _SIDES], dim=1)
        guides = guides_of_pair(subjects, grids, {}, working, alignment, ["mask"])
        known = {name: mask[None].to(pair.device) for name, mask in guides.items()}
        still = FieldOfPair(torch.zeros(1, dims, *pair.shape[2:], device=pair.device))
        outputs = self.inferer(pair, still, targets=known)
        ddf = resample_ddf(lifted_field(outputs["ddf"].detach(), dims), working, grids["fixed"])
        told = outputs.get("optimisation", {})
        return ddf, alignment, {name: float(told[name]) for name in ("steps", "before", "after") if name in told}

    def _warped(
        self, image: MetaTensor, mode: str, fixed: MetaTensor, grid: Grid, ddf: Tensor, alignment: Tensor
    ) -> MetaTensor:
        """An image on the fixed grid, with what is needed to undo that."""
        own = Grid.of(image.shape[1:], plain_affine(image))
        place = displacement_to_moving(own, grid, ddf, alignment)
        values = _sampled(plain_tensor(image), place, mode, grid.dims, not own.same_as(grid))
        # As ResampleToMatchd has it: all says the fixed image's grid, but the name of the file stays.
        meta = deepcopy(fixed.meta)
        meta[ImageMetaKey.FILENAME_OR_OBJ] = _name(image)
        warped = MetaTensor(
            values, meta=meta, applied_operations=deepcopy(image.applied_operations), spatial_ndim=grid.dims
        )
        undo = {"mode": mode, "meta": deepcopy(image.meta), "field": ddf, "alignment": alignment}
        undo |= {"affine": own.affine, "fixed_affine": grid.affine}
        self.push_transform(warped, orig_size=tuple(image.shape[1:]), extra_info=undo)
        return warped

    def _warped_back(self, d: Mapping[Hashable, Any], key: Hashable) -> MetaTensor:
        """What lies on the fixed grid, on the grid that the key had before."""
        done = self.pop_transform(d, key)
        size, undo = done[TraceKeys.ORIG_SIZE], done[TraceKeys.EXTRA_INFO]
        image = _tracked(d[key], key)
        fixed = Grid.of(image.shape[1:], undo["fixed_affine"])
        if undo["field"].shape[2:] != fixed.shape:
            raise InputError(
                f"{key!r} has the shape {tuple(image.shape)}, but what is carried back has to lie on the grid of the "
                f"fixed image, which has {tuple(undo['field'].shape[2 : 2 + fixed.dims])} voxels."
            )
        own = Grid.of(size, undo["affine"])
        forward = Transform((WorldField(fixed, undo["field"]), Affine(undo["alignment"])))
        place = displacement_to_moving(fixed, own, forward.inverse().ddf(own))
        values = _sampled(plain_tensor(image), place, undo["mode"], fixed.dims, not own.same_as(fixed))
        return MetaTensor(
            values, meta=deepcopy(undo["meta"]), applied_operations=image.applied_operations, spatial_ndim=fixed.dims
        )


RegisterInstanceD = RegisterInstanceDict = RegisterInstanced


def _loss(name: str, smoothness: float) -> RegistrationLoss:
    compared = ["warped", "fixed", "ddf", "fixed_mask", "moving_mask"]
    terms = {
        "similarity": Term(WeightedLoss(similarity(name)), compared),
        "smoothness": Term(GradientLoss("l2"), ["ddf"], smoothness_weight(name, smoothness)),
    }
    return RegistrationLoss(terms, padding_mode="border")


def _alone(scans: Mapping[str, Tensor], subjects: Mapping[str, Any]) -> dict[str, Tensor]:
    """Of scans (1, *grid) that have a mask what lies in it."""
    masks = {side: plain_tensor(subject["mask"]) for side, subject in subjects.items() if "mask" in subject}
    return {side: alone(scans[side], mask.to(scans[side].device).view_as(scans[side])) for side, mask in masks.items()}


def _tracked(image: Any, key: Hashable) -> MetaTensor:
    """An array or tensor with metadata; where it comes from no file it is called by its key."""
    found = convert_to_tensor(image, track_meta=True)
    if ImageMetaKey.FILENAME_OR_OBJ in found.meta:
        return found
    meta = {**found.meta, ImageMetaKey.FILENAME_OR_OBJ: str(key)}
    return MetaTensor(found, meta=meta, applied_operations=found.applied_operations, spatial_ndim=found.spatial_ndim)


def _name(image: MetaTensor) -> str:
    return str(image.meta[ImageMetaKey.FILENAME_OR_OBJ])


def _sampled(image: Tensor, place: Tensor, mode: str, dims: int, by_header: bool) -> Tensor:
    """An image (C, *spatial) of two or three dimensions where displacements (1, 3, *spatial') of a volume point."""
    image, place = lifted(image, dims), place.to(image.device)
    if mode == "bilinear":
        return laid(warp_within(image.float()[None], place, outside=float(image.min()))[0], dims)
    channels = image.contiguous().view(_WHOLE[image.element_size()])[:, None]
    warped = warp_labels(channels, place.expand(len(channels), *place.shape[1:]), by_header)
    return laid(warped[:, 0].view(image.dtype), dims)
