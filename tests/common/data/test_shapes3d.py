# SPDX-License-Identifier: Apache-2.0
"""Phantoms: the same on every run, registrable, and with true fields."""

from __future__ import annotations

import hashlib
import json
import shutil
from itertools import combinations
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from common.checks import InputError
from common.data import LoadSubjectd, PairDataset, read_section
from common.data.phantom import make_subject, make_template, random_diffeomorphism
from common.data.shapes3d import _write, generate_shapes3d, main

SMALL: dict[str, Any] = {
    "num_subjects": 6,
    "size": (20, 24, 16),
    "num_labels": 4,
    "validation": 2,
    "test": 2,
    "progress": False,
}


def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


def mean_dice(a: np.ndarray, b: np.ndarray, num_labels: int) -> float:
    scores = [2 * np.sum((a == k) & (b == k)) / (np.sum(a == k) + np.sum(b == k)) for k in range(1, num_labels + 1)]
    return float(np.mean(scores))


def read(path: Path) -> np.ndarray:
    return np.asanyarray(nib.Nifti1Image.from_filename(path).dataobj)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_shapes3d(tmp_path_factory.mktemp("phantoms") / "set", **SMALL)


@pytest.mark.parametrize("size", [(24, 28, 20), (32, 40)])
def test_the_seed_determines_every_bit(size: tuple[int, ...]) -> None:
    def draw(seed: int, number: int) -> str:
        template = make_template(size, 4, seed)
        phantom = make_subject(template, seed, number)
        return digest(template.image, template.labels, phantom.image, phantom.labels, phantom.ddf)

    assert draw(0, 1) == draw(0, 1)
    assert len({draw(seed, number) for seed in (0, 1) for number in (1, 2)}) == 4


@pytest.mark.parametrize("seed", [0, 1])
def test_default_phantoms_start_at_the_documented_overlap_without_folding(seed: int) -> None:
    template = make_template((48, 56, 48), 8, seed)
    subjects = [make_subject(template, seed, number) for number in range(1, 5)]
    pairs = [mean_dice(a.labels, b.labels, 8) for a, b in combinations(subjects, 2)]
    assert 0.60 < np.mean(pairs) < 0.72
    for subject in subjects:
        assert 0 == subject.image[subject.labels == 0].max() and 0 <= subject.image.min() and subject.image.max() <= 1
        assert set(np.unique(subject.labels)) == set(range(9))
        gradient = np.stack([np.stack(np.gradient(component.astype(float)), -1) for component in subject.ddf], -2)
        assert np.linalg.det(gradient + np.eye(3)).min() > 0.1


def test_the_true_field_registers_the_template_to_the_subject(folder: Path) -> None:
    template = read(folder / "template_label.nii.gz")
    ddf = read(folder / "fields" / "SHAPES_0003_ddf.nii.gz")
    assert ddf.shape == (20, 24, 16, 3) and ddf.dtype == np.float32
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in template.shape], indexing="ij"))
    warped = ndimage.map_coordinates(template, grid + np.moveaxis(ddf, -1, 0), order=0, mode="nearest")
    np.testing.assert_array_equal(warped, read(folder / "labelsTr" / "SHAPES_0003_0000.nii.gz"))


def test_the_fields_are_larger_than_a_voxel_and_vanish_at_the_border() -> None:
    ddf = random_diffeomorphism(np.random.default_rng(0), (48, 56, 48))
    assert 2 < np.abs(ddf).max() < 12
    assert all(np.all(np.take(ddf, end, axis=axis) == 0) for axis in (1, 2, 3) for end in (0, -1))


