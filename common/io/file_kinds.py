# SPDX-License-Identifier: Apache-2.0
"""What a file is by its first bytes, where its name says something else."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from common.checks import InputError

_HEAD = 512
_GZIP = b"\x1f\x8b"
_HEADER_SIZES = (b"\x5c\x01\x00\x00", b"\x00\x00\x01\x5c", b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c")
"""348 and 540, the first number of a NIfTI header, in either order of bytes."""
_OTHERS = (
    (b"PK\x03\x04", "a zip archive: unpack it"),
    (b"BZh", "compressed with bzip2: unpack it"),
    (b"\xfd7zXZ", "compressed with xz: unpack it"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard: unpack it"),
    (b"NRRD", "an NRRD image: convert it"),
    (b"ObjectType", "a MetaImage: convert it"),
    (b"\x89HDF", "an HDF5 file: is it an ITK transform (.h5) or MINC?"),
    (b"\x93NUMPY", "a NumPy array: name it .npy"),
    (b"\x00\x00\x00\x01", "an image of FreeSurfer (.mgz): convert it with mri_convert"),
    (b"version https://git-lfs", "a pointer of Git LFS: fetch the file with git lfs pull"),
    (b"<", "a web page or XML: was a login asked for in place of a download?"),
)
_DICOM = (128, b"DICM")


def is_dicom(path: Path) -> bool:
    """Whether a file has the mark of DICOM."""
    with open(path, "rb") as file:
        file.seek(_DICOM[0])
        return file.read(len(_DICOM[1])) == _DICOM[1]


def check_content(path: Path) -> None:
    """Refuse a file whose name ends in .nii or .nii.gz and whose first bytes are those of something else.

    Raises:
        InputError: saying what it is. Files that are damaged pass.
    """
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    if not head:
        raise InputError(f"{path} is empty: copy it anew.")
    is_named, is_packed = path.name.endswith(".gz"), head.startswith(_GZIP)
    if is_packed and not is_named:
        raise InputError(f"{path} is compressed with gzip: name it {path.name}.gz.")
    if is_named and head.startswith(_HEADER_SIZES):
        raise InputError(f"{path} is not compressed: name it {path.name[:-3]}.")
    if is_packed:
        try:
            with gzip.open(path) as packed:
                head = packed.read(_HEAD)
        except (OSError, EOFError, zlib.error):
            return
        if head.startswith(_GZIP):
            raise InputError(f"{path} is compressed twice: unpack it once.")
    found = next((what for mark, what in _OTHERS if head.startswith(mark)), None)
    if head[_DICOM[0] :].startswith(_DICOM[1]):
        found = "a DICOM file: convert its series to NIfTI, for instance with dcm2niix"
    if found is not None:
        raise InputError(f"{path} is no NIfTI file but {found}.")
