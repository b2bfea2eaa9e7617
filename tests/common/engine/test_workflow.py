# SPDX-License-Identifier: Apache-2.0
"""Workflows that are made in Python: the same checks as at the command line, and a further run does something."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigWorkflow, create_workflow

import common
from common.cli import sentence_of

Make = Callable[..., ConfigWorkflow]
CONFIG: dict[str, Any] = {
    "bundle_root": ".",
    "dataset_dir": "$@bundle_root + '/data'",
    "output_dir": "$@bundle_root + '/out'",
    "max_epochs": 2,
    "not_used": 1,
    "initialize": [{"_target_": "common.engine.prepare_workflow"}],
    "train": {
        "start": {
            "_target_": "common.engine.restart_and_check",
            "bundle_root": "@bundle_root",
            "output_dir": "@output_dir",
        },
        "trainer": {"max_epochs": "@max_epochs"},
        "run": "$open(@bundle_root + '/log', 'a').write(str(@train::trainer::max_epochs) + ' ' + @dataset_dir + '\\n')",
    },
    "run": "$@train",
}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes workflows of a tiny bundle, whose run writes a line."""
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "metadata.json").write_text(json.dumps({"common_version": common.__version__, "name": "tiny"}))
    (configs / "train.json").write_text(json.dumps(CONFIG))

    def made(*more: str, **override: Any) -> ConfigWorkflow:
        files = [str(configs / "train.json"), *more]
        options = {"logging_file": False, "bundle_root": str(tmp_path), **override}
        workflow: ConfigWorkflow = create_workflow(config_file=files, workflow_type="train", **options)
        return workflow

    return made


def lines(folder: Path) -> list[str]:
    return (folder / "log").read_text().splitlines()


def refused(make: Make, *more: str, **override: Any) -> str | None:
    with pytest.raises(RuntimeError) as error:
        make(*more, **override)
    return sentence_of(error.value)


def test_a_further_run_makes_everything_anew(make: Make, tmp_path: Path) -> None:
    workflow = make()
    workflow.run()
    workflow.run()
    assert lines(tmp_path) == [f"2 {tmp_path}/data"] * 2
    workflow.max_epochs = 3
    workflow.initialize()
    workflow.run()
    assert lines(tmp_path)[2:] == [f"3 {tmp_path}/data"]
    workflow.dataset_dir = "elsewhere"
    workflow.run()
    assert lines(tmp_path)[3:] == ["3 elsewhere"]


def test_a_workflow_by_its_part_runs_again_too(make: Make, tmp_path: Path) -> None:
    workflow = make(run_id="train")
    workflow.run()
    workflow.run()
    assert len(lines(tmp_path)) == 2


def test_parts_taken_before_the_run_are_those_of_the_run(make: Make, tmp_path: Path) -> None:
    workflow = make(extra={"_target_": "builtins.dict"}, **{"train#run": "$@extra.update(ran=True)"})
    part = workflow.parser.get_parsed_content("extra")
    workflow.run()
    assert part == {"ran": True}


def test_a_config_changed_after_the_checks_counts(make: Make, tmp_path: Path) -> None:
    workflow = make()
    workflow.parser["dataset_dir"] = "changed"
    workflow.parser.config["max_epochs"] = 5  # type: ignore[index]
    workflow.run()
    assert lines(tmp_path) == ["5 changed"]


def test_mistyped_options_are_refused(make: Make, tmp_path: Path) -> None:
    sentence = "There is no option --max_epoch. Did you mean 'max_epochs'?"
    assert refused(make, max_epoch=3) == sentence
    for folder in (tmp_path, tmp_path / "configs"):
        (folder / "mine.json").write_text('{"max_epoch": 3}')
        assert refused(make, str(folder / "mine.json")) == sentence
    made = ConfigWorkflow(str(tmp_path / "configs" / "train.json"), logging_file=False, max_epoch=3)
    with pytest.raises(RuntimeError) as error:
        made.initialize()
    assert sentence_of(error.value) == sentence
    nested = refused(make, **{"train#start#output": "x"})
    assert nested is not None and nested.endswith("Did you mean 'output_dir'?")


def test_new_items_that_something_refers_to_pass(make: Make, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('{"mine": 7, "max_epochs": "@mine", "not_used": "replaced", "_note": "x"}')
    make(str(tmp_path / "mine.json")).run()
    assert lines(tmp_path) == [f"7 {tmp_path}/data"]


def test_wrong_values_are_refused(make: Make) -> None:
    assert refused(make, max_epochs="ten") == "--max_epochs is 'ten'; give the number of epochs, 1 or more."
    assert refused(make, dataset_dir=2024) == "--dataset_dir is 2024; give a path."


def test_paths_are_taken_to_the_letter(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    make(bundle_root=tmp_path, dataset_dir=tmp_path / "data #1").run()
    make(dataset_dir="~/scans").run()
    make(dataset_dir="$'a\\x23b'").run()
    make(dataset_dir=Path("@lab/50%")).run()
    assert lines(tmp_path) == [f"2 {text}" for text in (f"{tmp_path}/data #1", f"{tmp_path}/scans", "a#b", "@lab/50%")]
    sentence = refused(make, dataset_dir="a#b")
    assert sentence is not None and "MONAI makes '::' of every '#'" in sentence and repr("$'a\\x23b'") in sentence


def test_a_config_without_the_item_is_checked_when_it_runs(make: Make, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as error:
        make(initialize=[], max_epochs=0).run()
    assert sentence_of(error.value) == "--max_epochs is 0; give the number of epochs, 1 or more."
    workflow = make(initialize=[], output_dir=Path(tmp_path / "out#1"))
    workflow.run()
    assert len(lines(tmp_path)) == 1 and (tmp_path / "out#1").is_dir()


def test_a_config_outside_its_bundle_knows_the_metadata(make: Make, tmp_path: Path) -> None:
    (tmp_path / "copied").mkdir()
    os.rename(tmp_path / "configs" / "train.json", tmp_path / "copied" / "train.json")
    files = {"config_file": str(tmp_path / "copied" / "train.json"), "bundle_root": str(tmp_path)}
    workflow = create_workflow(**files, workflow_type="train", logging_file=False, dataset_dir="@_meta_::name")
    workflow.run()
    assert lines(tmp_path) == ["2 tiny"]


def test_code_of_another_release_is_refused_before_anything_is_made(make: Make, tmp_path: Path) -> None:
    (tmp_path / "configs" / "metadata.json").write_text('{"common_version": "99.0"}')
    sentence = refused(make)
    assert sentence is not None and f"needs version 99.0 of 'common', but version {common.__version__}" in sentence