def test_the_folder_is_read_as_a_data_list_with_disjoint_sections(folder: Path) -> None:
    sections = {name: read_section(folder, "datalist", name) for name in ("training", "validation", "test")}
    ids = [subject["id"] for listing in sections.values() for subject in listing.subjects]
    assert ids == [f"SHAPES_{number:04d}" for number in range(1, 7)]
    for name in ("validation", "test"):
        assert sorted(sections[name].every_pair()) == [(0, 1), (1, 0)]
    item = PairDataset(sections["validation"].subjects, LoadSubjectd(), progress=False)[0, 1]
    assert item["moving"].shape == (1, 20, 24, 16) and 0.5 < item["moving"].max() <= 1
    assert item["moving_label"].max() == 4


def test_orientation_is_ras_with_one_millimetre(folder: Path) -> None:
    for path in folder.rglob("*.nii.gz"):
        affine = nib.Nifti1Image.from_filename(path).affine
        assert nib.aff2axcodes(affine) == ("R", "A", "S") and np.array_equal(affine, np.eye(4))


def test_the_same_call_keeps_the_folder_and_another_refuses_it(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    generate_shapes3d(folder, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with pytest.raises(InputError, match="exists and is not the data set"):
        generate_shapes3d(folder, **{**SMALL, "seed": 1})


@pytest.mark.parametrize("damage", ["change", "remove", "add"])
def test_a_damaged_folder_is_refused_and_left_alone(tmp_path: Path, damage: str) -> None:
    arguments = {**SMALL, "num_subjects": 2, "size": (16, 16), "num_labels": 2, "validation": 0, "test": 0}
    folder = generate_shapes3d(tmp_path / "set", **arguments)
    file = folder / "labelsTr" / "SHAPES_0001_0000.nii.gz"
    if damage == "change":
        file.write_bytes(b"other")
    elif damage == "remove":
        file.unlink()
    else:
        (folder / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="exists and is not the data set"):
        generate_shapes3d(folder, **arguments)
    assert damage != "add" or (folder / "mine.txt").exists()


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("common.data.shapes3d.make_subject", fail)
    with pytest.raises(KeyboardInterrupt):
        generate_shapes3d(tmp_path / "set", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_the_slower_of_two_processes_takes_what_the_other_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_and_be_overtaken(folder: Path, *arguments: Any) -> None:
        _write(folder, *arguments)
        shutil.copytree(folder, tmp_path / "set")

    monkeypatch.setattr("common.data.shapes3d._write", write_and_be_overtaken)
    generate_shapes3d(tmp_path / "set", **SMALL)
    assert len(read_section(tmp_path / "set").subjects) == 2 and list(tmp_path.iterdir()) == [tmp_path / "set"]


def test_an_existing_empty_folder_is_filled(tmp_path: Path) -> None:
    arguments = [
        "--output_dir",
        str(tmp_path / "set"),
        "--num_subjects",
        "4",
        "--size",
        "24",
        "20",
        "--num_labels",
        "3",
    ]
    (tmp_path / "set").mkdir()
    main([*arguments, "--validation", "2", "--test", "0"])
    content = json.loads((tmp_path / "set" / "dataset.json").read_text())
    assert len(content["training"]) == len(content["validation"]) == 2 and content["test"] == []
    assert LoadSubjectd()(read_section(tmp_path / "set").subjects[0])["image"].shape == (1, 24, 20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": (8, 16, 16)}, "size .8, 16, 16. cannot be used"),
        ({"size": (16,)}, "give 2 or 3 numbers"),
        ({"num_labels": 1}, "num_labels is 1"),
        ({"seed": -1}, "seed is -1"),
        ({"num_subjects": 5}, "5 subjects with 2 for validation and 2 for the test leave 1"),
        ({"size": (16, 16), "num_labels": 40}, "40 structures do not fit into the size"),
    ],
)
def test_impossible_arguments_are_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        generate_shapes3d(tmp_path / "set", **{**SMALL, **changes})
    assert not (tmp_path / "set").exists()


def test_the_command_ends_with_one_line_on_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--output_dir", str(tmp_path / "set"), "--num_labels", "1"])
    assert stop.value.code == 1 and capsys.readouterr().err == "ERROR: num_labels is 1; give a number from 2 to 64.\n"
