# SPDX-License-Identifier: Apache-2.0
"""What the checks of MONAI's model zoo ask of the files of a bundle; those that run something are in test_configs.py.

Source: Project-MONAI/model-zoo, ``ci/verify_bundle.py`` and its contributing guide (Apache-2.0), of which the rules are
stated here anew. What a network takes and gives, its properties, ``load`` and ``ckpt_export`` by tracing are tested
there. Scripting is excluded for all: see docs/export.md.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scripts.package import bundle_files

from .conftest import BUNDLES, metadata_of

NEEDED = ("LICENSE", "configs/metadata.json", "configs/inference.json", "docs/README.md", "docs/data_license.txt")
LARGEST = 25_000_000
"""Bytes of a file; larger ones are named in large_files.yml, which no bundle has."""
HEADINGS = ("Model", "Data", "Performance", "Commands", "References")
"""Of the README, as they begin."""
EXACT = re.compile(r"\d+(\.\d+)+")
TEXTS = {".json", ".md", ".txt", ".conf", ""}

pytestmark = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)


def _own(bundle: Path) -> dict[str, Path]:
    """Files of the bundle itself, without weights and the shared package."""
    found = {str(name): path for name, path in bundle_files(bundle, with_weights=False)}
    return {name: path for name, path in found.items() if not name.startswith("common/")}


def test_needed_files_are_there_and_none_is_large(bundle: Path) -> None:
    files = _own(bundle)
    assert [name for name in NEEDED if name not in files] == []
    assert [name for name, path in files.items() if path.stat().st_size > LARGEST] == []


def test_the_version_is_in_the_changelog_and_all_packages_have_one_version(bundle: Path) -> None:
    metadata = metadata_of(bundle)
    assert metadata["changelog"][metadata["version"]]
    pinned = {name: metadata[f"{name}_version"] for name in ("monai", "pytorch", "numpy")}
    # The zoo's machine installs each as name==version.
    assert [
        name for name, v in {**pinned, **metadata["required_packages_version"]}.items() if not EXACT.fullmatch(v)
    ] == []


def test_images_and_displacements_have_the_names_that_monai_looks_for(bundle: Path) -> None:
    formats = metadata_of(bundle)["network_data_format"]
    (image,), (pred,) = formats["inputs"].values(), formats["outputs"].values()
    assert list(formats["inputs"]) == ["image"] and list(formats["outputs"]) == ["pred"]
    assert image["channel_def"] == {"0": "moving", "1": "fixed"}
    assert pred["num_channels"] == len(pred["channel_def"]) == len(image["spatial_shape"])


def test_the_readme_has_the_sections_of_the_template(bundle: Path) -> None:
    headings = re.findall(r"^## (.+)$", (bundle / "docs" / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name in HEADINGS if not any(heading.startswith(name) for heading in headings)] == []


def test_no_file_speaks_of_a_folder_of_somebody(bundle: Path) -> None:
    for name, path in _own(bundle).items():
        if path.suffix in TEXTS:
            assert not re.search(r"/(home|Users|root|workspace)/", path.read_text(encoding="utf-8")), name
