# SPDX-License-Identifier: Apache-2.0
"""Files whose names mislead, and values that are no image: every reader says what they are."""

from __future__ import annotations

import bz2
import gzip
import struct
from pathlib import Path
from typing import Any

import itk
import nibabel
import numpy as np
import pytest

from common.checks import InputError
from common.data import LoadSubjectd
from common.io.apply import Chain, warp_file
from common.io.nifti import read_grid, read_image, read_labels
from common.io.transforms import read_transform

SHAPE = (6, 7, 5)


def plain(folder: Path, array: np.ndarray | None = None) -> bytes:
    values = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) if array is None else array
    nibabel.save(nibabel.Nifti1Image(values, np.diag([2.0, 2, 2, 1])), folder / "plain.nii")
    return (folder / "plain.nii").read_bytes()


def other(folder: Path, suffix: str) -> bytes:
    """The same image by ITK or nibabel in another format."""
    values = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    path = folder / f"other{suffix}"
    if suffix == ".mgz":
        nibabel.save(nibabel.MGHImage(values.astype(np.float32), np.eye(4)), path)
    else:
        itk.imwrite(itk.image_from_array(values), str(path))
    return path.read_bytes()


KINDS: dict[str, tuple[str, Any, str]] = {
    "packed": ("a.nii", lambda f: gzip.compress(plain(f)), "is compressed with gzip: name it a.nii.gz"),
    "plain": ("a.nii.gz", plain, "is not compressed: name it a.nii"),
    "big-endian": ("a.nii.gz", lambda f: b"\x00\x00\x01\x5c" + plain(f)[4:], "is not compressed: name it a.nii"),
    "twice": ("a.nii.gz", lambda f: gzip.compress(gzip.compress(plain(f))), "is compressed twice"),
    "bzip2": ("a.nii.gz", lambda f: bz2.compress(plain(f)), "compressed with bzip2"),
    "zip": ("a.nii", lambda f: b"PK\x03\x04" + bytes(600), "a zip archive"),
    "nrrd": ("a.nii", lambda f: other(f, ".nrrd"), "an NRRD image: convert it"),
    "meta": ("a.nii.gz", lambda f: other(f, ".mha"), "a MetaImage: convert it"),
    "freesurfer": ("a.nii.gz", lambda f: other(f, ".mgz"), "an image of FreeSurfer"),
    "dicom": ("a.nii.gz", lambda f: gzip.compress(bytes(128) + b"DICM" + bytes(300)), "a DICOM file"),
    "lfs": ("a.nii.gz", lambda f: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "html": ("a.nii", lambda f: b"<!DOCTYPE html><html>log in</html>", "a web page"),
    "empty": ("a.nii", lambda f: b"", "is empty: copy it anew"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_misleads_is_said(tmp_path: Path, kind: str) -> None:
    name, content, sentence = KINDS[kind]
    path = tmp_path / name
    path.write_bytes(content(tmp_path))
    readers: list[Any] = [read_grid, read_image, read_labels, read_transform, lambda p: LoadSubjectd()({"image": p})]
    for read in readers:
        with pytest.raises(InputError, match=sentence) as error:
            read(path)
        assert str(path) in str(error.value) and ("copy it anew" in str(error.value)) == (kind == "empty")


@pytest.mark.parametrize("name", ["A.NII", "A.Nii.GZ"])
def test_capital_letters_are_said(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(plain(tmp_path))
    with pytest.raises(InputError, match="write its ending in small letters"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_intercept_that_is_no_number_is_a_fault_of_the_header(tmp_path: Path, value: float) -> None:
    raw = bytearray(plain(tmp_path))
    raw[112:116], raw[116:120] = struct.pack("<f", 1.0), struct.pack("<f", value)
    (tmp_path / "a.nii").write_bytes(raw)
    for read in (read_grid, read_image, read_labels):
        with pytest.raises(InputError, match=r"header is faulty .*intercept.*: repair that"):
            read(tmp_path / "a.nii")


def test_an_unknown_type_of_numbers_is_a_fault_of_the_header(tmp_path: Path) -> None:
    raw = bytearray(plain(tmp_path))
    raw[70:72] = struct.pack("<h", 1)  # one bit per voxel
    (tmp_path / "a.nii").write_bytes(raw)
    with pytest.raises(InputError, match=r"header is faulty"):
        read_image(tmp_path / "a.nii")


@pytest.mark.parametrize(
    ("dtype", "sentence"),
    [
        (np.complex64, "complex numbers"), (np.complex128, "complex numbers"),
        ([("R", "u1"), ("G", "u1"), ("B", "u1")], "holds colours"),
        ([("R", "u1"), ("G", "u1"), ("B", "u1"), ("A", "u1")], "holds colours"),
    ],
)  # fmt: skip
def test_values_that_are_not_one_real_number_are_refused_by_every_reader(
    tmp_path: Path, dtype: Any, sentence: str
) -> None:
    grid = tmp_path / "plain.nii"
    plain(tmp_path)
    path, field = tmp_path / "a.nii.gz", tmp_path / "ddf.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros(SHAPE, dtype), np.eye(4)), path)
    nibabel.save(nibabel.Nifti1Image(np.zeros((*SHAPE, 3), dtype), np.diag([2.0, 2, 2, 1])), field)
    chain = Chain([], read_grid(grid))
    for read in (
        lambda: read_image(path), lambda: read_labels(path), lambda: LoadSubjectd()({"image": str(path)}),
        lambda: warp_file(path, tmp_path / "out.nii", chain, grid),
        lambda: warp_file(path, tmp_path / "out.nii", chain, grid, is_label=True),
        lambda: read_transform(field, read_grid(grid)),
    ):  # fmt: skip
        with pytest.raises(InputError, match=sentence):
            read()
    assert not (tmp_path / "out.nii").exists()
