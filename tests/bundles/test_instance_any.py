# SPDX-License-Identifier: Apache-2.0
"""Two scans are registered without a network, guided by what else is known of them; what cannot be used is named."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from common.cli import sentence_of
from common.data.shapes3d import generate_shapes3d
from common.engine import save_atomically
from common.networks import EOIR

from .conftest import ROOT, run_workflow

ANY = ROOT / "bundles" / "instance_any"
NAME = "SHAPES_0002_0000_to_SHAPES_0001_0000"
SHORT: dict[str, Any] = {"io_steps": 6, "similarity": "mse", "levels": [2, 1]}


def save(path: Path, values: np.ndarray, affine: Any = None) -> str:
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return str(path)


@pytest.fixture(scope="module")
def files(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two scans with label maps, masks that leave a side out, and the middles of four structures as landmarks."""
    folder, found = tmp_path_factory.mktemp("guides"), {}
    for side, number in (("moving", "0002"), ("fixed", "0001")):
        found[side] = str(phantoms / "imagesTr" / f"SHAPES_{number}_0000.nii.gz")
        found[f"{side}_label"] = str(phantoms / "labelsTr" / f"SHAPES_{number}_0000.nii.gz")
        label: Any = nibabel.load(found[f"{side}_label"])
        values = np.asarray(label.dataobj)
        mask = np.ones(values.shape, np.uint8)
        mask[:6] = 0
        found[f"{side}_mask"] = save(folder / f"{side}_mask.nii.gz", mask, label.affine)
        found[f"{side}_landmarks"] = str(folder / f"{side}.csv")
        middles = [np.argwhere(values == label).mean(0) for label in (1, 2, 3, 4)]
        np.savetxt(found[f"{side}_landmarks"], middles, delimiter=",")
    return found


def record(folder: Path) -> dict[str, Any]:
    pair: dict[str, Any] = json.loads((folder / "provenance.json").read_text())["pairs"][NAME]
    return pair


def test_what_is_known_of_a_pair_guides_it(files: dict[str, str], tmp_path: Path) -> None:
    images = {name: file for name, file in files.items() if not name.endswith("mask")}
    run_workflow(ANY, "inference", output_dir=str(tmp_path / "alone"), **images, **SHORT)
    guided = {"label_weight": 1.0, "landmark_weight": 0.1}
    run_workflow(ANY, "inference", output_dir=str(tmp_path / "guided"), **files, **SHORT, **guided)
    alone, led = record(tmp_path / "alone"), record(tmp_path / "guided")
    assert "guided_by" not in alone and sorted(led["guided_by"]) == sorted(set(files) - {"moving", "fixed"})
    for pair in (alone, led):
        assert pair["optimisation"]["steps"] == 12 and pair["dice"]["registered"] > pair["dice"]["header"] + 0.05
        assert {Path(name).name.removeprefix(f"{NAME}_") for name in pair["files"]} >= {
            *("warped.nii.gz", "ddf.nii.gz", "transform.h5", "inverse.h5", "panel.png", "warped_label.nii.gz"),
        }
    assert led["dice"]["registered"] > alone["dice"]["registered"]
    distances = [pair["landmark_distance_mm"]["registered"] for pair in (alone, led)]
    assert distances[1] < min(distances[0], led["landmark_distance_mm"]["header"]) and led["landmarks"] == 4


def test_a_section_is_evaluated_with_the_labels_that_it_has(phantoms: Path, tmp_path: Path) -> None:
    run_workflow(ANY, "evaluate", dataset_dir=str(phantoms), output_dir=str(tmp_path), **SHORT)
    cases = list(csv.DictReader((tmp_path / "cases.csv").open()))
    assert len(cases) == 2 and all(float(case["dice"]) > float(case["dice_before"]) for case in cases)
    assert all(float(case["loss"]) < float(case["loss_before"]) and case["io_steps"] == "12" for case in cases)
    assert {row["label"] for row in csv.DictReader((tmp_path / "labels.csv").open())} == set("12345678")


