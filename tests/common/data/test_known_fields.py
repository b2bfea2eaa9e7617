# SPDX-License-Identifier: Apache-2.0
"""Copies of a scan by known fields, and the endpoint error of what a registration finds."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from common.checks import InputError
from common.data import read_section
from common.data.known_fields import field_file, make_known_fields
from common.evaluation.recovery import measure_recovery
from common.io.nifti import write_ddf
from common.spatial import warp

SIZE = (24, 20, 16)


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A block of soft tissue with some texture in air, and its label map."""
    folder = tmp_path_factory.mktemp("scan")
    inside = np.zeros(SIZE, np.uint8)
    inside[4:-4, 4:-4, 2:-2] = 1
    hu = np.where(inside, 40 + 30 * np.random.default_rng(0).standard_normal(SIZE), -1000).astype(np.float32)
    affine = np.diag([-3.0, 3, 3, 1])
    nibabel.save(nibabel.Nifti1Image(hu, affine), folder / "ct.nii.gz")
    nibabel.save(nibabel.Nifti1Image(inside, affine), folder / "organs.nii.gz")
    return folder / "ct.nii.gz", folder / "organs.nii.gz"


@pytest.fixture(scope="module")
def known(scan: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_known_fields(tmp_path_factory.mktemp("known") / "data", *scan, training=2, validation=1, test=2, seed=3)


def array(path: Path) -> np.ndarray:
    return nibabel.load(path).get_fdata(dtype=np.float32)


def found_fields(known: Path, folder: Path, change: float) -> Path:
    """What a registration would have written that misses each true component by ``change`` voxels."""
    for number in (4, 5):
        ddf = torch.from_numpy(array(known / field_file(number))).movedim(-1, 0) + change
        write_ddf(folder / f"SCAN_to_COPY_{number:04d}_ddf.nii.gz", ddf, torch.diag(torch.tensor([-3.0, 3, 3, 1])))
    return folder


def test_copies_are_the_scan_seen_through_their_fields(known: Path, scan: tuple[Path, Path]) -> None:
    source = torch.from_numpy(array(scan[0]))[None, None]
    for number in range(1, 6):
        ddf = torch.from_numpy(array(known / field_file(number))).movedim(-1, 0)[None]
        copy = array(known / f"imagesTr/COPY_{number:04d}_0000.nii.gz")
        np.testing.assert_allclose(copy, warp(source, ddf)[0, 0].numpy(), atol=1e-3)
        assert set(np.unique(array(known / f"labelsTr/COPY_{number:04d}_0000.nii.gz"))) == {0, 1}
        assert 0.1 < ddf.norm(dim=1).median() < 5


def test_sections_share_the_scan_and_no_copy(known: Path) -> None:
    training, test = (read_section(known, "datalist", section) for section in ("training", "test"))
    assert [subject["id"] for subject in training.subjects] == ["SCAN", "COPY_0001", "COPY_0002"]
    assert [subject["id"] for subject in test.subjects] == ["SCAN", "COPY_0004", "COPY_0005"]
    assert all("label" in subject for subject in test.subjects)
    assert test.pairs == [(0, 1), (0, 2)]


def test_seed_decides_the_fields(scan: tuple[Path, Path], known: Path, tmp_path: Path) -> None:
    for seed, same in ((3, True), (4, False)):
        again = make_known_fields(tmp_path / str(seed), scan[0], training=0, validation=0, test=1, seed=seed)
        assert np.array_equal(array(again / field_file(1)), array(known / field_file(1))) == same


def test_no_displacement_is_longer_than_asked_for_and_none_is_stretched(
    scan: tuple[Path, Path], known: Path, tmp_path: Path
) -> None:
    drawn = array(known / field_file(1))
    length = float(np.linalg.norm(drawn, axis=-1).max())
    for largest, factor in ((length / 2, 0.5), (2 * length, 1.0)):
        made = make_known_fields(
            tmp_path / str(factor), scan[0], training=1, validation=0, test=0, largest=largest, seed=3
        )
        # Files hold single precision, and the longest vector is divided by its length.
        np.testing.assert_allclose(array(made / field_file(1)), factor * drawn, atol=1e-5)
    with pytest.raises(InputError, match="largest displacement is 0"):
        make_known_fields(tmp_path / "none", scan[0], largest=0)


def test_error_is_that_of_the_found_field(known: Path, tmp_path: Path) -> None:
    *rows, mean = measure_recovery(known, found_fields(known, tmp_path, 0.5))
    assert [row["fixed_id"] for row in rows] == ["COPY_0004", "COPY_0005"] and mean["fixed_id"] == "mean"
    for row in (*rows, mean):
        for figure in ("median", "p95", "median_labelled"):
            assert row[figure] == pytest.approx(0.75**0.5, abs=1e-5)
    before = [array(known / field_file(number)) for number in (4, 5)]
    bodies = [array(known / f"imagesTr/COPY_{number:04d}_0000.nii.gz") > -300 for number in (4, 5)]
    for row, field, body in zip(rows, before, bodies, strict=True):
        assert row["median_before"] == pytest.approx(np.median(np.linalg.norm(field, axis=-1)[body]), abs=0.05)


def test_missing_fields_and_used_folders_are_refused(known: Path, scan: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="SCAN_to_COPY_0004_ddf"):
        measure_recovery(known, tmp_path)
    with pytest.raises(InputError, match="not empty"):
        make_known_fields(known, scan[0])


def test_air_has_no_body(known: Path, tmp_path: Path) -> None:
    copy = tmp_path / "air"
    shutil.copytree(known, copy)
    for file in (copy / "imagesTr").glob("*"):
        nibabel.save(nibabel.Nifti1Image(np.full(SIZE, -1000.0), np.diag([-3.0, 3, 3, 1])), file)
    with pytest.raises(InputError, match="no body"):
        measure_recovery(copy, found_fields(known, tmp_path, 0.0))
