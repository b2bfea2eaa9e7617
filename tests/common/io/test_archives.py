# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from common.checks import InputError
from common.io.archives import sha1, unpack


def packed(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, f"content of {name}")
    return path


def left(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_the_folder_of_a_zip_is_unpacked(tmp_path: Path) -> None:
    archive = packed(tmp_path / "toy_v1.zip", "toy/LICENSE", "toy/configs/metadata.json")
    assert unpack(archive, tmp_path / "to") == tmp_path / "to" / "toy"
    assert left(tmp_path / "to") == ["toy/LICENSE", "toy/configs/metadata.json"]
    assert (tmp_path / "to" / "toy" / "LICENSE").read_text() == "content of toy/LICENSE"
    with pytest.raises(InputError, match="toy exists: remove it"):
        unpack(archive, tmp_path / "to")


@pytest.mark.parametrize("cut", [0, 20, 150, -1])
def test_a_cut_zip_leaves_nothing_behind(cut: int, tmp_path: Path) -> None:
    archive = packed(tmp_path / "toy_v1.zip", "toy/LICENSE", "toy/configs/metadata.json")
    archive.write_bytes(archive.read_bytes()[:cut])
    with pytest.raises(InputError, match=r"toy_v1.zip is cut or damaged \(.*\): remove it and download it again"):
        unpack(archive, tmp_path / "to")
    assert left(tmp_path) == ["toy_v1.zip"]


def test_a_changed_byte_of_the_last_file_leaves_nothing_behind(tmp_path: Path) -> None:
    archive = packed(tmp_path / "toy_v1.zip", "toy/LICENSE", "toy/readme")
    archive.write_bytes(archive.read_bytes().replace(b"content of toy/readme", b"content of toy/Readme"))
    with pytest.raises(InputError, match="damaged .*Bad CRC.*readme"):
        unpack(archive, tmp_path / "to")
    assert left(tmp_path) == ["toy_v1.zip"]


@pytest.mark.parametrize("name", ["/etc/toy", "toy/../../out", "C:/toy/a", "toy\\..\\..\\out"])
def test_names_that_lead_out_are_refused(name: str, tmp_path: Path) -> None:
    archive = packed(tmp_path / "toy_v1.zip", "toy/LICENSE", name)
    with pytest.raises(InputError, match="may lead out of its folder"):
        unpack(archive, tmp_path / "to")
    assert left(tmp_path) == ["toy_v1.zip"]


def test_links_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("toy/out")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "toy_v1.zip", "w") as archive:
        archive.writestr(link, "/etc")
    with pytest.raises(InputError, match="may lead out of its folder"):
        unpack(tmp_path / "toy_v1.zip", tmp_path / "to")


@pytest.mark.parametrize("names", [(), ("LICENSE",), ("toy/LICENSE", "other/LICENSE"), ("toy/LICENSE", "README")])
def test_anything_but_one_folder_is_refused(names: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not hold the one folder of a bundle"):
        unpack(packed(tmp_path / "toy_v1.zip", *names), tmp_path / "to")


def test_checksum_is_that_of_the_standard(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert sha1(tmp_path / "file") == "a9993e364706816aba3e25717850c26c9cd0d89d"
