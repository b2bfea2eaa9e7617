# SPDX-License-Identifier: Apache-2.0
"""The evaluation of a folder of fields: on small pairs with a known field, and on real ones with known figures."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.checks import InputError
from common.evaluation import field_evaluation
from common.io.fields import write_displacement
from common.io.learn2reg import to_half_resolution
from common.io.nifti import write_ddf, write_image
from common.io.transforms import write_transform
from common.metrics import dice_l2r, hd95_l2r, ndv_lumir, sdlogj_l2r
from common.report import field_evaluation as report_of_fields
from common.spatial import Grid, warp, warp_labels
from common.spatial.transform import Field, Transform

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data"
SHAPE = (32, 28, 36)
AFFINE = torch.tensor([[-2.0, 0, 0, 40], [0, 2, 0, -30], [0, 0, 2, -50], [0, 0, 0, 1]], dtype=torch.float64)
GRID = Grid(SHAPE, AFFINE)


def script() -> Any:
    spec = spec_from_file_location("evaluate", ROOT / "scripts" / "evaluate.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


main = script().main


def smooth(seed: int, channels: int, knots: int) -> Tensor:
    noise = torch.randn(1, channels, knots, knots, knots, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, size=SHAPE, mode="trilinear", align_corners=True)


class Data:
    """Three subjects of which 2 and 3 register to 1 by known fields, and a folder for fields."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("imagesTr", "labelsTr", "fields"):
            (root / name).mkdir()
        fixed = smooth(0, 1, 10) + 5
        label = (fixed - 3).round().clamp(0, 4).to(torch.uint8)
        self.labels = {1: label}
        self.write(1, fixed, label)
        self.ddfs = {number: 2 * smooth(number, 3, 4) for number in (2, 3)}
        for number, ddf in self.ddfs.items():
            # Not the exact inverse: a registration is never perfect.
            self.labels[number] = warp_labels(label, -ddf)
            self.write(number, warp(fixed, -ddf), self.labels[number])
        self.pairs = root / "pairs.csv"
        self.pairs.write_text("fixed,moving\nT_0001,T_0002\nT_0001,T_0003\n")

    def write(self, number: int, image: Tensor, label: Tensor) -> None:
        write_image(self.root / "imagesTr" / f"T_000{number}_0000.nii.gz", image[0], AFFINE)
        write_image(self.root / "labelsTr" / f"T_000{number}_0000.nii.gz", label[0], AFFINE)

    def field(self, name: str) -> Path:
        return self.root / "fields" / name

    def write_fields(self) -> None:
        for number, ddf in self.ddfs.items():
            write_ddf(self.field(f"T_000{number}_to_T_0001_ddf.nii.gz"), ddf[0], AFFINE)

    @property
    def output(self) -> Path:
        return self.root / "out"

    def arguments(self, *more: str) -> list[str]:
        folders = {"--fields": "fields", "--images": "imagesTr", "--labels": "labelsTr", "--output": "out"}
        given = [text for option, name in folders.items() for text in (option, str(self.root / name))]
        pairs = [] if "--pairs" in more else ["--pairs", str(self.pairs)]
        return [*given, *pairs, "--workers", "1", *more]

    def cases(self) -> list[dict[str, str]]:
        return list(csv.DictReader((self.output / "cases.csv").open()))

    def summary(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.output / "summary.json").read_text())
        return content


@pytest.fixture
def data(tmp_path: Path) -> Data:
    return Data(tmp_path)


