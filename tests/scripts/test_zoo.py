# SPDX-License-Identifier: Apache-2.0
"""A zoo: zips, index and page of all bundles, as MONAI and ``scripts/download.py`` read them."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import monai.bundle
import pytest
import torch
from monai.bundle import ConfigParser
from monai.bundle import scripts as monai_scripts
from PIL import Image

from common.checks import InputError
from scripts import download, package, zoo_index

URL = "https://github.com/OWNER/REPO/releases/download/TAG"
METADATA: dict[str, Any] = {
    "version": "0.2.0",
    "common_version": "9.9",
    "name": "Method on <data>",
    "data_source": "made",
    "data_license": "CC0",
    "references": ["A. Author"],
    "eval_metrics": {"protocol": "2 pairs", "dice": 0.75, "dice_before": 0.5, "published": "0.8 | theirs"},
}


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes bundles of a repository."""
    monkeypatch.setattr(package, "BUNDLES", tmp_path / "bundles")
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "__init__.py").write_text('__version__ = "9.9"\n')

    def bundle(name: str, **metadata: Any) -> Path:
        folder = tmp_path / "bundles" / name
        for part in ("configs", "docs", "models"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / "LICENSE").write_text("licence")
        (folder / "configs" / "metadata.json").write_text(json.dumps({**METADATA, **metadata}))
        if not (folder / "common").exists():
            (folder / "common").symlink_to("../../common")
        return folder

    return bundle


@pytest.fixture
def zoo(tmp_path: Path, make: Callable[..., Path]) -> Path:
    """Two bundles, packed; one has weights, with a licence of their own, and a picture."""
    make("plain_data", weights_license="not said of weights that are not there")
    rich = make("rich_data", version="0.10.0", weights_license="theirs & ours")
    for name in ("model.pt", "model_labels.pt"):
        torch.save({"weight": torch.zeros(2)}, rich / "models" / name)
    Image.new("RGB", (4, 4)).save(rich / "docs" / "preview.png")
    assert pack(tmp_path) == 0
    return tmp_path / "zoo"


def pack(tmp_path: Path, *options: str, url: str = URL) -> int:
    return package.main(["--all", "--index", url, "--output_dir", str(tmp_path / "zoo"), *options])


def index_of(zoo: Path) -> dict[str, dict[str, str]]:
    content: dict[str, dict[str, str]] = json.loads((zoo / "models" / "model_info.json").read_text())
    return content


def test_index_has_checksum_and_address_of_every_zip(zoo: Path) -> None:
    archives = {path.stem: path for path in zoo.glob("*.zip")}
    assert sorted(archives) == ["plain_data_v0.2.0", "rich_data_v0.10.0"]
    assert index_of(zoo) == {
        name: {"checksum": hashlib.sha1(path.read_bytes()).hexdigest(), "source": f"{URL}/{path.name}"}
        for name, path in archives.items()
    }


def test_same_files_give_the_same_zoo_and_may_be_packed_again(zoo: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in zoo.rglob("*") if path.is_file()}
    assert len(before) == 5 and pack(tmp_path) == 0
    assert {path.name: path.read_bytes() for path in zoo.rglob("*") if path.is_file()} == before


def test_page_and_table_say_what_a_reader_chooses_by(zoo: Path) -> None:
    page, table = (zoo / "index.html").read_text(), (zoo / "bundles.md").read_text()
    assert page.count('src="data:image/png;base64,') == 1 and "<script" not in page
    for said in ("Method on &lt;data&gt;", "made", "CC0", "<b>0.500 → 0.750</b>", "2 pairs; published: 0.8 | theirs"):
        assert page.count(said) == 2, said
    for name, entry in index_of(zoo).items():
        command = f"python -m monai.bundle download {name.partition('_v')[0]} --bundle_dir . --url {entry['source']}"
        assert command in page and entry["checksum"] in page and entry["checksum"] in table
    assert "model.pt, model_labels.pt" in page and "no weights" in page
    assert "<td>CC0</td>" in page and '<td>CC0<p class="note">weights: theirs &amp; ours</td>' in page
    row = next(line for line in table.splitlines() if line.startswith("| [rich_data 0.10.0]"))
    assert "0.500 → 0.750; 2 pairs; published: 0.8 \\| theirs | model.pt, model_labels.pt | 0.0 |" in row
    assert "| CC0; weights: theirs & ours |" in row


