# SPDX-License-Identifier: Apache-2.0
"""FreeSurfer: linear transforms (.lta) and warps in its own volumes (.mgz).

A warp lies on the grid of the fixed scan ("atlas", "target"); a tag behind the voxels says what its vectors are. An LTA
takes the source to the destination, voxels to voxels or world to world. Facts: agreement with surfa and nitransforms.
"""

from __future__ import annotations

import gzip
import re
import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from torch import Tensor

from common.checks import InputError
from common.io.field_checks import check_finite
from common.io.files import first_line
from common.io.formats.conventions import check_stated
from common.io.formats.vectors import field_of
from common.spatial.transform import Affine, Transform
from common.spatial.world import Grid

WARP_SUFFIXES = (".mgz", ".mgh")
_GZIP = b"\x1f\x8b"
_HEADER, _SCAN = 284, 20
"""Bytes before the voxels, and of the scan's parameters behind them."""
_GEOMETRY_TAG, _META_TAG, _END, _SHORT_TAG = 10, 13, 0, 30
_GEOMETRY = struct.Struct(">i 3i 3f 9f 3f 512x")
"""Whether it is valid, shape, voxel size, directions of the axes, centre, a file's name."""
_WARPS = ("voxel positions", "voxel displacements", "ras_positions", "ras_mm")
_VOXELS, _WORLD = 0, 1
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


def read_warp(path: Path, convention: str) -> tuple[Transform, str]:
    """A warp in a volume of FreeSurfer.

    Args:
        path: .mgz or .mgh.
        convention: stated; "auto" where the file says it.

    Returns:
        Fixed world to moving world; and the convention.

    Raises:
        InputError: when the file is damaged, no warp, does not say what it holds, or contradicts the convention.
    """
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content.startswith(_GZIP) else content
        # The version has the purpose of the volume in its second byte from the right, which nibabel does not know.
        file: Any = nibabel.MGHImage.from_bytes(content[:2] + b"\0" + content[3:])
        values = np.asarray(file.dataobj, dtype=np.float32)
    except Exception as error:  # gzip, struct and nibabel each have their own
        raise InputError(f"{path} cannot be read as a volume of FreeSurfer ({first_line(error)}).") from error
    if values.ndim != 4 or values.shape[3] != 3:
        raise InputError(f"{path} has shape {values.shape}: a warp of FreeSurfer is (X, Y, Z, 3).")
    i, j, k, _ = values.shape
    grid = Grid((i, j, k), torch.from_numpy(np.asarray(file.affine, dtype=np.float64)))
    tags = _tags(content[_HEADER + values.size * file.get_data_dtype().itemsize + _SCAN :])
    vectors = torch.from_numpy(values)
    if _META_TAG not in tags:
        if convention not in ("ras_mm", "ras_positions"):
            raise InputError(f"{path} does not say what its vectors are: state --convention ras_mm or ras_positions.")
        return Transform((field_of(path, vectors, grid, convention),)), convention
    kind = int.from_bytes(tags[_META_TAG][:4], "big")
    if kind >= len(_WARPS):
        raise InputError(f"{path} is a warp of FreeSurfer of an unknown kind ({kind}).")
    found = _WARPS[kind] if kind > 1 else "ras_positions"
    check_stated(path, "a warp of FreeSurfer", convention, (found,))
    if kind <= 1:
        vectors = _world_positions(path, vectors, tags.get(_GEOMETRY_TAG), is_displacement=kind == 1)
    return Transform((field_of(path, vectors, grid, found),)), found


def _tags(content: bytes) -> dict[int, bytes]:
    """What follows the voxels, by number: each has its length before it, geometries two of a fixed length."""
    found: dict[int, bytes] = {}
    place = 0
    while place + 4 <= len(content):
        (tag,) = struct.unpack_from(">i", content, place)
        place += 4
        if tag == _END:
            break
        length = 2 * _GEOMETRY.size
        if tag != _GEOMETRY_TAG:
            form = ">i" if tag == _SHORT_TAG else ">q"
            if place + struct.calcsize(form) > len(content):
                break
            (length,) = struct.unpack_from(form, content, place)
            place += struct.calcsize(form)
        found[tag] = content[place : place + length]
        place += length
    return found


