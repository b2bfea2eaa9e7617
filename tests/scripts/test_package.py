# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import common
from common.checks import InputError
from scripts import package
from scripts.rename_common import unique_name

NAME = "method_dataset"
ARCHIVE = f"{NAME}_v1.2.3.zip"


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle as a clone holds it after use: `common` is a link, runs have left outputs and caches behind."""
    folder = tmp_path / "bundles" / NAME
    files = {
        "LICENSE": "licence",
        "configs/metadata.json": json.dumps({"version": "1.2.3", "common_version": "9.9"}),
        "configs/train.json": '{"_target_": "common.data.x"}',
        "docs/README.md": "# Bundle",
        "models/.gitkeep": "",
        "outputs/train/checkpoint.pt": "left over",
        "data/scan.nii.gz": "private",
        "eval/schema.json": "{}",
        "../../common/__init__.py": '"""Shared."""\n\n__version__ = "9.9"\n',
        "../../common/data/readers.py": "import common.io as x",
        "../../common/data/__pycache__/readers.cpython-310.pyc": "cache",
        "../../common/report/report.css": "body {}",
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    torch.save({"weight": torch.zeros(2)}, folder / "models" / "model.pt")
    (folder / "common").symlink_to("../../common")
    monkeypatch.setattr(package, "BUNDLES", tmp_path / "bundles")
    return folder


def run(tmp_path: Path, *options: str) -> int:
    return package.main([NAME, "--output_dir", str(tmp_path / "dist"), *options])


def contents(tmp_path: Path) -> dict[str, str]:
    with zipfile.ZipFile(tmp_path / "dist" / ARCHIVE) as archive:
        return {name: archive.read(name).decode(errors="replace") for name in archive.namelist()}


def package_name(bundle: Path) -> str:
    files = [(path, file.read_bytes()) for path, file in package.bundle_files(bundle) if path.parts[0] == "common"]
    return unique_name(files, "9.9")


def test_zip_holds_common_as_real_files_and_nothing_that_runs_left_behind(bundle: Path, tmp_path: Path) -> None:
    assert run(tmp_path) == 0
    shared = package_name(bundle)
    assert list(contents(tmp_path)) == [
        f"{NAME}/{name}"
        for name in (
            "LICENSE",
            f"{shared}/__init__.py",
            f"{shared}/data/readers.py",
            f"{shared}/report/report.css",
            "configs/metadata.json",
            "configs/train.json",
            "docs/README.md",
            "models/model.pt",
        )
    ]
    assert contents(tmp_path)[f"{NAME}/{shared}/data/readers.py"] == f"import {shared}.io as x"
    assert contents(tmp_path)[f"{NAME}/configs/train.json"] == f'{{"_target_": "{shared}.data.x"}}'


def test_zip_does_not_depend_on_when_the_files_were_written(bundle: Path, tmp_path: Path) -> None:
    first = package.pack(bundle, tmp_path / "first").read_bytes()
    os.utime(bundle / "LICENSE", (0, 1e9))
    (bundle / "configs" / "train.json").chmod(0o600)
    second = package.pack(bundle, tmp_path / "second")
    assert second.read_bytes() == first
    # Nor on the clock, and not on the library that compresses.
    with zipfile.ZipFile(second) as archive:
        written = {(entry.date_time, entry.external_attr, entry.compress_type) for entry in archive.infolist()}
    assert written == {((1980, 1, 1, 0, 0, 0), 0o100644 << 16, zipfile.ZIP_STORED)}


def test_weights_are_announced(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path)
    assert f"weights model.pt; common is {package_name(bundle)} inside." in capsys.readouterr().out


def test_licence_of_a_zip_begins_with_that_of_its_weights(bundle: Path, tmp_path: Path) -> None:
    metadata = {"version": "1.2.3", "common_version": "9.9", "data_license": "CC BY-NC; credit somebody"}
    for own, said in (({}, "CC BY-NC; credit somebody"), ({"weights_license": "CC0"}, "CC0")):
        (bundle / "configs" / "metadata.json").write_text(json.dumps(metadata | own))
        assert run(tmp_path, "--overwrite") == 0
        head, _, rest = contents(tmp_path)[f"{NAME}/LICENSE"].partition("\n\n")
        assert rest == "licence"
        assert head.splitlines()[1:] == [
            f"Weights (models/model.pt): {said}.",
            "Data that they were trained on, and whom to credit: docs/data_license.txt.",
        ]
    assert (bundle / "LICENSE").read_text() == "licence"
    assert run(tmp_path, "--overwrite", "--without_weights") == 0
    assert contents(tmp_path)[f"{NAME}/LICENSE"] == "licence"


def test_weights_with_nan_are_not_released(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = {"first": torch.zeros(2), "second": torch.tensor([0, torch.nan])}
    for content in (broken, {"network": broken, "iteration": 3}):
        torch.save(content, bundle / "models" / "model.pt")
        assert run(tmp_path) == 1
        assert "model.pt has NaN or infinite values in 1 of 2 entries, the first is second" in capsys.readouterr().err
    assert not (tmp_path / "dist").exists()
    assert run(tmp_path, "--without_weights") == 0


def test_weights_can_be_left_out(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "--without_weights")
    assert f"{NAME}/models/model.pt" not in contents(tmp_path)
    assert "no weights" in capsys.readouterr().out


def test_existing_zip_is_kept_unless_overwrite_is_asked_for(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path)
    (bundle / "docs" / "README.md").write_text("other")
    assert run(tmp_path) == 1
    assert "exists" in capsys.readouterr().err
    assert contents(tmp_path)[f"{NAME}/docs/README.md"] == "# Bundle"
    assert run(tmp_path, "--overwrite") == 0
    assert contents(tmp_path)[f"{NAME}/docs/README.md"] == "other"


def test_unknown_bundle_is_refused_with_those_that_exist(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert package.main(["method_datset"]) == 1
    assert capsys.readouterr().err == f"There is no bundle 'method_datset'; these exist: {NAME}.\n"


def test_metadata_of_another_common_are_refused(bundle: Path, tmp_path: Path) -> None:
    (bundle / "configs" / "metadata.json").write_text('{"version": "1.2.3", "common_version": "9.8"}')
    with pytest.raises(InputError, match="written for common 9.8, this is common 9.9"):
        package.pack(bundle, tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


@pytest.mark.parametrize("name", package.NEEDED)
def test_incomplete_bundle_is_refused(name: str, bundle: Path, tmp_path: Path) -> None:
    (bundle / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
        package.pack(bundle, tmp_path / "dist")


def test_metadata_without_a_version_are_refused(bundle: Path, tmp_path: Path) -> None:
    (bundle / "configs" / "metadata.json").write_text('{"common_version": "9.9"}')
    with pytest.raises(InputError, match="states no version"):
        package.pack(bundle, tmp_path / "dist")


EVERY_MODULE = """
import importlib, json, pkgutil, sys
sys.path.insert(0, "user")
import common
(name,) = [module.name for module in pkgutil.iter_modules(["."]) if module.name.startswith("registration_common_")]
package = importlib.import_module(name)
for module in pkgutil.walk_packages(package.__path__, name + "."):
    importlib.import_module(module.name)