def test_figures_that_are_absent_are_a_dash(make: Callable[..., Path], tmp_path: Path) -> None:
    make("plain_data", eval_metrics={})
    assert pack(tmp_path) == 0
    assert '<td class="dice">–</td>' in (tmp_path / "zoo" / "index.html").read_text()
    assert "| Method on <data> | – | none |" in (tmp_path / "zoo" / "bundles.md").read_text()


def test_monai_lists_the_bundles(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def get(url: str) -> SimpleNamespace:
        asked.append(url)
        text = (zoo / "models" / "model_info.json").read_text()
        return SimpleNamespace(text=text, raise_for_status=lambda: None)

    # Stands in for the package of this name, which MONAI can do without and this project does not need.
    monkeypatch.setattr(monai_scripts, "requests", SimpleNamespace(get=get))
    monkeypatch.setattr(monai_scripts, "has_requests", True)
    where = {"repo": "OWNER/REPO", "tag": "TAG"}
    assert monai.bundle.get_all_bundles_list(**where) == [("plain_data", "0.2.0"), ("rich_data", "0.10.0")]
    versions = monai.bundle.get_bundle_versions("rich_data", **where)
    assert versions == {"latest_version": "0.10.0", "all_versions": ["0.10.0"]}
    info = monai.bundle.get_bundle_info("rich_data", **where)
    assert info == {"name": "rich_data_v0.10.0", "browser_download_url": f"{URL}/rich_data_v0.10.0.zip"}
    assert set(asked) == {"https://raw.githubusercontent.com/OWNER/REPO/TAG/models/model_info.json"}


def test_earlier_versions_stay_in_the_index(zoo: Path, make: Callable[..., Path], tmp_path: Path) -> None:
    make("plain_data", version="0.3.0")
    assert pack(tmp_path, url="https://elsewhere") == 0
    assert [entry["source"] for entry in index_of(zoo).values()] == [
        *(f"{URL}/plain_data_v0.2.0.zip", "https://elsewhere/plain_data_v0.3.0.zip"),
        "https://elsewhere/rich_data_v0.10.0.zip",
    ]


def test_a_version_that_is_out_keeps_its_content(
    zoo: Path, make: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = index_of(zoo)
    make("plain_data", data_license="other")
    assert pack(tmp_path) == 1
    assert "plain_data_v0.2.0.zip exists with another content: raise the version" in capsys.readouterr().err
    (zoo / "plain_data_v0.2.0.zip").unlink()
    assert pack(tmp_path) == 1
    assert "model_info.json has another checksum for plain_data_v0.2.0: raise" in capsys.readouterr().err
    assert index_of(zoo) == before
    assert pack(tmp_path, "--overwrite") == 0 and index_of(zoo) != before


def test_versions_that_monai_would_confuse_are_refused() -> None:
    assert zoo_index.versions(dict.fromkeys(["a_v0.10.0", "a_v0.9.1", "a_b_v0.1.0"]), "a") == ["0.9.1", "0.10.0"]
    with pytest.raises(InputError, match="would take a 0.9.0 for newer than 0.10.0"):
        entry = {"checksum": "", "source": ""}
        zoo_index.extend(Path("absent"), {"a_v0.9.0": entry, "a_v0.10.0": entry})


def test_nothing_is_packed_when_one_bundle_cannot_be(
    make: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make("a_data")
    make("dp_vfa_oasis")
    assert pack(tmp_path) == 1
    assert capsys.readouterr().err.startswith("dp_vfa_oasis cannot be the name of a bundle, as MONAI reads what")
    assert not (tmp_path / "zoo").exists()


@pytest.mark.parametrize("options", [[], ["--all"], ["--index", URL], ["plain_data", "--all", "--index", URL]])
def test_one_bundle_or_all_with_their_address(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        package.main(options)
    assert "give the name of one bundle, or --all true with --index URL" in capsys.readouterr().err


def test_a_tag_packs_and_publishes_all() -> None:
    workflow = ConfigParser.load_config_file(package.ROOT / ".github" / "workflows" / "release.yml")
    assert workflow[True] == {"push": {"tags": ["v*"]}}
    steps = [step["run"] for step in workflow["jobs"]["zoo"]["steps"] if "run" in step]
    (packing,) = (step for step in steps if "scripts/package.py" in step)
    words = shlex.split(packing.partition("scripts/package.py")[2].replace("\\\n", " "))
    arguments = package.parser().parse_args(words)
    assert arguments.all and arguments.index == "https://github.com/$GITHUB_REPOSITORY/releases/download/$ZOO"
    files = ("dist/*.zip", f"dist/{zoo_index.PLACE.as_posix()}", "dist/index.html", "dist/bundles.md")
    assert arguments.output_dir == Path("dist") and all(file in steps[-1] for file in files)


@pytest.fixture
def served(tmp_path: Path, make: Callable[..., Path]) -> Path:
    """A zoo whose addresses are those of its files."""
    make("plain_data")
    assert pack(tmp_path, url=(tmp_path / "zoo").as_uri()) == 0
    return tmp_path / "zoo"


def fetch(zoo: Path, folder: Path, name: str = "plain_data", version: str | None = None) -> Path:
    return download.download(name, zoo.as_uri(), version, folder)


def left(folder: Path) -> list[Path]:
    return list(folder.rglob("*"))


def test_download_unpacks_what_was_packed(served: Path, tmp_path: Path) -> None:
    folder = fetch(served, tmp_path / "here")
    assert folder == tmp_path / "here" / "plain_data"
    assert json.loads((folder / "configs" / "metadata.json").read_text()) == METADATA
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["plain_data"]
    with pytest.raises(InputError, match="plain_data exists: remove it"):
        fetch(served, tmp_path / "here")


def test_folder_for_a_hub_has_a_card(zoo: Path, tmp_path: Path) -> None:
    (tmp_path / "bundles" / "rich_data" / "configs" / "metadata.json").write_text(
        json.dumps({**METADATA, "version": "0.10.0", "weights_license": "for research"})
    )
    assert pack(tmp_path, "--overwrite", "--hub") == 0
    folders = {name: zoo / "hub" / name for name in ("plain_data", "rich_data")}
    assert {path.name for path in folders["rich_data"].iterdir()} > {"README.md", "LICENSE", "configs", "models"}
    cards = {name: (folder / "README.md").read_text() for name, folder in folders.items()}
    assert cards["plain_data"].startswith("---\nlibrary_name: monai\nlicense: apache-2.0\ntags:\n- monai\n")
    # Weights are under the terms of the data.
    assert "license: other\nlicense_name: data-license\nlicense_link: docs/data_license.txt\n" in cards["rich_data"]
    command = "python -m monai.bundle download rich_data --bundle_dir . --source huggingface_hub --repo OWNER/rich_data"
    assert command in cards["rich_data"] and "weights: model.pt" in cards["rich_data"]
    assert "trained on them: CC0; weights: for research; [whole text]" in cards["rich_data"]


@pytest.mark.parametrize("damage", [lambda content: content[:-100], lambda content: content.replace(b"CC0", b"CC1")])
def test_another_checksum_is_one_sentence(damage: Callable[[bytes], bytes], served: Path, tmp_path: Path) -> None:
    archive = served / "plain_data_v0.2.0.zip"
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(InputError, match=r"plain_data_v0.2.0.zip has the checksum \w{40}, but .*model_info.json says"):
        fetch(served, tmp_path / "here")
    assert left(tmp_path / "here") == []


def test_a_cut_archive_with_a_matching_checksum_is_one_sentence(served: Path, tmp_path: Path) -> None:
    archive, index = served / "plain_data_v0.2.0.zip", index_of(served)
    archive.write_bytes(archive.read_bytes()[:-100])
    index["plain_data_v0.2.0"]["checksum"] = hashlib.sha1(archive.read_bytes()).hexdigest()
    (served / "models" / "model_info.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="is cut or damaged"):
        fetch(served, tmp_path / "here")
    assert left(tmp_path / "here") == []


@pytest.mark.parametrize(
    ("name", "version", "content", "message"),
    [
        ("other_data", None, None, "model_info.json has no bundle 'other_data'; it has plain_data."),
        ("plain_data", "0.1.0", None, "has no version 0.1.0 of plain_data; it has 0.2.0."),
        ("plain_data", None, "<html>", "model_info.json is no list of bundles"),
        ("plain_data", None, "[]", "model_info.json is no list of bundles"),
        ("plain_data", None, '{"plain_data_v0.2.0": {"checksum": ""}}', "model_info.json is no list of bundles"),
        (
            "plain_data",
            None,
            '{"plain_data_v1": {"checksum": "", "source": "x/y"}}',
            "Cannot read x/y: unknown url type",
        ),
    ],
)
def test_what_cannot_be_found_is_one_sentence(
    name: str, version: str | None, content: str | None, message: str, served: Path, tmp_path: Path
) -> None:
    if content is not None:
        (served / "models" / "model_info.json").write_text(content)
    with pytest.raises(InputError, match=message):
        fetch(served, tmp_path / "here", name, version)
    assert not (tmp_path / "here").exists() or left(tmp_path / "here") == []
