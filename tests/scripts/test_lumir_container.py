# SPDX-License-Identifier: Apache-2.0
"""The container of the LUMIR submission: its entry point as a plain program, its Dockerfile as text."""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from common.engine import save_atomically
from common.networks import EOIR

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "scripts" / "docker" / "lumir"
SHAPE = (32, 32, 32)
NAMES = ["disp_3455_3454.nii.gz", "disp_3456_3455.nii.gz"]
INSTRUCTIONS = {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "ENTRYPOINT"}


def listed(fixed: int, moving: int) -> dict[str, str]:
    return {side: f"./imagesVal/LUMIRMRI_{n}_0000.nii.gz" for side, n in (("fixed", fixed), ("moving", moving))}


@pytest.fixture
def container(tmp_path: Path) -> Path:
    """A folder laid out like the root of the container."""
    (tmp_path / "input" / "imagesVal").mkdir(parents=True)
    (tmp_path / "output").mkdir()
    generator = np.random.default_rng(0)
    for number in (3454, 3455, 3456):
        values = generator.integers(0, 256, SHAPE).astype(np.uint8)
        path = tmp_path / "input" / "imagesVal" / f"LUMIRMRI_{number}_0000.nii.gz"
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    content = {"name": "LUMIR", "training": [], "validation": [listed(3455, 3454), listed(3456, 3455)]}
    (tmp_path / "LUMIR_dataset.json").write_text(json.dumps(content))
    save_atomically(EOIR(start_channel=2).state_dict(), tmp_path / "pretrained_weights" / "net_2.pt")
    # Later in natural order, earlier in alphabetical: not the one to take.
    (tmp_path / "pretrained_weights" / "net_10.pt").write_bytes(b"other")
    return tmp_path


def run(container: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {
        "OMP_NUM_THREADS": "1",
        "LUMIR_INPUT": "input",
        "LUMIR_OUTPUT": "output",
        "LUMIR_JSON": "LUMIR_dataset.json",
        "LUMIR_WEIGHTS": "pretrained_weights",
        "LUMIR_BUNDLE": str(ROOT / "bundles" / "eoir_lumir"),
        "LUMIR_PYTHON": sys.executable,
        "LUMIR_OPTIONS": "--network_def#start_channel 2 --image_shape [32,32,32]",
    }
    command = [str(FOLDER / "entrypoint"), *arguments]
    return subprocess.run(command, cwd=container, env=environment, capture_output=True, text=True, timeout=300)


def outputs(container: Path) -> list[str]:
    return sorted(path.name for path in (container / "output").iterdir())


def test_entry_point_leaves_the_fields_of_all_pairs_and_nothing_else(container: Path) -> None:
    result = run(container)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.splitlines()[-1].startswith("Submission complete: 2 fields")
    assert outputs(container) == NAMES
    for name in NAMES:
        file = nibabel.load(container / "output" / name)
        assert file.shape == (*SHAPE, 3) and file.get_data_dtype() == np.float32
        assert np.array_equal(file.affine, np.eye(4)) and np.isfinite(np.asarray(file.dataobj)).all()
    # A finished output is kept.
    again = run(container)
    assert again.returncode == 1 and "exists, and no .provenance.json" in again.stderr


def test_bad_input_is_one_line_and_leaves_no_field(container: Path) -> None:
    content = {"training": [], "validation": [listed(3455, 3454), listed(3456, 9999)]}
    (container / "LUMIR_dataset.json").write_text(json.dumps(content))
    result = run(container)
    assert result.returncode == 1
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
    assert "LUMIRMRI_9999_0000.nii.gz" in error and "Traceback" not in result.stderr
    assert outputs(container) == []


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("input", "images are expected in input"),
        ("output", "fields go to output"),
        ("LUMIR_dataset.json", "list of pairs is expected at LUMIR_dataset.json"),
        ("pretrained_weights", "no weights (.pt, .pth, .tar) in pretrained_weights"),
    ],
)
def test_missing_mount_is_named(container: Path, missing: str, message: str) -> None:
    (container / missing).rename(container / "elsewhere")
    result = run(container)
    assert result.returncode == 1 and result.stderr.startswith("ERROR: ") and message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_arguments_are_refused(container: Path) -> None:
    result = run(container, "--amp")
    assert result.returncode == 1 and "No arguments are taken" in result.stderr


