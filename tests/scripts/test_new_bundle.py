# SPDX-License-Identifier: Apache-2.0
"""A new bundle is whole, wired as the others, and takes from them what its method and its data set have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from common import networks
from common.checks import InputError
from scripts import new_bundle, wiring

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what bundles are made of."""
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    (tmp_path / "common").symlink_to(ROOT / "common")
    for bundle in wiring.bundles(ROOT):
        ignored = shutil.ignore_patterns("outputs", "data", "eval", "models", "*.png", "*.csv")
        shutil.copytree(bundle, tmp_path / "bundles" / bundle.name, symlinks=True, ignore=ignored)
    monkeypatch.setattr(new_bundle, "ROOT", tmp_path)
    return tmp_path


class Toy(nn.Module):
    """A network without a bundle."""

    def __init__(self, spatial_dims: int = 3, width: int = 4) -> None:
        super().__init__()


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "Toy", Toy, raising=False)
    monkeypatch.setattr(networks, "__all__", [*networks.__all__, "Toy"])


def contents(bundle: Path) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in (bundle / "configs").glob("*.json")}


def names(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "bundles").iterdir())


def test_method_with_a_bundle_on_new_data(repository: Path) -> None:
    bundle = new_bundle.make_bundle(repository, "eoir", "hammers")
    assert wiring.differences(repository) == []
    made, pattern = contents(bundle), contents(repository / "bundles" / wiring.PATTERN)
    for file in ("train", "evaluate", "inference"):
        assert made[file]["network_def"] == pattern[file]["network_def"] and made[file]["supervised"] is True
        assert made[file]["reader"] == "datalist"
        assert not {"label_groups", "grouping"} & set(made[file]) and "phantoms" not in json.dumps(made[file])
    assert made["train"]["loss"] == pattern["train"]["loss"] and made["train"]["pairs_per_epoch"] is None
    assert made["inference"]["folder"]["settings"]["network"] == "$@network_def.arguments"
    assert made["metadata"]["name"] == "EOIR on hammers" and made["metadata"]["version"] == "0.1.0"
    assert "submission" not in made


@pytest.mark.usefixtures("toy")
def test_network_without_a_bundle_on_data_with_one(repository: Path) -> None:
    bundle = new_bundle.make_bundle(repository, "toy", "oasis")
    assert wiring.differences(repository) == []
    made, oasis = contents(bundle), contents(repository / "bundles" / "eoir_oasis")
    for file in ("train", "evaluate", "inference", "submission"):
        assert made[file]["network_def"] == {"_target_": "common.networks.Toy", "spatial_dims": 3}
        assert "supervised" not in made[file]
        assert {**made[file]["preprocessing"]} == oasis[file]["preprocessing"]
    assert made["train"]["grouping"] == oasis["train"]["grouping"]
    assert made["train"]["max_epochs"] == oasis["train"]["max_epochs"] and made["train"]["lr_scheduler"] is None
    assert "int_steps" not in made["inference"]["folder"]["settings"]
    assert made["inference"]["handlers"][1]["lookup"] == "$@grouping.lookup"
    assert made["metadata"]["name"] == "Toy on OASIS"
    assert (bundle / "docs" / "data_license.txt").read_text().startswith("OASIS-1 is given out")
    readme = (bundle / "docs" / "README.md").read_text()
    assert "\nOASIS-1 brains, skull-stripped" in readme and "come from eoir_oasis; correct" in readme


@pytest.mark.parametrize("variant", ["conv_mf", "convic_mf"])
def test_variants_of_a_network_are_methods_by_names_with_underscores(repository: Path, variant: str) -> None:
    bundle = new_bundle.make_bundle(repository, f"dp_{variant}", "hammers")
    assert wiring.parts(bundle.name) == (f"dp_{variant}", "hammers") and wiring.differences(repository) == []
    made, source = contents(bundle), contents(repository / "bundles" / f"dp_{variant}_lumir")
    assert all(made[file]["network_def"]["variant"] == variant for file in ("train", "evaluate", "inference"))
    assert made["train"]["train"]["dataloader"]["sampler"].get("both_ways", False) == (variant == "conv_mf")
    for own in ("loss", "lr_scheduler", "pairs_per_epoch"):
        assert made["train"][own] == source["train"][own]
    assert f"those of dp_{variant}_lumir" in (bundle / "docs" / "README.md").read_text()


def test_a_part_of_a_name_is_no_method(repository: Path) -> None:
    with pytest.raises(InputError, match="no method 'dp'; these exist: dp_conv_c, dp_conv_mf, .*, dualpyramid, eoir, "):
        new_bundle.make_bundle(repository, "dp", "ixi")


