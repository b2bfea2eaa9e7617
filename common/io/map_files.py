# SPDX-License-Identifier: Apache-2.0
"""Maps as functions on disk: what a network's field needs to be evaluated at any point, without the network or a grid.

A file holds the weights of the fields there and back, the code of the pair, and where the voxels lie that the fields
take points in. It is a checkpoint of tensors and plain values, read without running code from it, and a zip archive,
whose checksums are looked at.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common.blocks.field_map import FieldMap
from common.blocks.hybrid_code import HybridCode
from common.blocks.nephi import ModulatedField
from common.checks import InputError
from common.io.checkpoints import load_checkpoint, save_atomically
from common.io.nifti import check_is_file
from common.spatial.transform import Affine, Function, Transform
from common.spatial.world import Grid

SUFFIX = ".pt"
_FORMAT, _VERSION = "registration as a function of points", 1


def maps_of(outputs: Mapping[str, Any]) -> tuple[FieldMap, FieldMap] | None:
    """The maps of a network's outputs, there and back, where they are what a file can hold: fields at one code."""
    there, back = outputs.get("map"), outputs.get("inverse_map")
    if not isinstance(there, FieldMap) or not isinstance(back, FieldMap) or there.code is not back.code:
        return None
    return there, back


def write_map(
    path: str | Path, maps: tuple[FieldMap, FieldMap], pair: int, grid: Grid, alignment: Tensor | None = None
) -> None:
    """Write the maps of a pair, there and back, as functions.

    Args:
        path: of the file, ends in .pt.
        maps: of some pairs, see :func:`maps_of`.
        pair: its number among them.
        grid: in whose voxels the maps take points.
        alignment: (4, 4), fixed world to moving world in millimetres RAS+, applied after the map; None for one world.

    Raises:
        InputError: when values are NaN or infinite, or the file cannot be written.
    """
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "size": [int(n) for n in maps[0].size],
        "affine": grid.affine,
        "alignment": torch.eye(4, dtype=torch.float64) if alignment is None else alignment.double().cpu(),
        "code": [_kept(part[pair : pair + 1]) for part in maps[0].code],
        "fields": [{name: _kept(value) for name, value in one.field.state_dict().items()} for one in maps],
    }
    if not _is_finite(content):
        raise InputError(f"{path} is not written: the network's field has values that are NaN or infinite.")
    save_atomically(content, path)


def read_map(path: str | Path) -> Transform:
    """Read the map of a pair, whose way back is a function, too: neither is sampled on a grid.

    Args:
        path: of a file that :func:`write_map` has written.

    Returns:
        Fixed world to moving world.

    Raises:
        InputError: when the file is missing, damaged, of another version or none of a map.
    """
    content = _content(Path(path))
    try:
        code, size = HybridCode(*content["code"]), content["size"]
        there, back = (
            _displacement(FieldMap(ModulatedField.of_state(state, code), code, size)) for state in content["fields"]
        )
        function = Function(Grid.of(size, content["affine"]), there, back)
        transform = Transform((function, Affine(content["alignment"])))
        # Shapes that do not fit, and a matrix without an inverse, show where the map is used.
        there_and_back = transform.inverse_points(transform.points(torch.zeros(1, 3)))
        is_whole = _is_finite(content) and bool(torch.isfinite(there_and_back).all())
    except (InputError, KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise _unusable(path) from error
    if not is_whole:
        raise _unusable(path)
    return transform


def _content(path: Path) -> dict[str, Any]:
    """What the file holds, of this format and version."""
    check_is_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            is_damaged = archive.testzip() is not None
    except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError):
        is_damaged = True
    if is_damaged:
        raise InputError(f"{path} is damaged, or no file of a map: copy it anew, or register the pair again.")
    content = load_checkpoint(path)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise InputError(f"{path} holds no map: inference writes one as <moving>_to_<fixed>_map{SUFFIX}.")
    if content.get("version") != _VERSION:
        raise InputError(
            f"{path} is a map of version {content.get('version')}, and version {_VERSION} is read here: use the "
            "release that wrote it, or register the pair again."
        )
    return content


def _unusable(path: str | Path) -> InputError:
    return InputError(f"{path} is a map whose parts do not fit together: register the pair again.")


def _displacement(function: FieldMap) -> Callable[[Tensor], Tensor]:
    """The displacement of points (1, N, 3) in voxels; along the third axis none where the map has two."""
    dims = len(function.size)

    def displacement(points: Tensor) -> Tensor:
        points = points[..., :dims].to(function.code.shared.dtype)
        return F.pad(function(points) - points, (0, 3 - dims))

    return displacement


def _kept(tensor: Tensor) -> Tensor:
    """A copy, so that what else its memory holds is not written."""
    return tensor.detach().to("cpu", torch.float32, copy=True)


def _is_finite(content: Mapping[str, Any]) -> bool:
    tensors = [*content["code"], *(value for state in content["fields"] for value in state.values())]
    return all(math.isfinite(float(tensor.sum(dtype=torch.float64))) for tensor in tensors)
