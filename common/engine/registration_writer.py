# SPDX-License-Identifier: Apache-2.0
"""What inference leaves behind: per pair the warped scan, the transform in forms that tools read, a picture."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys
from torch import Tensor

from common.data.label_groups import Lookup, MapLabelsd
from common.data.request import pair_name
from common.engine.batch import optimisation_of, registered
from common.engine.clock import NetworkClock
from common.engine.registration_figures import guided_by, landmark_errors, sentence
from common.engine.registration_folder import RegistrationFolder
from common.io.files import write_bytes
from common.io.map_files import SUFFIX, maps_of, write_map
from common.io.nifti import write_ddf, write_image
from common.io.png import PNG, write_png
from common.io.provenance import peak_memory
from common.io.transforms import Affine, Field, Transform, write_displacement, write_transform
from common.metrics import dice_l2r, inverse_consistency_error, mean_over_labels
from common.report.panels import as_png, panel
from common.spatial import (
    Grid,
    compose,
    displacement_to_moving,
    jacobian_determinant,
    resample,
    resample_ddf,
    warp_labels,
    warp_within,
)
from common.spatial.finite import check_network_field
from common.spatial.foreground import foreground, mask_or_everywhere
from common.spatial.invert import invert
from common.spatial.lengths import lengths
from common.spatial.plane import downwards, in_plane, on_slices

logger = logging.getLogger(__name__)
_SHOWN = ("ddf", "_map", "_scan", "_scan_label", "deviation")
"""Ends of the names of what has axes of space."""
UNCERTAINTY = "uncertainty"
INVERSE_TOLERANCE = 0.05
"""Voxels; a field whose inverse does not come back this near has folds, and gets no inverse file."""


class RegistrationWriter:
    """Writes what belongs to each pair, and notes it in the folder's record when all of it is there.

    Per pair ``<moving>_to_<fixed>_``: ``warped.nii.gz`` and ``warped_label.nii.gz`` on the fixed scan's grid;
    ``transform.h5`` (ITK: displacement, then affine) and ``inverse.h5``; ``displacement.nii.gz`` (the whole transform,
    millimetres LPS, as ITK, ANTs and 3D Slicer read it); ``ddf.nii.gz`` (the same in voxels of the fixed grid);
    ``jacobian.nii.gz`` (its determinant); ``panel.png``. Of a network that returns the way back, too,
    ``inverse_ddf.nii.gz`` (the whole of it, in voxels of the fixed grid), and how far it misses to undo the other. What
    the network returns under a name that ends in ``_map`` is written under that name, on the fixed scan's grid, and
    shown in the panel; of ``deviation`` that is ``uncertainty.nii.gz``, the root of its mean squared length in
    millimetres, before the affine alignment. ``map.pt`` holds ``map`` and ``inverse_map`` where they are functions that
    a file can hold (:mod:`common.io.map_files`). All files of two images are of two dimensions; of PNG, ``warped.png``
    and ``warped_label.png`` are written, too, their values rounded.

    Args:
        folder: where, and whether to overwrite.
        labels: label values that the Dice is the mean of, where both scans have label maps; None for all that both
            have.
        lookup: group of each label value of the files, see :func:`common.data.read_label_groups`; None takes them as
            they are. Warped label maps keep the values of the files.
    """

    def __init__(
        self, folder: RegistrationFolder, labels: Sequence[int] | None = None, lookup: Lookup | None = None
    ) -> None:
        self.folder = folder
        self._clock = NetworkClock()
        self.labels = labels
        self.group = MapLabelsd("label", lookup)
        self._functions: dict[str, Any] = {}

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        self._clock.attach(engine)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._keep_functions)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write)

    def _keep_functions(self, engine: Engine) -> None:
        """Takes the functions out of the outputs, which could not be taken apart with them."""
        outputs = engine.state.output[CommonKeys.PRED]
        self._functions = {name: outputs.pop(name) for name in [*outputs] if callable(outputs[name])}

    def _write(self, engine: Engine) -> None:
        pairs = registered(engine.state.output)
        maps, self._functions = maps_of(self._functions), {}
        for number, pair in enumerate(pairs):
            result = _Registration(pair)
            self.folder.claim()
            name = pair_name(pair["moving_id"], pair["fixed_id"])
            prefix = self.folder.output_dir / name
            files = result.write(str(prefix))
            if maps is not None:
                files.append(Path(f"{prefix}_map{SUFFIX}"))
                write_map(files[-1], maps, number, result.working, result.alignment)
            entry = {
                "moving": pair["path_moving"],
                "fixed": pair["path_fixed"],
                "moving_id": pair["moving_id"],
                "fixed_id": pair["fixed_id"],
                "files": [path.name for path in files],
                "network_seconds": round(self._clock.seconds / len(pairs), 3),
                **result.figures(),
                **result.consistency(),
                **result.dice(self.labels, self.group),
                **landmark_errors(result.pair, result.stages, result.moving),
                **guided_by(pair),
                **({"optimisation": found} if (found := optimisation_of(pair)) else {}),
            }
            entry |= peak_memory(engine.state.device)
            self.folder.record(name, entry)
            logger.info("%s: %s", name, sentence(entry))


class _Registration:
    """One registered pair in the scanner's world; of two dimensions as slices, see :mod:`common.spatial.plane`."""

    def __init__(self, pair: Mapping[str, Any]) -> None:
        given = {key: value.cpu() if isinstance(value, Tensor) else value for key, value in pair.items()}
        self.fixed, self.moving, self.working = (
            Grid.of(given[image].shape[1:], given[affine])
            for image, affine in (("fixed_scan", "fixed_affine"), ("moving_scan", "moving_affine"), ("ddf", "affine"))
        )
        working, self.dims = self.working, self.fixed.dims
        shown = [key for key in given if key.endswith(_SHOWN) and isinstance(given[key], Tensor)]
        self.pair = given | {key: on_slices(given[key], self.dims) for key in shown}
        self.by_header = not self.fixed.same_as(self.moving)
        self.alignment: Tensor = self.pair["alignment"]
        # MONAI's decollation makes None of an empty dictionary.
        self.aligned: dict[str, Any] = dict(pair["aligned"] or {})
        self.ddf = resample_ddf(self.pair["ddf"][None].float(), working, self.fixed)
        self.to_moving = displacement_to_moving(self.moving, self.fixed, self.ddf, self.alignment)
        # The alignment in voxels of the fixed grid: where tools that know no affine find their value.
        self.total = displacement_to_moving(self.fixed, self.fixed, self.ddf, self.alignment)
        check_network_field(self.total, self.pair["moving_id"], self.pair["fixed_id"])
        self.determinant = jacobian_determinant(self.total)
        back = self.pair.get("inverse_ddf")
        self.back = None if back is None else resample_ddf(back[None].float(), working, self.fixed)
        if self.back is not None:
            check_network_field(self.back, self.pair["moving_id"], self.pair["fixed_id"])
        maps = {name: value for name, value in self.pair.items() if name.endswith("_map") and isinstance(value, Tensor)}
        if "deviation" in self.pair:
            sizes = torch.tensor(working.spacing).view(1, -1, 1, 1, 1)
            maps[UNCERTAINTY] = lengths(sizes * self.pair["deviation"][None].float())[0]
        self.maps = {name: resample(value[None].float(), working, self.fixed)[0] for name, value in maps.items()}
        for values in self.maps.values():
            check_network_field(values, self.pair["moving_id"], self.pair["fixed_id"])

    def write(self, prefix: str) -> list[Path]:
        """Write all files; returns their paths."""
        affine = self.fixed.affine
        scan = self.pair["moving_scan"][None]
        outside = float(scan.min())
        warped = warp_within(scan, self.to_moving, outside=outside)
        names = ("warped", "displacement", "ddf", "jacobian")
        path = {name: Path(f"{prefix}_{name}.nii.gz") for name in names}
        path |= {"transform": Path(f"{prefix}_transform.h5"), "panel": Path(f"{prefix}_panel.png")}
        pictures = {"warped": warped}
        if "moving_scan_label" in self.pair:
            path["warped_label"] = Path(f"{prefix}_warped_label.nii.gz")
            label = self.pair["moving_scan_label"][None]
            pictures["warped_label"] = warp_labels(label, self.to_moving, self.by_header)
        for name, values in pictures.items():
            write_image(path[name], in_plane(values[0], self.dims), affine)
            if str(self.pair["path_moving"]).endswith(PNG):
                path[f"{name}.png"] = Path(f"{prefix}_{name}.png")
                write_png(path[f"{name}.png"], values[0, 0, ..., 0])
        write_displacement(path["displacement"], self.total, self.fixed)
        write_ddf(path["ddf"], in_plane(self.total[0], self.dims), affine)
        write_image(path["jacobian"], in_plane(self.determinant[0], self.dims), affine)
        forward = Transform((Field(self.fixed, self.ddf), Affine(self.alignment)))
        write_transform(path["transform"], forward)
        if self.back is not None:
            path["inverse_ddf"] = Path(f"{prefix}_inverse_ddf.nii.gz")
            write_ddf(path["inverse_ddf"], in_plane(self._whole_way_back(self.back)[0], self.dims), affine)
        inverse = self._inverse()
        if inverse is not None:
            path["inverse"] = Path(f"{prefix}_inverse.h5")
            write_transform(path["inverse"], inverse)
        for name, values in self.maps.items():
            path[name] = Path(f"{prefix}_{name}.nii.gz")
            (write_image if len(values) == 1 else write_ddf)(path[name], in_plane(values, self.dims), affine)
        write_bytes(path["panel"], self._picture(warped, scan, outside, Path(prefix).name))
        return list(path.values())

    def _whole_way_back(self, back: Tensor) -> Tensor:
        """From points of the moving image's world, on the fixed grid: the alignment is undone first."""
        unaligned = displacement_to_moving(self.fixed, self.fixed, None, torch.linalg.inv(self.alignment))
        return compose(back, unaligned.float())

    def _picture(self, warped: Tensor, scan: Tensor, outside: float, title: str) -> bytes:
        """Before and after; "before" is what the network was given: by header and affine alignment."""
        to_aligned = displacement_to_moving(self.moving, self.fixed, None, self.alignment)
        aligned = warp_within(scan, to_aligned, outside=outside)
        images = {"moving": aligned[0], "fixed": self.pair["fixed_scan"], "warped": warped[0], "ddf": self.ddf[0]}
        figure = panel(
            **{name: in_plane(values, self.dims) for name, values in images.items()},
            title=title,
            spacing=self.fixed.spacing[: self.dims],
            maps={_titled(name): in_plane(values, self.dims) for name, values in self.maps.items()},
            downwards=self.fixed.flat and downwards(self.fixed.affine),
        )
        return as_png(figure, dpi=110)

    def _inverse(self) -> Transform | None:
        """The network's own inverse where it has one that undoes its displacement; else the equation is solved."""
        self.inverse_from = "network"
        inverse = self._own_inverse()
        if inverse is None:
            self.inverse_from = "solver"
            inverse, residual = invert(self.ddf)
            self.inverse_residual = float(residual.max())
            if self.inverse_residual > INVERSE_TOLERANCE:
                return None
        return Transform((Affine(torch.linalg.inv(self.alignment)), Field(self.fixed, inverse)))

    def _own_inverse(self) -> Tensor | None:
        if self.back is None:
            return None
        self.inverse_residual = float(lengths(compose(self.ddf, self.back)).max())
        return self.back if self.inverse_residual <= INVERSE_TOLERANCE else None

    def consistency(self) -> dict[str, Any]:
        """How far the network's way back misses to undo its displacement, in the fixed scan's foreground."""
        if self.back is None:
            return {}
        mask = mask_or_everywhere(foreground(self.pair["fixed_scan"][None, :1]), str(self.pair["path_fixed"]))
        errors = {"voxels": None, "millimetres": self.fixed.spacing}
        found = {unit: inverse_consistency_error(self.ddf, self.back, size, mask) for unit, size in errors.items()}
        return {
            "inverse_consistency": {
                f"{name}_{unit}": round(float(value), 5)
                for unit, error in found.items()
                for name, value in (("mean", error.mean), ("largest", error.maximum))
            }
        }

    def figures(self) -> dict[str, Any]:
        """What the record says of the pair."""
        largest = float(lengths(self.ddf).max())
        return {
            "working_size": list(self.working.shape[: self.dims]),
            "working_spacing": [float(f"{size:.6g}") for size in self.working.spacing[: self.dims]],
            "affine": {name: _number(value) for name, value in self.aligned.items()},
            "alignment": self.alignment.tolist(),
            "largest_displacement_voxels": round(largest, 3),
            "folded_percent": 100 * float((self.determinant <= 0).sum()) / self.determinant.numel(),
            "inverse_residual_voxels": round(self.inverse_residual, 4),
            "inverse_from": self.inverse_from,
        }

    def stages(self) -> dict[str, Tensor]:
        """Where a fixed voxel finds its value in the moving scan: by header, after the affine alignment, at the end."""
        found = {"header": displacement_to_moving(self.moving, self.fixed)}
        if self.aligned:
            found["affine"] = displacement_to_moving(self.moving, self.fixed, None, self.alignment)
        return {**found, "registered": self.to_moving}

    def dice(self, labels: Sequence[int] | None, group: MapLabelsd) -> dict[str, Any]:
        """Mean Dice by header, after the affine alignment and after registration; empty without common labels."""
        if not {"moving_scan_label", "fixed_scan_label"} <= set(self.pair):
            return {}
        fixed = group({"label": self.pair["fixed_scan_label"]})["label"][None]
        moving = group({"label": self.pair["moving_scan_label"]})["label"][None]
        common = set(fixed.unique().tolist()) & set(moving.unique().tolist()) - {0}
        counted = sorted(common) if labels is None else list(labels)
        if not common.intersection(counted):
            logger.warning(
                "The label maps of %s and %s have no label in common: there is no Dice.",
                *(self.pair["path_moving"], self.pair["path_fixed"]),
            )
            return {}
        scores = {
            name: float(mean_over_labels(dice_l2r(warp_labels(moving, ddf, self.by_header), fixed, counted, moving)))
            for name, ddf in self.stages().items()
        }
        return {"dice": scores, "labels": len(common.intersection(counted))}


def _titled(name: str) -> str:
    return f"{name} (mm)" if name == UNCERTAINTY else name


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value