@pytest.mark.parametrize("diverges", [False, True])
def test_images_of_two_dimensions_need_no_option(
    diverges: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = generate_shapes3d(tmp_path / "flat", num_subjects=4, size=(24, 32), validation=0, test=2, progress=False)
    moving, fixed = sorted(folder.glob("imagesTr/*"))[:2]
    out = tmp_path / "out"
    files: dict[str, Any] = {"moving": str(moving), "fixed": str(fixed), "window": [0.1, 0.9]}
    files |= {"io_learning_rate": 1e6} if diverges else {}
    run_workflow(ANY, "inference", output_dir=str(out), **files, **SHORT)
    (pair,) = json.loads((out / "provenance.json").read_text())["pairs"].values()
    assert len(pair["working_size"]) == 2
    if diverges:
        assert "WARNING" in {line.levelname for line in caplog.records if "no better" in line.getMessage()}
        assert pair["largest_displacement_voxels"] == 0
    else:
        assert pair["optimisation"]["after"] < pair["optimisation"]["before"] and "no better" not in caplog.text


@pytest.mark.parametrize("config", ["inference", "inference+optimise_weights"])
def test_any_network_goes_on_with_a_pair(config: str, files: dict[str, str], tmp_path: Path) -> None:
    bundle = ROOT / "bundles" / "eoir_oasis"
    network = {
        "network_def#start_channel": 2,
        "supervised": False,
        "spacing": None,
        "ckpt_path": str(tmp_path / "m.pt"),
    }
    save_atomically(EOIR(variant="plain", start_channel=2, int_steps=7).state_dict(), tmp_path / "m.pt")
    images = {name: files[name] for name in ("moving", "fixed")}
    run_workflow(bundle, config, output_dir=str(tmp_path / "out"), io_steps=2, **images, **network)
    found = record(tmp_path / "out")["optimisation"]
    # Of the field on two levels, of weights on one.
    assert found["steps"] == (4 if config == "inference" else 2) and found["after"] < found["before"]


def rolled(mask: np.ndarray) -> np.ndarray:
    return mask[:-1]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "mask of another grid": ({"fixed_mask": rolled}, "The mask {fixed_mask} has shape"),
    "empty mask": ({"moving_mask": np.zeros_like}, "The mask {moving_mask} is 0 everywhere"),
    "mask for nothing": ({"moving_mask": np.copy, "io_steps": 0}, "--moving_mask was given, but nothing looks at it"),
    "constant image": ({"moving": np.ones_like}, "{moving} is constant"),
    "labels of one": ({"moving_label": np.copy, "label_weight": 1.0}, "--moving_label was given without --fixed_label"),
    "no labels": ({"label_weight": 1.0}, "give --moving_label and --fixed_label"),
    "weight without steps": ({"landmark_weight": 1.0, "io_steps": 0}, "--io_steps is 0"),
    "steps of no level": ({"io_steps": [3, 2, 1]}, "one number per level"),
    "negative steps": ({"io_steps": -1}, "--io_steps is -1; give the number of steps on each pair"),
    "no similarity": ({"similarity": "ssim"}, "--similarity is 'ssim'; give one of lncc, "),
}


def spoiled(case: str, files: dict[str, str], tmp_path: Path) -> tuple[dict[str, Any], str]:
    """Options of a case, with files changed as it says, and the words that its refusal has."""
    changes, message = BAD[case]
    options: dict[str, Any] = {**SHORT, **{name: files[name] for name in ("moving", "fixed")}}
    for name, change in changes.items():
        if callable(change):
            file: Any = nibabel.load(files[name])
            change = save(tmp_path / f"{name}.nii.gz", change(np.asarray(file.dataobj)), file.affine)
        options[name] = change
    return {**options, "output_dir": str(tmp_path / "out")}, message.format(**options)


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_is_refused_in_a_sentence(case: str, files: dict[str, str], tmp_path: Path) -> None:
    options, message = spoiled(case, files, tmp_path)
    with pytest.raises(Exception) as error:
        run_workflow(ANY, "inference", **options)
    assert message in str(sentence_of(error.value))
    assert not list((tmp_path / "out").glob("*.nii.gz"))


def test_three_landmarks_are_too_few(files: dict[str, str], tmp_path: Path) -> None:
    images = {name: files[name] for name in ("moving", "fixed")}
    for side in ("moving", "fixed"):
        lines = Path(files[f"{side}_landmarks"]).read_text().splitlines()[:3]
        (tmp_path / f"{side}.csv").write_text("\n".join(lines))
        images[f"{side}_landmarks"] = str(tmp_path / f"{side}.csv")
    with pytest.raises(Exception) as error:
        run_workflow(ANY, "inference", output_dir=str(tmp_path / "out"), landmark_weight=1.0, **images, **SHORT)
    assert "holds 3 landmark(s), but 4 or more" in str(sentence_of(error.value)) and not list(
        (tmp_path / "out").glob("*.nii.gz")
    )


@pytest.mark.parametrize("case", ["mask of another grid", "labels of one", "negative steps"])
def test_a_process_ends_in_one_line(
    case: str,
    files: dict[str, str],
    tmp_path: Path,
    command_line: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    options, message = spoiled(case, files, tmp_path)
    words = [word for name, value in options.items() for word in (f"--{name}", str(value).replace(" ", ""))]
    result = command_line("run", "infer", "--config_file", "configs/inference.json", *words, cwd=ANY)
    assert result.returncode == 1 and "Traceback" not in result.stderr + result.stdout
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("ERROR: ")]
    assert message in line
    assert not list((tmp_path / "out").glob("*.nii.gz"))
