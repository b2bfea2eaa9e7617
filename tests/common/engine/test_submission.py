# SPDX-License-Identifier: Apache-2.0
"""The folder of a submission: resumed, never mixed, and complete only when all of it is fit."""

from __future__ import annotations

import errno
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from common.checks import InputError
from common.data.request import Request
from common.engine import SubmissionFolder

NUMBERS = ("3454", "3455", "3456")
SUBJECTS = [{"id": f"LUMIRMRI_{n}", "image": f"imagesVal/LUMIRMRI_{n}_0000.nii.gz"} for n in NUMBERS]
REQUEST = Request(SUBJECTS, [(0, 1), (1, 2)])
NAMES = ["disp_3455_3454.nii.gz", "disp_3456_3455.nii.gz"]


def opened(folder: Path, request: Request = REQUEST, **options: Any) -> SubmissionFolder:
    settings = options.pop("settings", {"amp": False})
    return SubmissionFolder(folder / "fields", folder / "provenance.json", request, "lumir", settings, **options)


def registered(moving: int, fixed: int, value: float = 1.0) -> dict[str, Any]:
    pair: dict[str, Any] = {"ddf": torch.full((3, 4, 5, 6), value)}
    for side, index in (("moving", moving), ("fixed", fixed)):
        pair[f"{side}_id"], pair[f"path_{side}"] = SUBJECTS[index]["id"], SUBJECTS[index]["image"]
    return pair


def filled(folder: Path, count: int = 2, **options: Any) -> SubmissionFolder:
    submission = opened(folder, **options)
    submission.begin()
    for pair in submission.left[:count]:
        submission.add(registered(*pair))
    return submission


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "fields").iterdir())


def test_complete_submission_says_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path).finish()
    assert capsys.readouterr().out == f"Submission complete: 2 fields in {tmp_path / 'fields'} checked.\n"
    assert visible(tmp_path) == NAMES
    record = json.loads((tmp_path / "provenance.json").read_text())
    assert list(record["fields"]) == NAMES and record["settings"] == {"amp": False} and "versions" in record


def test_interrupted_submission_goes_on_with_the_missing_pairs(tmp_path: Path) -> None:
    filled(tmp_path, count=1)
    (tmp_path / "fields" / ".disp_3456_3455.nii.gz.x1").touch()
    first = (tmp_path / "fields" / NAMES[0]).stat().st_mtime_ns
    again = opened(tmp_path)
    assert again.left == [(1, 2)]
    again.begin()
    again.add(registered(1, 2))
    again.finish()
    assert visible(tmp_path) == NAMES
    assert (tmp_path / "fields" / NAMES[0]).stat().st_mtime_ns == first


def test_finished_submission_is_checked_again_without_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path)
    again = opened(tmp_path)
    assert again.left == []
    again.finish()
    assert "complete" in capsys.readouterr().out


def test_field_that_was_deleted_is_made_again(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "fields" / NAMES[0]).unlink()
    assert opened(tmp_path).left == [(0, 1)]


def test_missing_damaged_and_foreign_fields_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    submission = filled(tmp_path)
    (tmp_path / "fields" / NAMES[0]).unlink()
    (tmp_path / "fields" / NAMES[1]).write_bytes(b"damaged")
    (tmp_path / "fields" / "notes.txt").touch()
    with pytest.raises(InputError) as error:
        submission.finish()
    for part in (f"{NAMES[0]} is missing", f"{NAMES[1]} cannot be read", "notes.txt is not of this submission"):
        assert part in str(error.value)
    assert capsys.readouterr().out == ""


def test_folder_with_other_files_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "fields").mkdir()
    (tmp_path / "fields" / "disp_9999_9998.nii.gz").touch()
    with pytest.raises(InputError, match="fields of this submission alone, but has disp_9999_9998.nii.gz"):
        opened(tmp_path)


def test_fields_of_unknown_origin_are_not_overwritten_unasked(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "provenance.json").unlink()
    with pytest.raises(InputError, match="disp_3455_3454.nii.gz exists, and no provenance.json"):
        opened(tmp_path)
    assert len(opened(tmp_path, overwrite=True).left) == 2


def test_fields_of_other_weights_are_not_mixed(tmp_path: Path) -> None:
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"one")
    filled(tmp_path, count=1, settings={"ckpt_path": str(weights)})
    assert len(opened(tmp_path, settings={"ckpt_path": str(weights)}).left) == 1
    weights.write_bytes(b"another")
    with pytest.raises(InputError, match="made with another ckpt_path"):
        opened(tmp_path, settings={"ckpt_path": str(weights)})


def test_fields_of_other_images_are_not_mixed(tmp_path: Path) -> None:
    filled(tmp_path)
    other = Request([{**subject, "image": f"elsewhere/{subject['id']}"} for subject in SUBJECTS], REQUEST.pairs)
    with pytest.raises(InputError, match="another image of disp_3455_3454.nii.gz"):
        opened(tmp_path, other)


def test_pair_that_is_listed_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="disp_3455_3454.nii.gz twice"):
        opened(tmp_path, Request(SUBJECTS, [(0, 1), (0, 1)]))


def test_damaged_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "provenance.json").write_text("{}")
    with pytest.raises(InputError, match="not the record of fields"):
        opened(tmp_path)


def test_field_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    submission = filled(tmp_path, count=0)
    with pytest.raises(InputError, match="NaN or infinite for LUMIRMRI_3454 to LUMIRMRI_3455"):
        submission.add(registered(0, 1, float("nan")))
    assert not (tmp_path / "fields").exists()


def test_zip_holds_the_folder_and_is_made_of_complete_submissions_only(tmp_path: Path) -> None:
    archive = tmp_path / "lumir.zip"
    submission = filled(tmp_path, count=1, archive=archive)
    with pytest.raises(InputError, match="not complete"):
        submission.finish()
    assert not archive.exists()
    filled(tmp_path, archive=archive).finish()
    with zipfile.ZipFile(archive) as content:
        assert content.namelist() == [f"fields/{name}" for name in NAMES] and content.testzip() is None
    opened(tmp_path, archive=archive).finish()


def test_zip_for_which_there_is_no_room_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    submission = filled(tmp_path, archive=tmp_path / "zips" / "lumir.zip")
    monkeypatch.setattr(zipfile.ZipFile, "write", full)
    with pytest.raises(InputError, match="Cannot write .*lumir.zip: the disk is full"):
        submission.finish()
    assert list((tmp_path / "zips").iterdir()) == []


def test_foreign_zip_is_not_overwritten_unasked(tmp_path: Path) -> None:
    archive = tmp_path / "lumir.zip"
    archive.write_bytes(b"precious")
    with pytest.raises(InputError, match="lumir.zip exists"):
        opened(tmp_path, archive=archive)
    filled(tmp_path)
    with pytest.raises(InputError, match="another archive"):
        opened(tmp_path, archive=archive)


def test_images_are_checked_before_the_first_pair(tmp_path: Path) -> None:
    seen = []

    def transform(subject: dict[str, str]) -> None:
        seen.append(subject["id"][-4:])
        if subject["id"].endswith("3456"):
            raise RuntimeError("applying transform") from InputError("constant")

    filled(tmp_path, count=1)
    with pytest.raises(InputError, match="^constant$"):
        opened(tmp_path).check_images(transform)
    assert seen == ["3455", "3456"]
