# SPDX-License-Identifier: Apache-2.0
"""Golden files of the evaluation metrics: what this project computes for each of their entries."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import common.metrics as metrics
import common.metrics.ranking as ranking
from common.io.learn2reg import from_half_resolution, to_half_resolution
from common.spatial import jacobian_determinant
from common.spatial.labels import warp_labels, warp_labels_linear

Array = NDArray[Any]
Arrays = dict[str, Array]

_INPUTS = re.compile(r"in/|f64/(\w+_keypoints|nearest_coordinates|spacing_\d+)$")
# The published count of clip(determinant + 3, 1e-9, 1e9) <= 0, which is 0 whatever the field.
_CONSTANT = "f64/l2r_num_foldings"


def is_input(meta: dict[str, Any], name: str) -> bool:
    """Whether an entry of a file is given or constant and so nothing to reproduce, whatever its prefix says."""
    ranking_input = "hard_fraction" in meta["constructor"] and name in ("f64/dice", "f64/hd95", "f64/sdlogj")
    return ranking_input or name == _CONSTANT or bool(_INPUTS.match(name))


def compute(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    """Every entry of a file that this project can compute, under the same names."""
    return {name: np.asarray(value) for name, value in _compute(meta, arrays).items() if name in arrays}


def _compute(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    """What the entries of a file say it is about; may hold more than the file does."""
    if "out/kernel" in arrays:
        return _surface_elements(arrays)
    if "out/half" in arrays:
        return _half_resolution(arrays)
    if "out/nda_map" in arrays:
        return _area(arrays)
    if "hard_fraction" in meta["constructor"]:
        return _ranking(meta, arrays)
    if "in/fixed_labels" not in arrays:
        return {}
    computed = _overlap_and_surface(meta, arrays)
    if "f64/nearest_coordinates" in arrays:
        return computed | _edge_cases(meta, arrays)
    return computed | _folding(arrays) | _digital(arrays) | _linear(meta, arrays) | _landmarks(meta, arrays)


def _batched(array: Array) -> Tensor:
    """(*spatial) labels or masks to (1, 1, *spatial)."""
    return torch.from_numpy(np.ascontiguousarray(array))[None, None]


def _field(arrays: Arrays) -> Tensor:
    return torch.from_numpy(arrays["in/displacement"]).double()[None]


def _labels(meta: dict[str, Any]) -> list[int]:
    first, last = meta["constructor"]["labels"]
    return list(range(first, last + 1))


def _spacing(meta: dict[str, Any], arrays: Arrays) -> list[float]:
    """Decimal voxel sizes: the stored ones are rounded to float32."""
    given = meta["constructor"].get("spacing")
    return list(given) if given else [round(float(s), 6) for s in arrays["in/spacing"]]


def _surface_elements(arrays: Arrays) -> Arrays:
    computed: Arrays = {
        "out/kernel": metrics.neighbour_kernel(3),
        "f64/area_unit": metrics.surface_element_areas((1.0, 1.0, 1.0)),
    }
    for name in arrays:
        if found := re.match(r"f64/spacing_(\d+)$", name):
            spacing = tuple(float(s) for s in arrays[name])
            computed[f"f64/area_{found[1]}"] = metrics.surface_element_areas(spacing)
            computed[f"f64/length2d_{found[1]}"] = metrics.surface_element_areas(spacing[:2])
    return computed


def _half_resolution(arrays: Arrays) -> Arrays:
    field = arrays["in/displacement"]
    half = to_half_resolution(field, mode="constant").astype(np.float32)
    restored = from_half_resolution(half)
    error = np.abs(restored - field).max()
    return {"out/half": half, "out/restored": restored, "f64/max_round_trip_error": np.array(error, np.float64)}


def _area(arrays: Arrays) -> Arrays:
    field = _field(arrays)
    area, masked = metrics.nda(field), metrics.nda(field, _batched(arrays["in/mask"]))
    return {
        "out/nda_map": metrics.ndv_map(field, edges=True)[0, 0].numpy(),
        "f64/nda_area": area.volume[0].numpy(),
        "f64/nda_percent": area.percent[0].numpy(),
        "f64/nondiff_pixels": area.voxels[0].numpy(),
        "f64/nda_percent_masked": masked.percent[0].numpy(),
    }


def _overlap_and_surface(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    fixed, moving = _batched(arrays["in/fixed_labels"]), _batched(arrays["in/moving_labels"])
    labels, spacing = _labels(meta), _spacing(meta, arrays)
    warped = warp_labels(moving, _field(arrays))
    dice = metrics.dice_l2r(warped, fixed, labels, moving)
    hd95 = metrics.hd95_l2r(warped, fixed, labels, moving)
    voi = metrics.dice_voi(warped, fixed, labels)[0]
    per_label = arrays["f64/transmorph_dice_voi"].ndim == 1
    return {
        "out/warped_labels": warped[0, 0].numpy(),
        "f64/dice_l2r": dice[0].numpy(),
        "f64/dice_l2r_mean": metrics.mean_over_labels(dice)[0].numpy(),
        "f64/hd95_l2r": hd95[0].numpy(),
        "f64/hd95_l2r_mean": metrics.mean_over_labels(hd95)[0].numpy(),
        "f64/hd95_spacing": metrics.hd95_l2r(warped, fixed, labels, moving, spacing)[0].numpy(),
        "f64/hd100_spacing": metrics.hausdorff_per_label(warped, fixed, labels, moving, spacing, fraction=1)[0].numpy(),
        "f64/average_surface_distance_spacing": metrics.average_surface_distance(
            warped, fixed, labels, moving, spacing
        )[0].numpy(),
        "f64/surface_dice_1mm_spacing": metrics.surface_dice(warped, fixed, labels, 1.0, moving, spacing)[0].numpy(),
        "f64/transmorph_dice_voi": (voi if per_label else voi.mean()).numpy(),
        "f64/transmorph_dice_val": metrics.dice_voi(warped, fixed, [0, *labels]).mean().numpy(),
    }


def _edge_cases(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    fixed, moving = _batched(arrays["in/fixed_labels"]), _batched(arrays["in/moving_labels"])
    warped = warp_labels(moving, _field(arrays))[0, 0]
    mask, empty = fixed[0, 0] > 0, torch.zeros_like(fixed[0, 0])
    absent = int(max(fixed.max(), moving.max())) + 1
    computed: Arrays = {
        "f64/hd95_prediction_empty": np.array(metrics.surface_distances(mask, empty).hausdorff()),
        "f64/hd95_both_empty": np.array(metrics.surface_distances(empty, empty).hausdorff()),
        "f64/dice_both_empty": metrics.dice_per_label(fixed, fixed, [absent], absent="zero")[0, 0].numpy(),
        "f64/nearest_rounding": _sampled_on_a_line(meta, arrays["f64/nearest_coordinates"]),
    }
    for name in arrays:
        if found := re.match(r"f64/hd95_2d_labels_([\d_]+)$", name):
            computed[name] = _slice_distances(meta, arrays, fixed[0, 0], warped, [int(n) for n in found[1].split("_")])
    return computed


def _notes(meta: dict[str, Any]) -> str:
    notes = meta.get("notes", "")
    return notes if isinstance(notes, str) else " ".join(notes)


def _slice_distances(meta: dict[str, Any], arrays: Arrays, fixed: Tensor, warped: Tensor, labels: list[int]) -> Array:
    """HD95 between two slices of the volumes; the notes say which."""
    found = re.search(r"slice (\d+) of the fixed against slice (\d+)", _notes(meta))
    first, second = (int(found[1]), int(found[2])) if found else (4, 5)
    spacing = _spacing(meta, arrays)[:2]
    pairs = [(fixed[..., first] == label, warped[..., second] == label) for label in labels]
    return np.array([metrics.surface_distances(a, b, spacing).hausdorff() for a, b in pairs])


def _sampled_on_a_line(meta: dict[str, Any], coordinates: Array) -> Array:
    """Labels 1..n along the first axis (constant along the others), sampled at ``coordinates``."""
    found = re.search(r"values 1\.\.(\d+)", _notes(meta))
    line = torch.arange(1, (int(found[1]) if found else 6) + 1).view(1, 1, -1, 1, 1)
    # One field of a single voxel per point: its identity is 0, so that nothing rounds the coordinate.
    field = torch.zeros(len(coordinates), 3, 1, 1, 1, dtype=torch.float64)
    field[:, 0, 0, 0, 0] = torch.from_numpy(coordinates)
    return warp_labels(line.expand(len(coordinates), -1, -1, -1, -1), field).flatten().double().numpy()


def _folding(arrays: Arrays) -> Arrays:
    field, mask = _field(arrays), _batched(arrays["in/mask"])
    statistics = metrics.jacobian_statistics(field)
    determinant = jacobian_determinant(field)[0, 0]
    return {
        "out/transmorph_det": determinant.numpy(),
        "f64/transmorph_fold_fraction": statistics.fold_fraction[0].numpy(),
        "out/l2r_jacobian_determinant": determinant[2:-2, 2:-2, 2:-2].numpy(),
        "f64/count_l2r_det_below_0": (statistics.fold_fraction_interior[0] * determinant.numel()).numpy(),
        "f64/l2r_sdlogj": statistics.sdlogj_l2r[0].numpy(),
        "f64/l2r_sdlogj_masked": metrics.sdlogj_l2r(field, mask)[0].numpy(),
    }


def _digital(arrays: Arrays) -> Arrays:
    field, mask = _field(arrays), _batched(arrays["in/mask"])
    lumir = metrics.ndv_lumir(field, mask)
    package, masked = metrics.ndv_package(field), metrics.ndv_package(field, mask)
    inside = (mask[..., 1:-1, 1:-1, 1:-1] > 0)[0, 0]
    determinants = {f"out/det_{name}": det.numpy() for name, det in metrics.digital_determinants(field[0])}
    return determinants | {
        "out/det_central": metrics.central_determinant(field[0]).numpy(),
        "out/ndv_map": (metrics.ndv_map(field)[0, 0] * inside).numpy(),
        "f64/lumir_nondiff_voxels": lumir.voxels[0].numpy(),
        "f64/lumir_nondiff_tetrahedra": lumir.tetrahedra[0].numpy(),
        "f64/lumir_ndv_volume": lumir.volume[0].numpy(),
        "f64/lumir_mask_voxels": lumir.mask_voxels[0].numpy(),
        "f64/lumir_ndv_percent": lumir.percent[0].numpy(),
        "f64/package_ndv_volume": package.volume[0].numpy(),
        "f64/package_ndv_percent": package.percent[0].numpy(),
        "f64/package_nondiff_voxels": package.voxels[0].numpy(),
        "f64/package_masked_ndv_volume": masked.volume[0].numpy(),
        "f64/package_masked_ndv_percent": masked.percent[0].numpy(),
    }


def _linear(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    fixed, moving = _batched(arrays["in/fixed_labels"]), _batched(arrays["in/moving_labels"])
    warped = warp_labels_linear(moving, _field(arrays))
    dice = metrics.dice_l2r(warped, fixed, _labels(meta), moving)[0]
    return {"out/warped_labels_linear_argmax": warped[0, 0].numpy(), "f64/linear_argmax_dice": dice.numpy()}


def _landmarks(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    field, spacing = _field(arrays), _spacing(meta, arrays)
    points = [torch.from_numpy(arrays[f"f64/{name}_keypoints"])[None] for name in ("moving", "fixed")]
    volumes = [_batched(arrays[f"in/{name}_landmark_volume"]) for name in ("moving", "fixed")]
    computed = {}
    for suffix, ddf in (("", field), ("_no_registration", None)):
        computed[f"f64/tre_l2r{suffix}"] = metrics.tre_l2r(ddf, points[0], points[1], spacing)[0].numpy()
        computed[f"f64/tre_lumir{suffix}"] = metrics.tre_lumir(volumes[0], volumes[1], ddf)[0].numpy()
    return computed


def _ranking(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    tables = {name: ranking.replaced(arrays[f"f64/{name}"], name) for name in ("dice", "hd95", "sdlogj")}
    hard = ranking.hard_entries(tables["dice"][0], meta["constructor"]["hard_fraction"])
    scores = ranking.l2r_scores(tables, hard)
    computed = {f"f64/rankscore_{name}": value for name, value in scores.items() if name != "score"}
    tables["dice30"] = tables["dice"].reshape(len(tables["dice"]), -1)[:, hard]
    for name, values in tables.items():
        better = ranking.higher_is_better(name)
        computed[f"f64/worse_count_{name}"] = ranking.worse_counts(values, better, meta["constructor"]["p"])
    return computed | {"out/hard_indices": hard, "f64/final": scores["score"]}
