# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from torch import Tensor

from common.checks import InputError
from common.evaluation.pair_files import LandmarkFiles, PairFiles
from common.evaluation.pair_measure import Measures, measure_pair
from common.io.nifti import write_ddf, write_image
from common.metrics import ndv_lumir
from common.metrics.handlers import RegistrationMetrics

SHAPE = (14, 12, 10)
AFFINE = torch.diag(torch.tensor([2.0, 1.5, 1.0, 1.0], dtype=torch.float64))


def tensors(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {"ddf": torch.randn(3, *SHAPE, generator=generator)}
    for side in ("moving", "fixed"):
        found[side] = torch.rand(1, *SHAPE, generator=generator) - 0.3
        found[f"{side}_label"] = torch.randint(0, 3, (1, *SHAPE), generator=generator, dtype=torch.uint8)
        found[f"{side}_keypoints"] = 8 * torch.rand(4, 3, generator=generator, dtype=torch.float64)
    return found


@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_files_have_the_figures_of_the_same_pair_in_memory(tmp_path: Path, side: str) -> None:
    pair = tensors()
    pair["inverse_ddf"] = 0.1 - pair["ddf"]
    for name in ("ddf", "inverse_ddf"):
        write_ddf(tmp_path / f"{name}.nii.gz", pair[name], AFFINE)
    for name in ("moving", "fixed", "moving_label", "fixed_label"):
        write_image(tmp_path / f"{name}.nii.gz", pair[name], AFFINE)
    for name in ("moving", "fixed"):
        np.savetxt(tmp_path / f"{name}.csv", pair[f"{name}_keypoints"].numpy(), delimiter=",", fmt="%.17g")
    images = {name: str(tmp_path / f"{name}.nii.gz") for name in ("moving", "fixed", "moving_label", "fixed_label")}
    points = LandmarkFiles("tre", moving=str(tmp_path / "moving.csv"), fixed=str(tmp_path / "fixed.csv"))
    files = PairFiles(
        moving_id="m",
        fixed_id="f",
        field=str(tmp_path / "ddf.nii.gz"),
        **images,
        landmarks=(points,),
        costs=(("seconds", 1.5), ("peak_memory_gb", 0.4)),
        inverse=str(tmp_path / "inverse_ddf.nii.gz"),
    )
    measures = Measures(convention="voxels", hd95="millimetres", foreground=side, trust=True)
    metrics = RegistrationMetrics(labels=[1, 2], hd95="millimetres", mask=side)
    metrics.update({**pair, "affine": AFFINE, "fixed_id": "f", "moving_id": "m"})
    expected = metrics.cases[0]
    said = {"convention": "voxels", "labels_skipped": 0, "seconds": 1.5, "peak_memory_gb": 0.4}
    assert measure_pair(files, measures) == {**expected, **said}
    assert {"dice_before", "hd95_per_label", "tre_before", "ndv", "inverse_consistency_max"} <= set(expected)


@pytest.mark.parametrize(
    ("fixed_size", "moving_size", "unit"),
    [(1.0, 1.09, "mm"), (0.01, 0.0109, "mm"), (0.001, 0.00109, "mm"), (10, 10.9, "micron"), (0.001, 0.00109, "meter")],
)
def test_grids_are_told_apart_whatever_the_size_of_their_voxels(
    tmp_path: Path, fixed_size: float, moving_size: float, unit: str
) -> None:
    shape = (24, 20, 22)
    rng = np.random.default_rng(0)
    labels = [np.digitize(gaussian_filter(rng.normal(size=shape), 2), [-0.02, 0.03]).astype(np.uint8) for _ in "ab"]
    for name, label, size in zip(("fixed_label", "moving_label"), labels, (fixed_size, moving_size), strict=True):
        file = nibabel.Nifti1Image(label, np.diag([size, size, size, 1.0]))
        file.header.set_xyzt_units(unit)
        nibabel.save(file, tmp_path / f"{name}.nii")
    np.save(tmp_path / "ddf.npy", np.zeros((3, *shape), np.float32))
    moving, fixed = (str(tmp_path / f"{side}_label.nii") for side in ("moving", "fixed"))
    files = PairFiles("m", "f", str(tmp_path / "ddf.npy"), moving_label=moving, fixed_label=fixed)
    case = measure_pair(files, Measures(hd95=None, trust=True))
    places = np.indices(shape) * (fixed_size / moving_size)
    warped = map_coordinates(labels[1], places, order=0, mode="constant")
    for value in (1, 2):
        one, other = labels[0] == value, warped == value
        assert case["dice_per_label"][value] == pytest.approx(2 * (one & other).sum() / (one.sum() + other.sum()))


@pytest.mark.parametrize("coordinates", ["ras", "lps"])
def test_landmarks_in_millimetres_have_the_error_of_those_in_voxels(tmp_path: Path, coordinates: str) -> None:
    pair = tensors()
    affine = AFFINE.clone()
    affine[:3, 3] = torch.tensor([-90.0, 40, 7])
    signs = torch.tensor([-1.0, -1, 1] if coordinates == "lps" else [1.0, 1, 1]).double()
    write_ddf(tmp_path / "ddf.nii.gz", pair["ddf"], affine)
    images, found = {}, {}
    for side in ("moving", "fixed"):
        images[side] = str(tmp_path / f"{side}.nii.gz")
        write_image(images[side], pair[side], affine)
        points = pair[f"{side}_keypoints"]
        np.savetxt(tmp_path / f"{side}_voxel.csv", points.numpy(), delimiter=",")
        world = (points @ affine[:3, :3].T + affine[:3, 3]) * signs
        np.savetxt(tmp_path / f"{side}_world.csv", world.numpy(), delimiter=";", header="x;y;z", comments="")
    for kind, stated in (("voxel", "voxel"), ("world", coordinates), ("world", "voxel")):
        tables = LandmarkFiles("tre", str(tmp_path / f"moving_{kind}.csv"), str(tmp_path / f"fixed_{kind}.csv"))
        files = PairFiles(
            "m", "f", str(tmp_path / "ddf.nii.gz"), images["moving"], images["fixed"], landmarks=(tables,)
        )
        measures = Measures(hd95=None, trust=True, coordinates=stated)
        if (kind, stated) == ("world", "voxel"):
            with pytest.raises(InputError, match=f"4 of 4 points lie outside .* state --coordinates {coordinates}"):
                measure_pair(files, measures)
        else:
            found[kind] = measure_pair(files, measures)["tre"]
    assert found["world"] == pytest.approx(found["voxel"], rel=1e-6)


def test_figures_do_not_depend_on_how_a_scan_states_its_values(tmp_path: Path) -> None:
    pair = tensors()
    write_ddf(tmp_path / "ddf.nii.gz", pair["ddf"], AFFINE)
    published = pair["fixed"].clamp(min=0)
    expected = RegistrationMetrics()
    expected.update({"ddf": pair["ddf"], "fixed": published})
    forms = {"hu": 900 * published - 1000, "z": (published - published.mean()) / published.std(), "md": published / 1e3}
    for name, image in forms.items():
        write_image(tmp_path / f"{name}.nii.gz", image, AFFINE)
        path = str(tmp_path / f"{name}.nii.gz")
        files = PairFiles(moving_id="m", fixed_id="f", field=str(tmp_path / "ddf.nii.gz"), moving=path, fixed=path)
        found = measure_pair(files, Measures(convention="voxels", trust=True))
        for figure in ("ndv", "sdlogj", "sdlogj_l2r_masked"):
            assert found[figure] == expected.cases[0][figure]
    # As the published form has it: above 0.
    plain = ndv_lumir(pair["ddf"][None], published[None] > 0).percent
    assert expected.cases[0]["ndv"] == float(plain) > 0


def test_label_map_without_labels_is_no_foreground(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pair = tensors()
    write_ddf(tmp_path / "ddf.nii.gz", pair["ddf"], AFFINE)
    write_image(tmp_path / "empty.nii.gz", torch.zeros(1, *SHAPE, dtype=torch.uint8), AFFINE)
    empty = str(tmp_path / "empty.nii.gz")
    files = PairFiles("m", "f", str(tmp_path / "ddf.nii.gz"), moving_label=empty, fixed_label=empty)
    with caplog.at_level(logging.WARNING):
        found = measure_pair(files, Measures(convention="voxels", trust=True, foreground="fixed_label"))
    assert "no foreground in" in caplog.text and "empty.nii.gz: the figures of folding count all voxels" in caplog.text
    assert found["ndv"] == float(ndv_lumir(pair["ddf"][None]).percent)


def test_the_way_from_files_to_figures_is_the_one_that_the_documentation_names() -> None:
    root = Path(__file__).parents[3]
    section = (
        (root / "docs" / "evaluation.md").read_text().partition("## Where a figure comes from")[2].partition("\n## ")[0]
    )
    way = re.findall(r"^\d+\. `([\w/]+)\.py`", section, re.MULTILINE)
    assert way[0] == "scripts/evaluate" and way[-1] == "common/metrics/overlap" and len(way) <= 8
    before = ""
    for module in way:
        assert not before or f"from {module.replace('/', '.')} import" in before, module
        before += (root / f"{module}.py").read_text()
    assert "from common.metrics.pair import" in (root / "common/metrics/handlers.py").read_text()
    for path in re.findall(r"`(common/[\w/]+\.py)`", section):
        assert (root / path).is_file(), path