def test_tables_hold_the_challenge_figures(data: Data) -> None:
    data.write_fields()
    main(data.arguments())
    for row, number in zip(data.cases(), (2, 3), strict=True):
        ddf, fixed, moving = data.ddfs[number], data.labels[1], data.labels[number]
        warped = warp_labels(moving, ddf)
        labels = [1, 2, 3, 4]
        assert (row["fixed_id"], row["moving_id"], row["convention"]) == ("T_0001", f"T_000{number}", "voxels")
        assert float(row["dice"]) == pytest.approx(float(dice_l2r(warped, fixed, labels, moving).nanmean()), rel=1e-5)
        assert float(row["hd95"]) == pytest.approx(float(hd95_l2r(warped, fixed, labels, moving).nanmean()), rel=1e-5)
        assert float(row["dice_before"]) == pytest.approx(float(dice_l2r(moving, fixed, labels).nanmean()), rel=1e-5)
        assert float(row["dice_before"]) < float(row["dice"])
        assert float(row["sdlogj_l2r"]) == pytest.approx(float(sdlogj_l2r(ddf)), rel=1e-4)
        assert float(row["ndv"]) == pytest.approx(float(ndv_lumir(ddf).percent), rel=1e-3, abs=1e-6)
    rows = list(csv.DictReader((data.output / "labels.csv").open()))
    assert [row["label"] for row in rows[:4]] == ["1", "2", "3", "4"] and len(rows) == 8
    assert {"dice", "dice_before", "hd95", "hd95_before"} <= set(rows[0])
    page = (data.output / "report.html").read_text()
    assert "T_0003 to T_0001" in page and "data:image/png;base64," in page
    assert sorted(path.name for path in data.output.iterdir()) == [
        "cases.csv",
        "labels.csv",
        "report.html",
        "summary.json",
    ]


def test_pictures_show_each_image_under_its_name(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, Any]] = []

    def keep(**images: Any) -> bytes:
        shown.append(images)
        return b""

    monkeypatch.setattr(report_of_fields, "picture", keep)
    data.write_fields()
    main(data.arguments())
    images = [nibabel.load(data.root / "imagesTr" / f"T_000{n}_0000.nii.gz").get_fdata() for n in (1, 2, 3)]
    assert shown
    for pair in shown:
        np.testing.assert_allclose(pair["fixed"][0], images[0], rtol=1e-5)
        assert any(np.allclose(pair["moving"][0], image) for image in images[1:])
        moving, fixed, warped = (pair[name][:, 8:-8, 8:-8, 8:-8] for name in ("moving", "fixed", "warped"))
        assert (warped - fixed).square().mean() < 0.5 * (moving - fixed).square().mean()


def test_summary_says_where_everything_is(data: Data) -> None:
    data.write_fields()
    main(data.arguments("--title", "A title"))
    summary = data.summary()
    assert summary["title"] == "A title" and summary["pairs"] == 2 and summary["missing"] == []
    assert summary["settings"]["fields"] == str((data.root / "fields").resolve())
    first = summary["pair_files"][0]
    assert first["convention"] == "voxels" and Path(first["field"]).name == "T_0002_to_T_0001_ddf.nii.gz"
    assert all(Path(first[name]).is_file() for name in ("fixed", "moving", "fixed_label", "moving_label"))
    assert {"mean", "std", "before"} == set(summary["metrics"]["dice"])


def forms(data: Data) -> dict[str, str]:
    """The field of subject 2 in every form, and the convention that must be found."""
    ddf = data.ddfs[2]
    write_ddf(data.field("disp_0001_0002.nii.gz"), ddf[0], AFFINE)
    np.savez(data.field("disp_0001_0000_0002_0000.npz"), ddf[0].numpy().transpose(1, 2, 3, 0))
    np.savez(data.field("half.npz"), to_half_resolution(ddf[0].numpy()))
    write_displacement(data.field("itk.nii.gz"), ddf, GRID)
    write_transform(data.field("itk.h5"), Transform((Field(GRID, ddf),)))
    return {
        "itk.h5": "itk",
        "disp_0001_0002.nii.gz": "voxels",
        "disp_0001_0000_0002_0000.npz": "voxels",
        "half.npz": "learn2reg_half",
        "itk.nii.gz": "lps_mm",
    }


def test_every_convention_is_found_and_gives_one_result(data: Data) -> None:
    found = {}
    for name, convention in forms(data).items():
        data.pairs.write_text(f"fixed,moving,field\nT_0001,T_0002,{name}\n")
        main(data.arguments("--overwrite", "--hd95", "none"))
        (row,) = data.cases()
        assert row["convention"] == convention
        found[name] = float(row["dice"])
        assert "hd95" not in row
    assert max(found.values()) - min(found.values()) < 0.01 and found["itk.nii.gz"] == pytest.approx(
        found["disp_0001_0002.nii.gz"], abs=1e-3
    )


