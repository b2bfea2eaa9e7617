# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common.checks import InputError
from common.evaluation.sensitivity import BEGIN, END
from common.io.nifti import write_image
from common.io.tables import read_csv
from scripts import sensitivity

SIZE = 20
ROLL = 2
CUT = "field of view cut by 20 %"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two scans of a ball that lie ``ROLL`` voxels apart along the first axis, with their labels; one pair."""
    place = torch.stack(torch.meshgrid(*[torch.arange(SIZE) - SIZE / 2 + 0.5] * 3, indexing="ij"))
    ball = ((place / torch.tensor([5.0, 6.0, 7.0])[:, None, None, None]) ** 2).sum(0) < 1
    affine = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0]))
    for number in range(2):
        here = ball.roll(ROLL * number, 0)
        write_image(tmp_path / f"{number}.nii.gz", (here * (1 + 0.3 * torch.cos(place[0])))[None], affine)
        write_image(tmp_path / f"{number}_label.nii.gz", here[None].to(torch.uint8), affine)
    subjects = [{"image": f"{number}.nii.gz", "label": f"{number}_label.nii.gz"} for number in range(2)]
    pairs = [{"moving": "1.nii.gz", "fixed": "0.nii.gz"}]
    (tmp_path / "dataset.json").write_text(
        json.dumps({"training": [], "validation": subjects, "registration_val": pairs})
    )
    (tmp_path / "groups.json").write_text(json.dumps({"lookup_table": [0, 1], "evaluation_groups": [1]}))
    return tmp_path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Moving images that Greedy, which knows the answer, was given."""
    seen: list[Tensor] = []

    def greedy(
        moving: Any, fixed: Any, settings: dict[str, Any], python: str
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        assert moving.image.shape == fixed.image.shape and moving.spacing == [2, 2, 2]
        seen.append(moving.image)
        ddf = torch.zeros(3, *fixed.image.shape)
        ddf[0] = ROLL
        return ddf, moving.image, {"cpu_seconds": 7.0}

    monkeypatch.setattr(sensitivity.baseline_pair, "register", greedy)
    monkeypatch.setattr(sensitivity, "check_installed", lambda name, python: "1.0")
    monkeypatch.setattr(sensitivity, "LINES", [("as they are", False), (CUT, False)])
    return seen


def words(data: Path, *more: str) -> list[str]:
    """A command line; the bundle without a network needs no weights, and its optimisation is one step."""
    given = ["instance_any", "--dataset_dir", data, "--label_groups", data / "groups.json", "--output", data / "out"]
    return [*map(str, given), "--io_steps", "1", "--options", "--levels [1]", *more]


def test_rows_of_all_methods_and_the_page(data: Path, calls: list[Tensor], capsys: pytest.CaptureFixture[str]) -> None:
    page = data / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    sensitivity.main(words(data, "--page", str(page)))
    rows = {(row["perturbation"], row["method"]): row for row in read_csv(data / "out" / "sensitivity.csv")}
    assert len(rows) == 2 * 4 and all(row["moving_id"] == "1" and row["affine"] == "False" for row in rows.values())
    dice = {key: float(row["dice"]) for key, row in rows.items()}
    assert dice["as they are", "before"] == dice["as they are", "network"] < 0.7
    # The whole label is there also where the scan was cut, and Greedy's field follows the way by the headers.
    assert dice["as they are", "greedy"] == dice[CUT, "greedy"] == 1 and dice[CUT, "before"] < 0.7
    assert float(rows[CUT, "greedy"]["cpu_seconds"]) >= 7
    assert calls[0].count_nonzero() > calls[1].count_nonzero() > 0
    table = (data / "out" / "sensitivity.md").read_text()
    assert table.splitlines()[0] == "| moving scans | before | network | network + 1 steps | Greedy |"
    assert table in page.read_text() and table in capsys.readouterr().out


def test_what_is_there_is_not_measured_again(data: Path, calls: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    sensitivity.main(words(data, "--methods", "greedy"))
    first = (data / "out" / "greedy.json").read_bytes()
    sensitivity.main(words(data, "--methods", "greedy", "network"))
    assert len(calls) == 2 and (data / "out" / "greedy.json").read_bytes() == first
    other = words(data, "--methods", "greedy", "network", "--options", "--levels [2]")
    with pytest.raises(InputError, match="made with another options"):
        sensitivity.main(other)
    registered: list[str] = []
    whole = sensitivity.measure

    def measure(pair: Any, perturbation: str, name: str, *rest: Any) -> Any:
        registered.append(name)
        return whole(pair, perturbation, name, *rest)

    monkeypatch.setattr(sensitivity, "measure", measure)
    sensitivity.main([*other, "--overwrite"])
    assert registered == ["network", "network"] and len(calls) == 2


def test_scans_without_labels_are_refused(data: Path, calls: list[Tensor]) -> None:
    content = json.loads((data / "dataset.json").read_text())
    del content["validation"][1]["label"]
    (data / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"1\.nii\.gz has no label map"):
        sensitivity.main(words(data, "--methods", "greedy"))


def test_what_the_study_varies_is_no_option_of_the_bundle(data: Path) -> None:
    with pytest.raises(InputError, match="--affine is not for --options"):
        sensitivity.main(words(data, "--options", "--affine true"))


def test_a_page_without_a_place_for_the_table_is_refused_at_once(data: Path, calls: list[Tensor]) -> None:
    (data / "page.md").write_text("# Title\n")
    with pytest.raises(InputError, match=r"page\.md is no page with one line"):
        sensitivity.main(words(data, "--page", str(data / "page.md")))
    assert not calls and not (data / "out").exists()


def test_an_alignment_comes_first_where_the_scan_lies_elsewhere() -> None:
    aligned = [name for name, affine in sensitivity.LINES if affine]
    assert aligned == ["turned by 5°", "turned by 10°", "shifted by 5 mm"]
    assert sensitivity.LINES[0] == ("as they are", False) and len(sensitivity.LINES) == 13
