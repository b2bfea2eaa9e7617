# SPDX-License-Identifier: Apache-2.0
"""Of a registered pair only what is wanted is computed and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from common.checks import InputError
from common.engine import registration
from common.engine.registration import Registration
from common.engine.registration_files import OUTPUTS, are_outputs, chosen_outputs, write_files
from common.engine.registration_folder import RegistrationFolder


@pytest.fixture
def pair() -> dict[str, Any]:
    """A shift by a voxel along the first axis of a small scan."""
    ddf = torch.zeros(3, 6, 5, 4)
    ddf[0] = 1
    scan = torch.arange(120.0).view(1, 6, 5, 4)
    affine = torch.diag(torch.tensor([2.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    sides = {f"{side}_{name}": value for side in ("moving", "fixed") for name, value in
             (("scan", scan), ("affine", affine), ("id", side))}  # fmt: skip
    paths = {"path_moving": "moving.nii.gz", "path_fixed": "fixed.nii.gz"}
    alignment = torch.eye(4, dtype=torch.float64)
    return {**sides, **paths, "ddf": ddf, "affine": affine, "alignment": alignment, "aligned": {}}


def test_the_chosen_files_are_written_and_nothing_else_is_computed(
    pair: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dear(*_: Any) -> None:
        raise AssertionError("computed, but not wanted")

    monkeypatch.setattr(registration, "invert", dear)
    monkeypatch.setattr(registration, "jacobian_determinant", dear)
    files = write_files(Registration(pair), tmp_path / "a_to_b", chosen_outputs("warped,transform"))
    assert [path.name for path in files] == ["a_to_b_warped.nii.gz", "a_to_b_transform.h5"]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    warped = np.asarray(nibabel.load(files[0]).dataobj)
    # Of positions in single precision.
    np.testing.assert_allclose(warped[:-1], pair["moving_scan"][0, 1:].numpy(), rtol=3e-7)


def test_all_is_everything_there_is(pair: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pair["moving_scan_label"] = (pair["moving_scan"] > 60).short()
    files = write_files(Registration(pair), tmp_path / "p", chosen_outputs("all"))
    names = {path.name.removeprefix("p_") for path in files}
    assert names == {
        "warped.nii.gz", "warped_label.nii.gz", "transform.h5", "inverse.h5", "displacement.nii.gz", "ddf.nii.gz",
        "jacobian.nii.gz", "panel.png",
    }  # fmt: skip
    assert not caplog.records


def test_what_was_asked_for_by_name_and_is_not_there_is_said(
    pair: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert write_files(Registration(pair), tmp_path / "p", ("label",)) == []
    assert "p has no output 'label'" in caplog.text


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("all", [*OUTPUTS][:-2]),
        ("warped", ["warped"]),
        ("ddf,map", ["ddf", "map"]),
        (("label", "ddf"), ["label", "ddf"]),
    ],
)
def test_outputs_are_names_with_commas_or_a_list(given: Any, names: list[str]) -> None:
    assert list(chosen_outputs(given)) == names and are_outputs(given)


@pytest.mark.parametrize("given", ["", "warped;ddf", "all,warped", [], None, 3, ["warped", 1]])
def test_other_words_are_no_outputs(given: Any) -> None:
    assert not are_outputs(given)


def test_a_wrong_output_is_named_with_those_there_are() -> None:
    with pytest.raises(InputError, match="no output 'warpd': give all, or some of warped, label, transform"):
        RegistrationFolder("out", {}, outputs="warpd,ddf")


def test_outputs_of_a_folder_do_not_change(tmp_path: Path) -> None:
    RegistrationFolder(tmp_path, {}, outputs="warped").claim()
    assert RegistrationFolder(tmp_path, {}, outputs="warped")._finished() == {}
    with pytest.raises(InputError, match="another outputs"):
        RegistrationFolder(tmp_path, {}, outputs="warped,ddf")._finished()


@pytest.mark.parametrize(
    ("outputs", "field"),
    [("all", "a_to_b_ddf.nii.gz"), ("transform,displacement", "a_to_b_displacement.nii.gz"), ("panel", None)],
)
def test_the_list_for_the_evaluator_names_a_field_that_is_there(
    tmp_path: Path, outputs: str, field: str | None
) -> None:
    folder = RegistrationFolder(tmp_path, {}, outputs=outputs)
    folder.record("a_to_b", {"moving_id": "a", "fixed_id": "b", "files": [], "network_seconds": 1.0})
    assert (tmp_path / "pairs.csv").exists() == (field is not None)
    assert field is None or field in (tmp_path / "pairs.csv").read_text()