@pytest.mark.usefixtures("toy")
def test_a_class_may_be_written_with_underscores(repository: Path) -> None:
    bundle = new_bundle.make_bundle(repository, "t_oy", "oasis")
    assert contents(bundle)["train"]["network_def"]["_target_"] == "common.networks.Toy"


@pytest.mark.usefixtures("toy")
def test_what_a_data_set_needs_of_its_own_comes_along(repository: Path) -> None:
    lumir = contents(new_bundle.make_bundle(repository, "toy", "lumir"))
    assert lumir["train"]["cache_rate"] == 0.0 and lumir["train"]["validate"]["dataset"]["cache_rate"] == 1.0
    acdc = contents(new_bundle.make_bundle(repository, "toy", "acdc"))
    assert acdc["train"]["spatial_size"] == [128, 128, 16]
    assert acdc["train"]["train"]["dataloader"]["sampler"]["flip_axes"] == [0, 1]
    shapes = contents(new_bundle.make_bundle(repository, "toy", "shapes3d"))
    assert list(shapes["train"]["train"])[:2] == ["start", "phantoms"]
    assert wiring.differences(repository) == []


def test_reader_of_the_data_sets_name_is_used(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(new_bundle.READERS, "newdata", new_bundle.READERS["datalist"])
    bundle = new_bundle.make_bundle(repository, "eoir", "newdata")
    assert contents(bundle)["inference"]["reader"] == "newdata"
    # The bundle that it takes the plainest data from has weights.
    assert "weights_license" not in contents(bundle)["metadata"]
    assert "--reader newdata" in (bundle / "docs" / "README.md").read_text()


def test_folder_is_whole_and_says_what_is_left(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new_bundle.main(["eoir", "hammers"])
    bundle, pattern = repository / "bundles" / "eoir_hammers", repository / "bundles" / wiring.PATTERN
    files = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if not path.is_dir()}
    configs = {f"configs/{name}" for name in wiring.OWN if name not in wiring.OPTIONAL}
    others = {"LICENSE", "configs/logging.conf", "docs/README.md", "docs/data_license.txt", "models/.gitkeep"}
    assert files == configs | others
    assert (bundle / "common").readlink() == Path("../../common") and (bundle / "common" / "__init__.py").is_file()
    assert bundle.stat().st_mode & 0o777 == pattern.stat().st_mode & 0o777
    said = capsys.readouterr().out.splitlines()
    left = ("configs/metadata.json", "docs/README.md", "docs/data_license.txt")
    assert said[1:] == [f"  bundles/eoir_hammers/{name}" for name in left]
    headings = [line for line in (pattern / "docs" / "README.md").read_text().splitlines() if line.startswith("## ")]
    readme = (bundle / "docs" / "README.md").read_text()
    assert readme.startswith("# EOIR on hammers\n") and "$" not in readme
    assert [heading for heading in headings if heading not in readme.splitlines()] == []


@pytest.mark.parametrize(
    ("method", "dataset", "message"),
    [
        ("eoir", "oasis", "eoir_oasis exists; remove it first"),
        (
            "nothing",
            "oasis",
            "no method 'nothing'; these exist: dp_conv_c, .*eoir.*First write common/networks/nothing.py",
        ),
        ("EOIR", "oasis", "'EOIR' is no name"),
        ("eoir", "../oasis", "'../oasis' is no name"),
        ("eoir", "two_words", "'two_words' is no name"),
        ("eoir_", "oasis", "'eoir_' is no name"),
        ("_eoir", "oasis", "'_eoir' is no name"),
        ("eoir", "visceral", "eoir_visceral cannot be the name of a bundle, as MONAI reads what follows _v as the"),
    ],
)
def test_impossible_requests_are_refused(repository: Path, method: str, dataset: str, message: str) -> None:
    before = names(repository)
    with pytest.raises(InputError, match=message):
        new_bundle.make_bundle(repository, method, dataset)
    assert names(repository) == before


@pytest.mark.usefixtures("toy")
def test_nothing_half_written_stays(repository: Path) -> None:
    (repository / "bundles" / "eoir_acdc" / "configs" / "inference.json").write_text("{")
    before = names(repository)
    with pytest.raises(InputError, match="inference.json is no JSON"):
        new_bundle.make_bundle(repository, "toy", "acdc")
    assert names(repository) == before


@pytest.mark.parametrize("bundle", wiring.bundles(ROOT), ids=lambda path: path.name)
def test_no_bundle_is_left_unfinished(bundle: Path) -> None:
    assert new_bundle.unfinished_files(bundle) == []
