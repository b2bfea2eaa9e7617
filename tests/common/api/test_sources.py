# SPDX-License-Identifier: Apache-2.0
"""Where bundles come from, and that code from elsewhere asks first."""

from __future__ import annotations

import shutil
import stat
import zipfile
from pathlib import Path

import pytest
import torch

from common.api import load_bundle
from common.api.sources import find_bundle, package_of
from common.checks import InputError

BUNDLES = Path(__file__).parents[3] / "bundles"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """The folder of a bundle that is none of this checkout, whose configuration is code."""
    folder = tmp_path / "mine"
    shutil.copytree(BUNDLES / "instance_any" / "configs", folder / "configs")
    return folder


def test_bundles_of_this_checkout_by_name_and_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for source in ("instance_any", BUNDLES / "instance_any", str(BUNDLES / "instance_any")):
        assert find_bundle(source, trust=False) == BUNDLES / "instance_any"
    monkeypatch.chdir(BUNDLES / "instance_any")
    assert find_bundle(".", trust=False) == BUNDLES / "instance_any"


def test_code_from_elsewhere_asks_first(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = elsewhere / "configs" / "inference.json"
    text = config.read_text()
    config.write_text(text.replace('"affine": false', '"affine": "$sys.exit(\'code has run\')"'))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(elsewhere.parent / "hub"))
    (elsewhere.parent / "hub" / "bundle").mkdir(parents=True)
    (elsewhere.parent / "hub" / "bundle" / "fetched").symlink_to(elsewhere)
    for source in (elsewhere, "fetched"):
        with pytest.raises(InputError, match="comes from elsewhere, .* code that runs .* give trust=True"):
            load_bundle(source)
        with pytest.raises(SystemExit, match="code has run"):
            load_bundle(source, trust=True)
    config.write_text(text)
    bundle = load_bundle(elsewhere, trust=True)
    assert (bundle.name, bundle.folder) == ("mine", elsewhere) and "instance_any" not in repr(bundle)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("instance_eny", "There is no bundle 'instance_eny': did you mean 'instance_any'"),
        ("nothing/like/it", "There is no bundle 'nothing/like/it': give a folder, a zip, or the name"),
        (str(BUNDLES), "is not the folder of a bundle"),
    ],
)
def test_what_is_no_bundle_is_said(source: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        find_bundle(source, trust=True)


def packed(folder: Path, archive: Path, extra: zipfile.ZipInfo | str | None = None) -> Path:
    with zipfile.ZipFile(archive, "w") as content:
        for path in sorted(folder.rglob("*")):
            content.write(path, Path("mine", path.relative_to(folder)))
        if extra is not None:
            content.writestr(extra, "../../etc")
    return archive


def test_a_zip_is_unpacked_once(elsewhere: Path, tmp_path: Path) -> None:
    archive = packed(elsewhere, tmp_path / "mine.zip")
    with pytest.raises(InputError, match=r"mine\.zip comes from elsewhere"):
        find_bundle(archive, trust=False)
    folder = find_bundle(archive, trust=True)
    assert folder.name == "mine" and (folder / "configs" / "inference.json").is_file()
    shutil.copy(archive, tmp_path / "again.zip")
    assert find_bundle(tmp_path / "again.zip", trust=True) == folder


def test_a_release_without_this_interface_is_named(elsewhere: Path) -> None:
    (elsewhere / "registration_common_0_1_0_0a0b0c0d").mkdir()
    (elsewhere / "registration_common_0_1_0_0a0b0c0d" / "__init__.py").write_text("")
    with pytest.raises(InputError, match="packed by a release without an interface for Python"):
        package_of(elsewhere)


@pytest.mark.parametrize(
    "case", ["../out.txt", "/out.txt", "C:/out.txt", "..\\out.txt", "link", "cut", "text", "empty"]
)
def test_a_zip_that_cannot_be_used(case: str, elsewhere: Path, tmp_path: Path) -> None:
    archive, words = tmp_path / "bad.zip", "may lead out of its folder"
    if case in ("cut", "text"):
        words = "is cut or damaged"
        whole = packed(elsewhere, archive).read_bytes()
        archive.write_bytes(whole[: len(whole) // 2] if case == "cut" else b"no archive")
    elif case == "empty":
        words = "holds no bundle"
        packed(elsewhere / "configs", archive)
    else:
        member = zipfile.ZipInfo(f"mine/{case}" if case == "link" else case)
        member.external_attr = (stat.S_IFLNK | 0o777) << 16 if case == "link" else 0
        packed(elsewhere, archive, member)
    with pytest.raises(InputError, match=words):
        find_bundle(archive, trust=True)
    assert not (tmp_path / "out.txt").exists()
