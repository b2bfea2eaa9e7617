# SPDX-License-Identifier: Apache-2.0
"""A registered pair of scans: all that follows from the network's field, made when it is asked for."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common.data.label_groups import MapLabelsd
from common.engine.batch import optimisation_of
from common.engine.registration_figures import guided_by, landmark_errors
from common.io.map_files import Maps
from common.metrics import dice_l2r, inverse_consistency_error, mean_over_labels
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
from common.spatial.plane import on_slices
from common.spatial.transform import Affine, Field, Transform

logger = logging.getLogger(__name__)
_SHOWN = ("ddf", "_map", "_scan", "_scan_label", "deviation")
"""Ends of the names of what has axes of space."""
UNCERTAINTY = "uncertainty"
INVERSE_TOLERANCE = 0.05
"""Voxels; a field whose inverse does not come back this near has folds, and is not given as one with an inverse."""


class Inversion(NamedTuple):
    """How a displacement was inverted.

    Attributes:
        transform: moving world to fixed world; None where the field folds.
        residual: how far there and back misses at most, in voxels of the fixed grid.
        source: "network" where it returned the way back itself, "solver" where the equation was solved.
    """

    transform: Transform | None
    residual: float
    source: str


class Registration:
    """One registered pair in the scanner's world; images of two dimensions are slices (:mod:`common.spatial.plane`).

    Args:
        pair: an item of :func:`common.engine.registered`, from :class:`common.data.ScanPairDataset`.
        functions: the network's maps of a batch as functions, and the number of this pair in it, where there are such.

    Attributes:
        fixed: grid of the fixed scan, on which all results lie.
        moving: grid of the moving scan.
        working: grid that the network saw.
        dims: 2 or 3.
        alignment: (4, 4) float64, fixed world to moving world, the affine part.
        aligned: what the affine alignment says of itself; empty without one.
        ddf: (1, 3, *fixed) float32, voxels of the fixed grid, before the affine part.
        back: the network's own way back, likewise; None where it returns none.
        label_names: names of label values, for outputs that have room for them; empty unless they are set.

    Raises:
        InputError: when what the network returned is not finite.
    """

    def __init__(self, pair: Mapping[str, Any], functions: tuple[Maps, int] | None = None) -> None:
        given = {key: value.cpu() if isinstance(value, Tensor) else value for key, value in pair.items()}
        self.fixed, self.moving, self.working = (
            Grid.of(given[image].shape[1:], given[affine])
            for image, affine in (("fixed_scan", "fixed_affine"), ("moving_scan", "moving_affine"), ("ddf", "affine"))
        )
        self.dims = self.fixed.dims
        shown = [key for key in given if key.endswith(_SHOWN) and isinstance(given[key], Tensor)]
        self.pair: dict[str, Any] = given | {key: on_slices(given[key], self.dims) for key in shown}
        self.functions = functions
        self.label_names: Mapping[int, str] = {}
        self.by_header = not self.fixed.same_as(self.moving)
        self.alignment: Tensor = self.pair["alignment"]
        # MONAI's decollation makes None of an empty dictionary.
        self.aligned: dict[str, Any] = dict(pair["aligned"] or {})
        self.ddf = self._of_network("ddf")
        self.back = self._of_network("inverse_ddf") if "inverse_ddf" in self.pair else None
        for values in self.maps.values():
            check_network_field(values, self.pair["moving_id"], self.pair["fixed_id"])

    def _of_network(self, name: str) -> Tensor:
        """A field of the network on the fixed grid."""
        field = resample_ddf(self.pair[name][None].float(), self.working, self.fixed)
        check_network_field(field, self.pair["moving_id"], self.pair["fixed_id"])
        return field

    @cached_property
    def maps(self) -> dict[str, Tensor]:
        """What the network returns beside fields, (C, *fixed) by name; "uncertainty" in millimetres."""
        maps = {name: value for name, value in self.pair.items() if name.endswith("_map") and isinstance(value, Tensor)}
        if "deviation" in self.pair:
            sizes = torch.tensor(self.working.spacing).view(1, -1, 1, 1, 1)
            maps[UNCERTAINTY] = lengths(sizes * self.pair["deviation"][None].float())[0]
        return {name: resample(value[None].float(), self.working, self.fixed)[0] for name, value in maps.items()}

    @cached_property
    def to_moving(self) -> Tensor:
        """(1, 3, *fixed): where a fixed voxel finds its value, in voxels of the moving scan."""
        return displacement_to_moving(self.moving, self.fixed, self.ddf, self.alignment)

    @cached_property
    def total(self) -> Tensor:
        """(1, 3, *fixed): the whole map in voxels of the fixed grid, as tools need it that know no affine part."""
        return displacement_to_moving(self.fixed, self.fixed, self.ddf, self.alignment)

    @cached_property
    def determinant(self) -> Tensor:
        """(1, 1, *fixed): the Jacobian determinant of the whole map."""
        return jacobian_determinant(self.total)

    @property
    def outside(self) -> float:
        """What warped images have where the moving scan has no voxel: its smallest value."""
        return float(self.pair["moving_scan"].min())

    @cached_property
    def warped(self) -> Tensor:
        """(1, 1, *fixed): the moving scan on the fixed grid, linear between voxels."""
        return warp_within(self.pair["moving_scan"][None], self.to_moving, outside=self.outside)

    @cached_property
    def unregistered(self) -> Tensor:
        """(1, 1, *fixed): the same as the network was given it, by header and affine part alone."""
        way = displacement_to_moving(self.moving, self.fixed, None, self.alignment)
        return warp_within(self.pair["moving_scan"][None], way, outside=self.outside)

    @cached_property
    def warped_label(self) -> Tensor | None:
        """(1, 1, *fixed): the moving label map on the fixed grid; None without one."""
        label = self.pair.get("moving_scan_label")
        return None if label is None else warp_labels(label[None], self.to_moving, self.by_header)

    @cached_property
    def transform(self) -> Transform:
        """Fixed world to moving world: the field, then the affine part."""
        return Transform((Field(self.fixed, self.ddf), Affine(self.alignment)))

    @cached_property
    def inversion(self) -> Inversion:
        """The network's own inverse where it has one that undoes its displacement; else the equation is solved."""
        back, source = self.back, "network"
        residual = None if back is None else float(lengths(compose(self.ddf, back)).max())
        if back is None or residual is None or residual > INVERSE_TOLERANCE:
            back, left = invert(self.ddf)
            residual, source = float(left.max()), "solver"
        stages = (Affine(torch.linalg.inv(self.alignment)), Field(self.fixed, back))
        return Inversion(Transform(stages) if residual <= INVERSE_TOLERANCE else None, residual, source)

    @property
    def inverse(self) -> Transform | None:
        """Moving world to fixed world; None where the field folds."""
        return self.inversion.transform

    @cached_property
    def whole_way_back(self) -> Tensor | None:
        """(1, 3, *fixed): the network's way back from points of the moving world; None where it returns none."""
        if self.back is None:
            return None
        # The alignment is undone first.
        unaligned = displacement_to_moving(self.fixed, self.fixed, None, torch.linalg.inv(self.alignment))
        return compose(self.back, unaligned.float())

    def record(self, labels: Sequence[int] | None, group: MapLabelsd) -> dict[str, Any]:
        """All that the record of an output folder says of the pair, but for files and times.

        Args:
            labels: values that the Dice is the mean of; None for all that both have.
            group: joins the labels of the files to those that count.
        """
        return {
            **self.figures(),
            **self.consistency(),
            **self.dice(labels, group),
            **landmark_errors(self.pair, self.stages, self.moving),
            **guided_by(self.pair),
            **({"optimisation": found} if (found := optimisation_of(self.pair)) else {}),
        }

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
        """Sizes, alignment, and how large and how invertible the displacement is."""
        largest = float(lengths(self.ddf).max())
        return {
            "working_size": list(self.working.shape[: self.dims]),
            "working_spacing": [float(f"{size:.6g}") for size in self.working.spacing[: self.dims]],
            "affine": {name: _number(value) for name, value in self.aligned.items()},
            "alignment": self.alignment.tolist(),
            "largest_displacement_voxels": round(largest, 3),
            "folded_percent": 100 * float((self.determinant <= 0).sum()) / self.determinant.numel(),
        }

    def inverse_figures(self) -> dict[str, Any]:
        """What the record says of an inverse that was asked for."""
        return {
            "inverse_residual_voxels": round(self.inversion.residual, 4),
            "inverse_from": self.inversion.source,
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


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value
