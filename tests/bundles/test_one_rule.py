# SPDX-License-Identifier: Apache-2.0
"""One pair through every command: inference, the Python API, apply.py, the evaluator and a bundle's evaluation agree.

The pair has what the rules of docs/conventions.md are about: an oblique grid, an sform beside another qform, values
that are negative throughout, labels with gaps and beyond 16 bits, structures that reach the border, and few slices.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import create_workflow
from scipy.ndimage import gaussian_filter

from common.networks import EOIR
from scripts import apply, evaluate

from .conftest import ROOT, run_workflow

BUNDLE = ROOT / "bundles" / "eoir_shapes3d"
LABELS = np.array([0, 2, 41, 614454277])
SHAPE = (40, 36, 5)
NETWORK = {"network_def#start_channel": 2}


def oblique(origin: tuple[float, float, float]) -> np.ndarray:
    """Voxels of 1.2, 1.2 and 6 mm, turned by 0.2 about z and by 0.1 about x."""
    cos, sin, tilt, rise = np.cos(0.2), np.sin(0.2), np.cos(0.1), np.sin(0.1)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, tilt, -rise], [0, rise, tilt]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn * [1.2, 1.2, 6.0]
    affine[:3, 3] = origin
    return affine


def save(path: Path, values: np.ndarray) -> Path:
    """The sform counts; the qform lies 9 mm elsewhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = nibabel.Nifti1Image(values, None)
    file.set_sform(oblique((-30.5, 12.25, -7.0)), code=2)
    file.set_qform(oblique((-21.5, 12.25, -7.0)), code=1)
    file.header.set_xyzt_units("mm")
    nibabel.save(file, path)
    return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans, label maps, data list and weights."""
    folder = tmp_path_factory.mktemp("pair")
    for name, seed in (("fix", 3), ("mov", 4)):
        noise = np.random.default_rng(seed).normal(size=SHAPE) + np.random.default_rng(9).normal(size=SHAPE)
        values = gaussian_filter(noise, (2, 2, 1))
        # Of one brightness are more voxels than the thousandth that inference alone cuts off.
        values = np.minimum(values, np.quantile(values, 0.995))
        values = (values - values.min()) / np.ptp(values)
        save(folder / f"imagesTr/{name}.nii.gz", (values - 1000).astype(np.float32))
        save(folder / f"labelsTr/{name}.nii.gz", LABELS[np.digitize(values, [0.35, 0.5, 0.65])].astype(np.uint32))
    subjects = [{"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"} for name in ("fix", "mov")]
    listed = [{"fixed": "imagesTr/fix.nii.gz", "moving": "imagesTr/mov.nii.gz"}]
    (folder / "dataset.json").write_text(
        json.dumps({"training": [], "validation": subjects, "registration_val": listed})
    )
    torch.manual_seed(0)
    network = EOIR(spatial_dims=3, variant="plain", start_channel=2, int_steps=7)
    torch.save(network.state_dict(), folder / "model.pt")
    return folder


@pytest.fixture(scope="module")
def inferred(pair: Path) -> Path:
    """What inference makes of the pair."""
    folder = pair / "inferred"
    run_workflow(BUNDLE, "inference", output_dir=str(folder), **inference_options(pair))
    return folder / "mov_to_fix"


def inference_options(pair: Path) -> dict[str, Any]:
    files = {kind: str(pair / f"imagesTr/{kind[:3]}.nii.gz") for kind in ("moving", "fixed")}
    labels = {f"{kind}_label": str(pair / f"labelsTr/{kind[:3]}.nii.gz") for kind in ("moving", "fixed")}
    return {**files, **labels, "ckpt_path": str(pair / "model.pt"), "spacing": None, **NETWORK}


def values_of(path: Path | str) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def dice_of(warped: np.ndarray, fixed: np.ndarray) -> float:
    both = [2 * ((warped == k) & (fixed == k)).sum() / ((warped == k).sum() + (fixed == k).sum()) for k in LABELS[1:]]
    return float(np.mean(both))


def test_inference_moves_something_and_writes_both_forms(pair: Path, inferred: Path) -> None:
    ddf = nibabel.load(f"{inferred}_ddf.nii.gz")
    assert np.abs(ddf.get_fdata()).max() > 0.3
    for kind in ("warped", "warped_label", "ddf", "displacement", "jacobian"):
        header = nibabel.load(f"{inferred}_{kind}.nii.gz").header
        for form in (header.get_sform(coded=True), header.get_qform(coded=True)):
            assert form[1] > 0
            # A qform keeps its rotation as three numbers of single precision.
            np.testing.assert_allclose(form[0], oblique((-30.5, 12.25, -7.0)), atol=1e-4)
    assert set(np.unique(values_of(f"{inferred}_warped_label.nii.gz"))) <= set(LABELS.tolist())


def test_the_python_api_makes_the_same_files(pair: Path, inferred: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BUNDLE))
    folder = pair / "by_api"
    no_logging: Any = False
    workflow = create_workflow(
        config_file=str(BUNDLE / "configs" / "inference.json"),
        meta_file=str(BUNDLE / "configs" / "metadata.json"),
        logging_file=no_logging,
        bundle_root=str(BUNDLE),
        output_dir=str(folder),
        **inference_options(pair),
    )
    workflow.run()
    workflow.finalize()
    for kind in ("warped", "warped_label", "ddf"):
        there, here = values_of(f"{inferred}_{kind}.nii.gz"), values_of(folder / f"mov_to_fix_{kind}.nii.gz")
        np.testing.assert_array_equal(there, here)


def test_apply_repeats_what_inference_wrote(pair: Path, inferred: Path, tmp_path: Path) -> None:
    for transform in ("transform.h5", "displacement.nii.gz", "ddf.nii.gz"):
        for kind, source in (("moving", "imagesTr"), ("label", "labelsTr")):
            output = tmp_path / f"{kind}_{transform.partition('.')[0]}.nii.gz"
            arguments = ["--transform", f"{inferred}_{transform}", f"--{kind}", str(pair / source / "mov.nii.gz")]
            apply.main([*arguments, "--reference", str(pair / "imagesTr/fix.nii.gz"), "--output", str(output)])
            there = values_of(f"{inferred}_{'warped' if kind == 'moving' else 'warped_label'}.nii.gz")
            if kind == "label":
                assert (values_of(output) != there).mean() < 1e-3, transform
            else:
                # A field of float32 millimetres moves the place by 1e-5 voxel.
                np.testing.assert_allclose(values_of(output), there, atol=1e-3)


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


def test_both_evaluations_and_inference_give_one_dice(pair: Path, inferred: Path, tmp_path: Path) -> None:
    fixed = values_of(pair / "labelsTr/fix.nii.gz")
    right = dice_of(values_of(f"{inferred}_warped_label.nii.gz"), fixed)
    before = dice_of(values_of(pair / "labelsTr/mov.nii.gz"), fixed)
    assert before < right or before > right, "the field has to change the Dice"
    record = json.loads((inferred.parent / "provenance.json").read_text())
    noted = record["pairs"]["mov_to_fix"]["dice"]
    assert noted["registered"] == pytest.approx(right, abs=1e-6)
    assert noted["header"] == pytest.approx(before, abs=1e-6)

    (tmp_path / "pairs.csv").write_text("fixed,moving\nfix,mov\n")
    folders = ["--fields", str(inferred.parent), "--images", str(pair / "imagesTr"), "--labels", str(pair / "labelsTr")]
    evaluate.main(
        [*folders, "--pairs", str(tmp_path / "pairs.csv"), "--output", str(tmp_path / "scored"), "--workers", "1"]
    )
    (scored,) = rows(tmp_path / "scored" / "cases.csv")

    labels = LABELS[1:].tolist()
    data = {"dataset_dir": str(pair), "reader": "datalist", "section": "validation", "labels": labels}
    run_workflow(
        BUNDLE, "evaluate", output_dir=str(tmp_path / "evaluated"), ckpt_path=str(pair / "model.pt"), **data, **NETWORK
    )
    (evaluated,) = rows(tmp_path / "evaluated" / "cases.csv")

    for case in (scored, evaluated):
        assert float(case["dice"]) == pytest.approx(right, abs=1e-4)
        assert float(case["dice_before"]) == pytest.approx(before, abs=1e-4)
    # Negative intensities have a foreground: the figures on it exist and are the same.
    for figure in ("ndv", "sdlogj", "fold_fraction"):
        assert np.isfinite(float(evaluated[figure]))
        assert float(scored[figure]) == pytest.approx(float(evaluated[figure]), abs=1e-3), figure