@pytest.mark.parametrize("convention", ["voxels", "learn2reg_half", "lps_mm", "ras_mm", "itk"])
def test_wrong_statement_is_refused_for_every_form(data: Data, convention: str) -> None:
    for name, right in forms(data).items():
        data.pairs.write_text(f"fixed,moving,field\nT_0001,T_0002,{name}\n")
        if convention != right:
            with pytest.raises(InputError, match=name):
                main(data.arguments("--convention", convention))
            assert not data.output.exists()


def test_what_the_header_cannot_tell_the_images_tell(data: Data) -> None:
    ddf = data.ddfs[2]
    wrong = {
        "RAS millimetres": ddf * torch.tensor([-2.0, 2, 2]).view(1, 3, 1, 1, 1),
        "LPS millimetres": ddf * torch.tensor([2.0, -2, 2]).view(1, 3, 1, 1, 1),
        "reversed order": ddf.flip(1),
        "opposite direction": -ddf,
    }
    data.pairs.write_text("fixed,moving\nT_0001,T_0002\n")
    for what, values in wrong.items():
        write_ddf(data.field("disp_0001_0002.nii.gz"), values[0], AFFINE)
        with pytest.raises(InputError, match=what):
            main(data.arguments())
        assert not data.output.exists()
    main(data.arguments("--trust"))
    (row,) = data.cases()
    assert float(row["dice"]) < float(row["dice_before"])


def test_zero_field_and_weak_field_pass(data: Data) -> None:
    for name, scale in (("2", 0.0), ("3", 0.3)):
        write_ddf(data.field(f"T_000{name}_to_T_0001_ddf.nii.gz"), scale * data.ddfs[int(name)][0], AFFINE)
    main(data.arguments())
    zero, weak = data.cases()
    assert float(zero["dice"]) == float(zero["dice_before"]) and float(zero["sdlogj"]) == 0
    assert float(weak["dice"]) > float(weak["dice_before"])


def test_images_on_grids_of_their_own(data: Data) -> None:
    data.write_fields()
    main(data.arguments())
    before = data.cases()
    for kind in ("imagesTr", "labelsTr"):
        # The first axis turned round, then the last two exchanged: another array of another shape in the same world.
        path = data.root / kind / "T_0002_0000.nii.gz"
        image: Any = nibabel.load(path)
        affine = image.affine.copy()
        affine[:3, 3] += affine[:3, 0] * (SHAPE[0] - 1)
        affine[:3, 0] *= -1
        turned = np.asarray(image.dataobj)[::-1].transpose(0, 2, 1).copy()
        nibabel.save(nibabel.Nifti1Image(turned, affine[:, [0, 2, 1, 3]]), path)
    main(data.arguments("--overwrite"))
    for name in ("dice", "dice_before", "hd95", "hd95_before", "sdlogj_l2r"):
        assert float(data.cases()[0][name]) == pytest.approx(float(before[0][name]), rel=2e-3), name


def test_labels_alone_suffice(data: Data) -> None:
    data.write_fields()
    arguments = data.arguments()
    del arguments[arguments.index("--images") : arguments.index("--images") + 2]
    main(arguments)
    assert float(data.cases()[0]["dice"]) > float(data.cases()[0]["dice_before"])
    write_ddf(data.field("T_0002_to_T_0001_ddf.nii.gz"), -data.ddfs[2][0], AFFINE)
    with pytest.raises(InputError, match="labels from a similarity.*opposite direction"):
        main([*arguments, "--overwrite"])


def test_absent_labels_are_skipped_and_counted(data: Data, capsys: pytest.CaptureFixture[str]) -> None:
    data.write_fields()
    main(data.arguments("--label_values", "1-2,9"))
    rows = list(csv.DictReader((data.output / "labels.csv").open()))
    assert [row["label"] for row in rows[:3]] == ["1", "2", "9"] and rows[2]["dice"] == "nan"
    assert [row["labels_skipped"] for row in data.cases()] == ["1", "1"]
    assert "2 of 6 labels were skipped" in capsys.readouterr().out
    with pytest.raises(InputError, match="None of the 2 labels occurs in both"):
        main(data.arguments("--label_values", "8,9", "--overwrite"))
    with pytest.raises(InputError, match="not of the form"):
        main(data.arguments("--label_values", "1..9", "--overwrite"))