print(json.dumps([package.__file__, common.__file__, sorted(m for m in sys.modules if m.startswith("common"))]))
"""


def test_all_of_common_is_imported_without_the_repository_beside_a_common_of_the_users(
    bundle: Path, tmp_path: Path
) -> None:
    (bundle / "common").unlink()
    (bundle / "common").symlink_to(Path(common.__file__).parent)
    metadata = {"version": "1.2.3", "common_version": common.__version__}
    (bundle / "configs" / "metadata.json").write_text(json.dumps(metadata))
    zipfile.ZipFile(package.pack(bundle, tmp_path / "dist")).extractall(tmp_path / "elsewhere")
    unpacked = tmp_path / "elsewhere" / NAME
    (unpacked / "user" / "common").mkdir(parents=True)
    (unpacked / "user" / "common" / "__init__.py").write_text("")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(
        [sys.executable, "-c", EVERY_MODULE], cwd=unpacked, env=environment, capture_output=True, text=True, check=True
    )
    released, users, loaded = json.loads(ran.stdout)
    assert Path(released).parents[1] == unpacked and Path(users).parents[1] == unpacked / "user"
    assert loaded == ["common"]
    # What pages are made of is read from beside the modules.
    assert data_files(Path(released).parent) == data_files(Path(common.__file__).parent) != set()


def data_files(folder: Path) -> set[Path]:
    kinds = (".css", ".csv", ".js", ".json")
    return {path.relative_to(folder) for path in folder.rglob("*") if path.suffix in kinds}
