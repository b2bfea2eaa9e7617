# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from common.checks import InputError
from common.report import comparison, field_evaluation
from scripts import compare

SHAPE = (16, 18, 14)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
Run = Callable[..., str]


def ball(centre: float) -> np.ndarray:
    x, y, z = np.indices(SHAPE)
    return np.sqrt((x - centre) ** 2 + (y - 9) ** 2 + (z - 7) ** 2)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four scans of a ball that moves by a voxel, a perfect and a useless field for each of three pairs."""
    for k in range(4):
        distance = ball(5 + k)
        for folder, values in (
            ("images", np.clip(6 - distance, 0, 4).astype(np.float32)),
            ("labels", ((distance < 5).astype(np.uint8) + (distance < 2.5))),
        ):
            (tmp_path / folder).mkdir(exist_ok=True)
            nibabel.Nifti1Image(values, AFFINE).to_filename(tmp_path / folder / f"s_{k}.nii.gz")
    for method, gain in (("good", 1.0), ("zero", 0.0)):
        (tmp_path / method).mkdir()
        for k in range(1, 4):
            field = np.zeros((*SHAPE, 3), np.float32)
            field[..., 0] = gain * k
            nibabel.Nifti1Image(field, AFFINE).to_filename(tmp_path / method / f"s_{k}_to_s_0_ddf.nii.gz")
    (tmp_path / "pairs.csv").write_text("fixed,moving\n" + "".join(f"s_0,s_{k}\n" for k in range(1, 4)))
    return tmp_path


@pytest.fixture
def run(data: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    # The panels of each method's own report take most of the time and are not what is tested here.
    monkeypatch.setattr(field_evaluation, "picture", lambda **images: b"")

    def run(*options: str) -> str:
        folders = [
            "--images",
            str(data / "images"),
            "--labels",
            str(data / "labels"),
            "--pairs",
            str(data / "pairs.csv"),
        ]
        fields = ["--fields", f"good={data / 'good'}", f"zero={data / 'zero'}"]
        compare.main([*fields, *folders, "--output", str(data / "out"), "--workers", "1", *options])
        return (data / "out" / "compare.html").read_text(encoding="utf-8")

    return run


def test_each_method_is_evaluated_and_all_are_on_one_page(data: Path, run: Run) -> None:
    page = run("--title", "Two fields")
    summaries = {name: json.loads((data / "out" / name / "summary.json").read_text()) for name in ("good", "zero")}
    dice = {name: content["metrics"]["dice"]["mean"] for name, content in summaries.items()}
    assert dice["good"] > dice["zero"]
    assert "<h1>Two fields</h1>" in page and f'best">{dice["good"]:.3f}' in page
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_viewer_holds_the_worst_median_and_best_pair_as_every_method_warped_them(run: Run) -> None:
    found = re.search(r'id="viewer-data">(.*?)</script>', run(), re.DOTALL)
    assert found
    pairs: list[dict[str, Any]] = json.loads(found[1])["pairs"]
    assert [pair["caption"].split(",")[0] for pair in pairs] == [
        "worst pair: s_3 to s_0", "median pair: s_2 to s_0", "best pair: s_1 to s_0"
    ]  # fmt: skip
    for pair in pairs:
        names = [image["name"] for image in pair["images"]]
        assert names == ["Moving (before)", "good", "zero"]
        moving, good, zero = pair["images"]
        assert zero["label"] == moving["label"] != good["label"]
        assert all("label" in image for image in (pair["fixed"], *pair["images"]))


def test_existing_comparison_is_kept_unless_overwrite_is_asked_for(data: Path, run: Run) -> None:
    run()
    (data / "out" / "compare.html").write_text("mine")
    with pytest.raises(InputError, match="compare.html exists"):
        run()
    assert (data / "out" / "compare.html").read_text() == "mine"
    assert "mine" != run("--overwrite")


def test_interrupted_comparison_goes_on_with_what_is_missing(
    data: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    (data / "out" / "compare.html").unlink()
    for path in (data / "out" / "zero").iterdir():
        path.unlink()
    measured = []
    original = comparison.report_fields

    def counted(*positional: Any, **given: Any) -> dict[str, Any]:
        measured.append(given["title"])
        return original(*positional, **given)

    monkeypatch.setattr(comparison, "report_fields", counted)
    assert "<table>" in run()
    assert measured == ["zero"]


def test_finished_method_with_other_settings_is_not_taken(data: Path, run: Run) -> None:
    run()
    (data / "out" / "compare.html").unlink()
    with pytest.raises(InputError, match="holds an evaluation already"):
        run("--label_values", "1")


def test_missing_fields_are_named_and_no_page_is_written(data: Path, run: Run) -> None:
    (data / "zero" / "s_2_to_s_0_ddf.nii.gz").unlink()
    with pytest.raises(InputError, match="1 of 3 pairs are not complete: s_2 to s_0"):
        run()
    assert not (data / "out" / "compare.html").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fields", "greedy"], "--fields greedy is not of the form NAME=DIR"),
        (["--fields", "a=x", "a=y"], "names a twice"),
        (["--fields", "../a=x"], "cannot be a folder"),
        (["--fields", "..=x"], "cannot be a folder"),
        (["--convention", "lps"], "convention 'lps' of good is unknown; use one of auto, voxels"),
        (["--convention", "other=lps_mm"], "stated for 'other', which is none of good, zero"),
        (["--convention", "good=itk"], "is a NIfTI image, not an ITK transform file"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(data: Path, run: Run, options: list[str], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        run(*options)
    assert not (data / "out").exists()