def test_entry_point_is_executable_and_has_the_paths_of_the_challenge() -> None:
    text = (FOLDER / "entrypoint").read_text()
    assert (FOLDER / "entrypoint").stat().st_mode & stat.S_IXUSR and text.startswith("#!/bin/sh\n")
    for variable, path in (
        ("LUMIR_INPUT", "/input"),
        ("LUMIR_OUTPUT", "/output"),
        ("LUMIR_JSON", "/LUMIR_dataset.json"),
        ("LUMIR_WEIGHTS", "/pretrained_weights"),
        ("LUMIR_BUNDLE", "/bundles/eoir_lumir"),
    ):
        assert f"${{{variable}:-{path}}}" in text


BUNDLES = sorted(path.parents[1].name for path in (ROOT / "bundles").glob("*_lumir/configs/submission.json"))


def instructions(bundle: str = "eoir_lumir") -> list[tuple[str, str]]:
    """(instruction, rest) of each line of the Dockerfile for a bundle, continued lines joined."""
    text = (FOLDER / "Dockerfile").read_text()
    assert "\nARG BUNDLE=eoir_lumir\n" in text
    lines = [line for line in text.replace("${BUNDLE}", bundle).splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def test_dockerfile_has_known_instructions_in_a_sensible_order() -> None:
    words = [word for word, _ in instructions()]
    assert set(words) <= INSTRUCTIONS and words[0] == "FROM" and words[-1] == "ENTRYPOINT"
    assert words.count("ENTRYPOINT") == 1
    # What changes seldom comes first, or every build installs anew.
    before_install = instructions()[: words.index("RUN")]
    assert [rest for word, rest in before_install if word == "COPY"] == ["requirements.txt /requirements.txt"]


def test_base_image_has_a_tag() -> None:
    image = dict(instructions())["FROM"]
    assert re.fullmatch(r"python:3\.\d+-slim", image), image


@pytest.mark.parametrize("bundle", BUNDLES)
def test_copied_files_exist_and_lie_in_the_repository(bundle: str) -> None:
    assert ("ENV", f"LUMIR_BUNDLE=/bundles/{bundle}") in instructions(bundle)
    for word, rest in instructions(bundle):
        if word == "COPY":
            *sources, target = [part for part in shlex.split(rest) if not part.startswith("--")]
            assert target.startswith("/") and sources
            for source in sources:
                assert (ROOT / source).exists() and not Path(source).is_absolute() and ".." not in source


@pytest.mark.parametrize("bundle", BUNDLES)
def test_link_of_the_bundle_leads_to_the_copied_package(bundle: str) -> None:
    targets = {}
    for word, rest in instructions(bundle):
        if word == "COPY":
            source, target = [part for part in shlex.split(rest) if not part.startswith("--")]
            targets[source] = target
    link = os.readlink(ROOT / "bundles" / bundle / "common")
    assert os.path.normpath(f"{targets[f'bundles/{bundle}']}/{link}") == targets["common"]


def test_dockerfile_names_no_address_and_keeps_no_download() -> None:
    for word, rest in instructions():
        assert "://" not in rest
        if word == "RUN":
            installs = [part for part in rest.split("&&") if "pip install" in part]
            assert installs and all("--no-cache-dir" in part and "-r " in part for part in installs)


def test_entry_point_is_the_program_that_was_copied() -> None:
    (program,) = json.loads(dict(instructions())["ENTRYPOINT"])
    copied = [shlex.split(rest) for word, rest in instructions() if word == "COPY"]
    assert ["--chmod=755", "scripts/docker/lumir/entrypoint", program] in copied