def test_label_groups_are_joined(data: Data) -> None:
    data.write_fields()
    groups = data.root / "groups.json"
    named = {"1": {"name": "Outer part"}, "2": {"name": "Inner part"}}
    groups.write_text(json.dumps({"lookup_table": [0, 1, 1, 2, 2], "evaluation_groups": [1, 2], "groups": named}))
    main(data.arguments("--label_groups", str(groups)))
    assert "Outer part" in (data.output / "report.html").read_text()
    assert [row["label"] for row in csv.DictReader((data.output / "labels.csv").open())] == ["1", "2"] * 2


def test_missing_pairs_are_listed_or_allowed(data: Data, capsys: pytest.CaptureFixture[str]) -> None:
    data.write_fields()
    data.field("T_0003_to_T_0001_ddf.nii.gz").unlink()
    with pytest.raises(InputError, match=r"1 of 2 pairs are not complete: T_0003 to T_0001 \(field\).*--allow_missing"):
        main(data.arguments())
    assert not data.output.exists()
    main(data.arguments("--allow_missing"))
    assert data.summary()["pairs"] == 1 and data.summary()["missing"] == ["T_0003 to T_0001 (field)"]
    assert "1 pairs are missing" in capsys.readouterr().out
    data.field("T_0002_to_T_0001_ddf.nii.gz").rename(data.field("other.nii.gz"))
    with pytest.raises(InputError, match="Of none of the 2 pairs"):
        main(data.arguments("--allow_missing", "--overwrite"))


def test_nothing_is_replaced_unasked(data: Data) -> None:
    data.write_fields()
    main(data.arguments("--hd95", "none"))
    with pytest.raises(InputError, match="holds an evaluation already"):
        main(data.arguments())
    main(data.arguments("--overwrite", "true"))
    assert "hd95" in data.cases()[0]


def broken_fields(data: Data) -> dict[str, tuple[np.ndarray, str]]:
    good = data.ddfs[2][0].numpy().transpose(1, 2, 3, 0)
    holed = good.copy()
    holed[3, 4, 5] = np.nan
    return {
        "nan": (holed, "3 values that are NaN"),
        "shape": (good[:-2], "belongs to the grid of another image"),
        "axes": (good.transpose(2, 1, 0, 3), "axes are permuted"),
        "scalar": (good[..., 0], "scalar image"),
        "units": (good * 100, "units"),
    }


@pytest.mark.parametrize("case", ["nan", "shape", "axes", "scalar", "units"])
def test_broken_field_is_named_and_leaves_nothing(data: Data, case: str) -> None:
    array, message = broken_fields(data)[case]
    np.savez(data.field("disp_0001_0002.npz"), array)
    data.pairs.write_text("fixed,moving\nT_0001,T_0002\n")
    with pytest.raises(InputError, match=rf"disp_0001_0002\.npz.*{message}"):
        main(data.arguments())
    assert not data.output.exists()


@pytest.mark.parametrize("case", ["4D", "dicom", "singular", "damaged"])
def test_broken_image_is_named_and_leaves_nothing(data: Data, case: str) -> None:
    data.write_fields()
    path = data.root / "imagesTr" / "T_0002_0000.nii.gz"
    array = np.ones((*SHAPE, 2) if case == "4D" else SHAPE, np.float32)
    image = nibabel.Nifti1Image(array, AFFINE.numpy())
    if case == "singular":
        image.header["srow_x"], image.header["sform_code"], image.header["qform_code"] = 0, 1, 0
        image = nibabel.Nifti1Image(array, None, image.header)
    messages = {"4D": "one image is expected", "dicom": "dcm2niix", "singular": "inverted", "damaged": "copy it anew"}
    if case == "dicom":
        path.unlink()
        path.mkdir()
        data.pairs.write_text(f"fixed,moving\nT_0001,{path}\n")
    elif case == "damaged":
        path.write_bytes(b"no image")
    else:
        nibabel.save(image, path)
    with pytest.raises(InputError, match=messages[case]):
        main(data.arguments())
    assert not data.output.exists()