def _world_positions(path: Path, vectors: Tensor, geometry: bytes | None, is_displacement: bool) -> Tensor:
    """Voxels of the moving scan, whose geometry the file holds, as RAS millimetres."""
    if geometry is None or len(geometry) < _GEOMETRY.size:
        raise InputError(
            f"{path} is in voxels of a moving scan that it does not describe: write it in RAS millimetres."
        )
    _, *numbers = _GEOMETRY.unpack_from(geometry)
    rows = [torch.tensor(numbers[start : start + 3], dtype=torch.float64) for start in range(0, 18, 3)]
    affine = _affine(rows[0], rows[1], torch.stack(rows[2:5], dim=1), rows[5])
    if is_displacement:
        axes = [torch.arange(n, dtype=torch.float32) for n in vectors.shape[:3]]
        vectors = vectors + torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    return (vectors.double() @ affine[:3, :3].T + affine[:3, 3]).float()


def _affine(shape: Tensor, size: Tensor, directions: Tensor, centre: Tensor) -> Tensor:
    """(4, 4), voxels to RAS millimetres, by FreeSurfer's centre of a volume."""
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = directions * size
    affine[:3, 3] = centre - affine[:3, :3] @ (shape / 2)
    return affine


def read_lta(path: Path) -> Affine:
    """A linear transform of FreeSurfer, from its source, the moving scan, to its destination.

    Raises:
        InputError: when the file is of another type or lacks what it needs.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    kind, count = _value(text, "type"), _value(text, "nxforms")
    matrix = re.search(rf"^1 4 4\s*\n((?:\s*{_NUMBER}){{16}})", text, re.MULTILINE)
    if kind is None or matrix is None or count not in (None, 1):
        raise InputError(f"{path} cannot be read as one linear transform of FreeSurfer.")
    forward = torch.tensor([float(number) for number in matrix[1].split()], dtype=torch.float64).view(4, 4)
    check_finite(path, forward)
    if int(kind) == _VOXELS:
        source, destination = (_geometry(path, text, side) for side in ("src", "dst"))
        forward = destination @ forward @ torch.linalg.inv(source)
    elif int(kind) != _WORLD:
        raise InputError(
            f"{path} is of type {int(kind)}, neither voxels to voxels nor RAS to RAS: lta_convert --inlta FILE "
            "--outlta OUT.lta rewrites it."
        )
    if float(torch.linalg.svdvals(forward[:3, :3]).min()) < 1e-6:
        raise InputError(f"{path} holds an affine map that cannot be inverted.")
    return Affine(forward).inverse()


def _value(text: str, name: str) -> float | None:
    found = re.search(rf"^\s*{name}\s*=\s*({_NUMBER})", text, re.MULTILINE)
    return None if found is None else float(found[1])


def _geometry(path: Path, text: str, side: str) -> Tensor:
    """(4, 4), voxels of the source or destination to RAS millimetres."""
    # "volume info" also stands in comments.
    parts = re.split(r"^(src|dst) volume info.*$", text, flags=re.MULTILINE)
    section = dict(zip(parts[1::2], parts[2::2], strict=True)).get(side, "")
    rows = {}
    for name in ("volume", "voxelsize", "xras", "yras", "zras", "cras"):
        found = re.search(rf"^\s*{name}\s*=((?:\s*{_NUMBER}){{3}})", section, re.MULTILINE)
        if found is None:
            raise InputError(f"{path} does not say how the voxels of its {side} volume lie ({name} is missing).")
        rows[name] = torch.tensor([float(number) for number in found[1].split()], dtype=torch.float64)
    directions = torch.stack([rows["xras"], rows["yras"], rows["zras"]], dim=1)
    return _affine(rows["volume"], rows["voxelsize"], directions, rows["cras"])
