# SPDX-License-Identifier: Apache-2.0
"""All bundles are wired as the pattern is, and the script that keeps them so notices and mends what differs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser
from monai.bundle.reference_resolver import ReferenceResolver

from common.checks import InputError
from scripts import wiring
from scripts.json_style import style

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = wiring.bundles(ROOT)
OTHER = "eoir_acdc"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of what the wiring is made of."""
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    for bundle in BUNDLES:
        copy = tmp_path / "bundles" / bundle.name
        shutil.copytree(bundle / "configs", copy / "configs")
        shutil.copy(bundle / "LICENSE", copy)
    return tmp_path


def config(repository: Path, bundle: str, file: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((repository / "bundles" / bundle / "configs" / file).read_text())
    return content


def edit(repository: Path, bundle: str, file: str, change: Callable[[dict[str, Any]], Any]) -> None:
    content = config(repository, bundle, file)
    change(content)
    (repository / "bundles" / bundle / "configs" / file).write_text(style(content))


def test_all_bundles_are_wired_as_the_pattern() -> None:
    assert wiring.differences(ROOT) == []


def test_a_change_of_the_pattern_reaches_all_bundles_by_one_command(repository: Path) -> None:
    edit(repository, wiring.PATTERN, "train.json", lambda c: c["train"]["trainer"].update(decollate=True))
    edit(repository, wiring.PATTERN, "train.json", lambda c: c["validate"]["inferer"].update(details=["inverse_ddf"]))
    found = wiring.differences(repository)
    others = [bundle.name for bundle in BUNDLES if bundle.name not in (wiring.PATTERN, *wiring.UNTRAINED)]
    assert len(found) == 2 * len(others)
    for name in others:
        lines = [line for line in found if line.startswith(f"bundles/{name}/configs/train.json: ")]
        assert "train::trainer::decollate is false, in eoir_oasis true" in lines[0]
        assert "validate::inferer::details is missing" in lines[1]
    assert len(wiring.write(repository)) == len(others)
    assert wiring.differences(repository) == []
    for name in others:
        train = config(repository, name, "train.json")
        assert train["train"]["trainer"]["decollate"] and train["validate"]["inferer"]["details"] == ["inverse_ddf"]


def test_a_change_of_another_bundle_is_named_and_taken_back(repository: Path) -> None:
    edit(repository, OTHER, "inference.json", lambda c: c["dataloader"].update(batch_size=True))
    edit(repository, OTHER, "evaluate.json", lambda c: c["handlers"][1].update(title="Mine"))
    assert wiring.differences(repository) == [
        f'bundles/{OTHER}/configs/evaluate.json: handlers::EvaluationWriter::title is "Mine", in eoir_oasis '
        '"@_meta_::name"',
        f"bundles/{OTHER}/configs/inference.json: dataloader::batch_size is true, in eoir_oasis 1",
    ]
    wiring.write(repository)
    assert config(repository, OTHER, "inference.json") == config(ROOT, OTHER, "inference.json")


def test_what_a_bundle_says_of_its_own_stays(repository: Path) -> None:
    def say(content: dict[str, Any]) -> None:
        content["max_epochs"] = 7
        content["loss"]["terms"]["mse"]["weight"] = 3.0
        content["train"]["dataloader"]["sampler"]["strategy"] = "all"
        del content["spacing"]
        content["train"]["handlers"].insert(0, {"_target_": "common.engine.Own"})

    edit(repository, OTHER, "train.json", say)
    assert wiring.differences(repository) == [] and wiring.write(repository) == []


def test_keys_that_no_bundle_may_add_are_named_and_removed(repository: Path) -> None:
    edit(repository, OTHER, "train.json", lambda c: c["train"].update(extra=1))
    edit(repository, "eoir_shapes3d", "train.json", lambda c: c["train"]["phantoms"].update(size=[8, 8, 8]))
    (line,) = wiring.differences(repository)
    assert "eoir_acdc/configs/train.json: train::extra is not in eoir_oasis" in line
    wiring.write(repository)
    assert "extra" not in config(repository, OTHER, "train.json")["train"]
    # Data are made before they are read: what a bundle adds keeps its place.
    assert list(config(repository, "eoir_shapes3d", "train.json")["train"])[:3] == ["start", "phantoms", "determinism"]


def test_metadata_follow_the_pinned_versions(repository: Path) -> None:
    requirements = repository / "requirements.txt"
    requirements.write_text(
        requirements.read_text().replace("monai==1.6.1", "monai==9.9").replace("scipy==", "scipy==8")
    )
    assert any('monai_version is "1.6.1", in eoir_oasis "9.9"' in line for line in wiring.differences(repository))
    wiring.write(repository)
    for bundle in BUNDLES:
        metadata = config(repository, bundle.name, "metadata.json")
        assert metadata["monai_version"] == "9.9" and metadata["required_packages_version"]["scipy"].startswith("8")
        assert metadata["name"] == config(ROOT, bundle.name, "metadata.json")["name"]


def test_files_that_are_copied_whole_are_compared(repository: Path) -> None:
    (repository / "bundles" / OTHER / "LICENSE").write_text("mine")
    (repository / "bundles" / OTHER / "configs" / "multi_gpu_train.json").unlink()
    assert wiring.differences(repository) == [
        f"bundles/{OTHER}/LICENSE differs",
        f"bundles/{OTHER}/configs/multi_gpu_train.json is missing",
    ]
    wiring.write(repository)
    assert wiring.differences(repository) == []


def test_order_of_keys_and_line_breaks_count(repository: Path) -> None:
    path = repository / "bundles" / wiring.PATTERN / "configs" / "train.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=2))
    edit(repository, OTHER, "train.json", lambda c: c.update(run=c.pop("validate") and "$@train"))
    found = wiring.differences(repository)
    assert f"bundles/{wiring.PATTERN}/configs/train.json: the order of keys or the line breaks differ" in found
    assert f"bundles/{OTHER}/configs/train.json: validate is missing" in found
    wiring.write(repository)
    assert path.read_text() == (ROOT / path.relative_to(repository)).read_text()


@pytest.mark.parametrize(("text", "message"), [(None, "is missing"), ("{", "is no JSON"), ("[]", "holds a JSON list")])
def test_nothing_is_written_while_a_file_is_damaged(repository: Path, text: str | None, message: str) -> None:
    edit(repository, wiring.PATTERN, "train.json", lambda c: c["train"]["trainer"].update(decollate=True))
    path = repository / "bundles" / OTHER / "configs" / "evaluate.json"
    path.unlink() if text is None else path.write_text(text)
    before = config(repository, "eoir_abdomenct", "train.json")
    with pytest.raises(InputError, match=f"eoir_acdc/configs/evaluate.json {message}"):
        wiring.write(repository)
    assert config(repository, "eoir_abdomenct", "train.json") == before


@pytest.mark.parametrize(("names", "file", "path", "reason"), wiring.EXCEPTIONS)
def test_exceptions_are_needed(names: str, file: str, path: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wiring, "EXCEPTIONS", ())
    assert reason and any(f"/{file}: {path} is" in line for line in wiring.differences(ROOT))


@pytest.mark.parametrize("file", wiring.OWN)
def test_what_bundles_may_say_is_said_by_one_at_least(file: str) -> None:
    present = [config(ROOT, bundle.name, file) for bundle in BUNDLES if (bundle / "configs" / file).is_file()]
    for path in wiring.own_paths("", file):
        items: list[Any] = present
        for key in path.split("::"):
            holders = [wiring.entries(item) or {} for item in items]
            items = [holder[key] for holder in holders if key in holder]
        assert items, f"no {file} has {path}"


@pytest.mark.parametrize(
    ("bundle", "file"),
    [
        pytest.param(bundle, file, id=f"{bundle.name}-{file}")
        for bundle in BUNDLES
        for file in ("train.json", "evaluate.json", "inference.json", "submission.json")
        if (bundle / "configs" / file).is_file()
    ],
)
def test_every_reference_leads_somewhere(bundle: Path, file: str) -> None:
    content = {**config(ROOT, bundle.name, file), "_meta_": config(ROOT, bundle.name, "metadata.json")}
    parser = ConfigParser(content)
    text = json.dumps({key: value for key, value in content.items() if key != "_meta_"})
    names = {ReferenceResolver.normalize_id(name[1:]) for name in ReferenceResolver.id_matcher.findall(text)}
    assert sorted(name for name in names if name not in parser) == [] and "dataset_dir" in names