def test_folder_of_dicom_files_says_what_to_do(data: Data) -> None:
    data.write_fields()
    series = data.root / "series"
    series.mkdir()
    (series / "IM0001").write_bytes(bytes(128) + b"DICM")
    with pytest.raises(InputError, match="dcm2niix"):
        main(data.arguments("--images", str(series)))


def test_empty_folders_and_files_in_place_of_folders(data: Data) -> None:
    (data.root / "empty").mkdir()
    for option, what in (("--fields", "fields"), ("--images", "images"), ("--labels", "labels")):
        data.write_fields()
        with pytest.raises(InputError, match=f"folder of the {what}.*holds no file"):
            main(data.arguments(option, str(data.root / "empty")))
    (data.root / "file").write_text("")
    with pytest.raises(InputError, match="Cannot write"):
        main(data.arguments("--output", str(data.root / "file" / "out")))


def test_full_disk_is_one_sentence(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    data.write_fields()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="the disk is full"):
        main(data.arguments())
    assert not list(data.output.rglob("*.*"))


def test_interrupted_evaluation_goes_on(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    data.write_fields()
    main(data.arguments())
    whole = (data.output / "cases.csv").read_text()
    measured: list[str] = []
    measure = field_evaluation.measure_pair

    def interrupted(files: Any, measures: Any) -> Any:
        if measured:
            raise KeyboardInterrupt
        measured.append(files.name)
        return measure(files, measures)

    monkeypatch.setattr(field_evaluation, "measure_pair", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(data.arguments("--overwrite"))

    def counted(files: Any, measures: Any) -> Any:
        measured.append(files.name)
        return measure(files, measures)

    monkeypatch.setattr(field_evaluation, "measure_pair", counted)
    with pytest.raises(InputError, match=r"unfinished results that were made with another hd95: "):
        main(data.arguments("--hd95", "none"))
    assert measured == ["T_0002_to_T_0001"]
    main(data.arguments())
    assert measured == ["T_0002_to_T_0001", "T_0003_to_T_0001"]
    assert (data.output / "cases.csv").read_text() == whole and not (data.output / "pairs").exists()


def test_field_that_was_replaced_is_measured_again(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    data.write_fields()
    np.savez(data.field("disp_0001_0003.npz"), np.zeros(3))
    data.field("T_0003_to_T_0001_ddf.nii.gz").unlink()
    with pytest.raises(InputError, match="disp_0001_0003"):
        main(data.arguments())
    assert (data.output / "pairs" / "T_0002_to_T_0001.json").is_file()
    write_ddf(data.field("T_0002_to_T_0001_ddf.nii.gz"), 0 * data.ddfs[2][0], AFFINE)
    np.savez(data.field("disp_0001_0003.npz"), data.ddfs[3][0].numpy())
    main(data.arguments())
    zero, other = data.cases()
    assert zero["dice"] == zero["dice_before"] and other["dice"] > other["dice_before"]


def test_processes_give_the_same_tables(data: Data, capsys: pytest.CaptureFixture[str]) -> None:
    data.write_fields()
    main(data.arguments())
    alone = (data.output / "cases.csv").read_text()
    main(data.arguments("--overwrite", "--workers", "2"))
    assert (data.output / "cases.csv").read_text() == alone
    write_ddf(data.field("T_0003_to_T_0001_ddf.nii.gz"), -data.ddfs[3][0], AFFINE)
    with pytest.raises(InputError, match="opposite direction"):
        main(data.arguments("--overwrite", "--workers", "2"))
    with pytest.raises(SystemExit):
        main(data.arguments("--overwrite", "--workers", "0"))
    assert "--workers: '0' is no whole number from 1 on" in capsys.readouterr().err


def configuration(data: Data, lumir: bool) -> Path:
    methods: list[dict[str, Any]] = [
        {"name": "DSC", "metric": "dice", "labels": [1, 2, 3, 4, 9]},
        {"name": "TRE_kp", "metric": "tre", "dest": "keypoints"},
        {"name": "NDV", "metric": "ndv"} if lumir else {"name": "LogJacDetStd", "metric": "sdlogj"},
    ]
    content = {
        "name" if lumir else "task_name": "Task",
        "evaluation_methods": methods,
        "expected_shape": [*SHAPE, 3],
        "eval_pairs": [
            {"fixed": "./imagesTr/T_0001_0000.nii.gz", "moving": f"./imagesTr/T_000{number}_0000.nii.gz"}
            for number in (2, 3)
        ],
        "masked_evaluation": not lumir,
    }
    path = data.root / "config.json"
    path.write_text(json.dumps(content))
    return path


def test_learn2reg_configuration_gives_its_results_file(data: Data) -> None:
    for number, ddf in data.ddfs.items():
        np.savez(data.field(f"disp_0001_0000_000{number}_0000.npz"), ddf[0].numpy().transpose(1, 2, 3, 0))
    mask = torch.zeros(1, *SHAPE, dtype=torch.uint8)
    mask[:, 8:20, 8:20, 8:20] = 1
    for name in ("masksTr", "keypointsTr"):
        (data.root / name).mkdir()
    write_image(data.root / "masksTr" / "T_0001_0000.nii.gz", mask, AFFINE)
    points = np.array([[10.0, 11, 12], [20, 15, 14]])
    for number, shift in ((1, 0), (2, 1), (3, 2)):
        np.savetxt(data.root / "keypointsTr" / f"T_000{number}_0000.csv", points + shift, delimiter=",")
    roots = ["--images", str(data.root), "--labels", str(data.root)]
    main(data.arguments("--pairs", str(configuration(data, lumir=False)), *roots))
    content = json.loads((data.output / "metrics.json").read_text())
    assert list(content["cases"]) == ["0001_0000<--0002_0000", "0001_0000<--0003_0000"]
    case = content["cases"]["0001_0000<--0002_0000"]
    warped = warp_labels(data.labels[2], data.ddfs[2])
    dice = dice_l2r(warped, data.labels[1], [1, 2, 3, 4], data.labels[2])[0].tolist()
    assert case["DSC"]["detailed"][:4] == pytest.approx(dice) and math.isnan(case["DSC"]["detailed"][4])
    assert case["DSC"]["mean"] == pytest.approx(np.mean(dice))
    expected = float(sdlogj_l2r(data.ddfs[2], mask[None]))
    assert case["LogJacDetStd"]["mean"] == pytest.approx(expected, rel=1e-4)
    row = data.cases()[0]
    # One voxel of two millimetres along every axis.
    assert float(row["tre_keypoints_before"]) == pytest.approx(2 * math.sqrt(3), rel=1e-5)
    assert case["TRE_kp"]["mean"] == pytest.approx(float(row["tre_keypoints"]), rel=1e-5)
    means = [case["LogJacDetStd"]["mean"] for case in content["cases"].values()]
    entry = content["aggregates"]["LogJacDetStd"]
    assert entry == pytest.approx({"mean": np.mean(means), "std": np.std(means), "30": np.quantile(means, 0.7)})
    assert content["eval_version"] == "2.0" and content["name"] == "Task" and "hd95" not in row


def test_lumir_configuration_counts_folds_in_the_moving_foreground(data: Data) -> None:
    for number, ddf in data.ddfs.items():
        write_ddf(data.field(f"disp_0001_000{number}.nii.gz"), 3 * ddf[0], AFFINE)
        path = data.root / "imagesTr" / f"T_000{number}_0000.nii.gz"
        image: Any = nibabel.load(path)
        array = np.array(image.dataobj)
        array[:, :12] = 0
        nibabel.save(nibabel.Nifti1Image(array, image.affine), path)
    (data.root / "keypointsTr").mkdir()
    for number in (1, 2, 3):
        volume = torch.zeros(1, *SHAPE, dtype=torch.uint8)
        volume[0, 12:14, 12:14, 12 + number : 14 + number] = 1
        volume[0, 20:22, 12:14, 12:14] = 2
        write_image(data.root / "keypointsTr" / f"T_000{number}_0000.nii.gz", volume, AFFINE)
    roots = ["--images", str(data.root), "--labels", str(data.root), "--trust"]
    main(data.arguments("--pairs", str(configuration(data, lumir=True)), *roots))
    mask = torch.ones(1, 1, *SHAPE)
    mask[:, :, :, :12] = 0
    row = data.cases()[0]
    assert float(row["ndv"]) == pytest.approx(float(ndv_lumir(3 * data.ddfs[2], mask).percent), rel=1e-3)
    assert float(row["ndv"]) > 0 and float(row["tre_keypoints_before"]) == pytest.approx(0.5)
    assert {"DSC", "TRE_kp", "NDV"} == set(json.loads((data.output / "metrics.json").read_text())["aggregates"])


def test_command_line_ends_in_one_line(data: Data) -> None:
    data.write_fields()
    data.field("T_0003_to_T_0001_ddf.nii.gz").write_bytes(b"")
    command = [sys.executable, str(ROOT / "scripts" / "evaluate.py"), *data.arguments("--workers", "2")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=data.root)
    assert result.returncode == 1
    errors = [line for line in result.stderr.replace("\r", "\n").splitlines() if line and "Pairs:" not in line]
    assert len(errors) == 1 and errors[0].startswith("ERROR: ") and "T_0003_to_T_0001_ddf.nii.gz" in errors[0]
    assert not (data.output / "cases.csv").exists()
    write_ddf(data.field("T_0003_to_T_0001_ddf.nii.gz"), data.ddfs[3][0], AFFINE)
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=data.root)
    assert result.returncode == 0 and "2 pairs" in result.stdout and len(data.cases()) == 2


TABLE = {
    "greedy_2mm.nii.gz": ("2mm", "lps_mm", 0.66099, 0.76533, "0.000001", "0.052954"),
    "ants_syn_2mm.nii.gz": ("2mm", "lps_mm", 0.66099, 0.76090, "0.000000", "0.049726"),
    "clapirn_1mm_half.npz": ("1mm", "learn2reg_half", 0.65749, 0.79565, "0.163968", "0.070960"),
}


@pytest.mark.skipif(not (REAL / "oasis_pair").is_dir(), reason="needs ../shared/data/oasis_pair")
@pytest.mark.parametrize("name", TABLE)
def test_fields_of_independent_tools_give_their_published_figures(tmp_path: Path, name: str) -> None:
    grid, convention, before, after, ndv, sdlogj = TABLE[name]
    brains = REAL / "brain" / f"aligned_{grid}"
    (tmp_path / "pairs.csv").write_text(f"fixed,moving,field\nMALF_1006,MALF_1018,{name}\n")
    folders = ["--fields", REAL / "oasis_pair", "--images", brains / "imagesTr", "--labels", brains / "labelsTr"]
    options = ["--pairs", tmp_path / "pairs.csv", "--output", tmp_path / "out", "--ndv_mask", "moving_label"]
    groups = ["--label_groups", REAL / "brain" / "label_groups.json", "--hd95", "none", "--workers", "1"]
    arguments = [str(text) for text in (*folders, *options, *groups)]
    for wrong in {"voxels", "learn2reg_half", "lps_mm", "ras_mm", "itk"} - {convention}:
        with pytest.raises(InputError, match=name):
            main([*arguments, "--convention", wrong])
    main(arguments)
    content = json.loads((tmp_path / "out" / "summary.json").read_text())
    metrics = content["metrics"]
    assert content["pair_files"][0]["convention"] == convention
    assert metrics["dice"]["before"] == pytest.approx(before, abs=1e-5)
    assert metrics["dice"]["mean"] == pytest.approx(after, abs=1e-5)
    assert f"{metrics['ndv']['mean']:.6f}" == ndv and f"{metrics['sdlogj_l2r']['mean']:.6f}" == sdlogj
    swapped = (tmp_path / "pairs.csv").read_text().replace("MALF_1006,MALF_1018", "MALF_1018,MALF_1006")
    (tmp_path / "pairs.csv").write_text(swapped)
    with pytest.raises(InputError, match="opposite direction"):
        main([*arguments, "--overwrite"])
