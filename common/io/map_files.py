# SPDX-License-Identifier: Apache-2.0
"""Maps as functions on disk: what a network's field needs to be evaluated at any point, without the network or a grid.

A file holds the weights of the fields there and back, the code of the pair, dense fields of a pre-alignment where there
is one, and where the voxels lie that all of them take points in. It is a checkpoint of tensors and plain values, read
without running code from it, and a zip archive, whose checksums are looked at.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
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
from common.spatial.chain import ChainMap
from common.spatial.maps import ComposedMap
from common.spatial.transform import Affine, Function, Transform
from common.spatial.world import Grid

Part = FieldMap | ChainMap
"""Of a map: a network's field, or dense fields that go before or after it."""
Maps = tuple[list[Part], list[Part]]
"""There and back, each in the order in which points go through it."""
SUFFIX = ".pt"
_FORMAT, _VERSION = "registration as a function of points", 1


def maps_of(outputs: Mapping[str, Any]) -> Maps | None:
    """The maps of a network's outputs, where a file can hold both and both have a part that is no dense field.

    These are NePhi's, alone or after a pre-alignment.
    """
    there, back = (_parts(outputs.get(name)) for name in ("map", "inverse_map"))
    if not all(any(isinstance(part, FieldMap) for part in parts) for parts in (there, back)):
        return None
    return there, back


def _parts(function: Any) -> list[Part]:
    """What a map consists of, in the order in which points go through it; empty where a part cannot be written."""
    if isinstance(function, ComposedMap):
        inner, outer = _parts(function.inner), _parts(function.outer)
        return [*inner, *outer] if inner and outer else []
    return [function] if isinstance(function, FieldMap | ChainMap) else []


def write_map(path: str | Path, maps: Maps, pair: int, grid: Grid, alignment: Tensor | None = None) -> None:
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
    content, copies = _content_of(maps, pair, grid, alignment)
    if not all(math.isfinite(float(tensor.sum(dtype=torch.float64))) for tensor in copies):
        raise InputError(f"{path} is not written: the network's field has values that are NaN or infinite.")
    save_atomically(content, path)


def map_transform(maps: Maps, pair: int, grid: Grid, alignment: Tensor | None = None) -> Transform:
    """What :func:`read_map` makes of the file that :func:`write_map` writes of the same arguments."""
    return _transform(_content_of(maps, pair, grid, alignment)[0])


def _content_of(maps: Maps, pair: int, grid: Grid, alignment: Tensor | None) -> tuple[dict[str, Any], list[Tensor]]:
    """What a file holds, and the tensors in it."""
    copies: dict[int, Tensor] = {}
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "size": [int(n) for n in maps[0][0].size],
        "affine": grid.affine,
        "alignment": torch.eye(4, dtype=torch.float64) if alignment is None else alignment.double().cpu(),
        "maps": [[_entry(part, pair, copies) for part in parts] for parts in maps],
    }
    return content, [*copies.values()]


def _entry(part: Part, pair: int, copies: dict[int, Tensor]) -> dict[str, Any]:
    own = slice(pair, pair + 1)
    if isinstance(part, ChainMap):
        return {"fields": [_kept(field, own, copies) for field in part.fields]}
    # The tensors themselves, which live on: what is made for the moment may get the place of another.
    state = part.field.state_dict(keep_vars=True)
    weights = {name: _kept(value, slice(None), copies) for name, value in state.items()}
    return {"code": [_kept(value, own, copies) for value in part.code], "weights": weights}


def _kept(tensor: Tensor, rows: slice, copies: dict[int, Tensor]) -> Tensor:
    """A copy, so that nothing else from its memory is written; one alone of what both ways share."""
    if id(tensor) not in copies:
        copies[id(tensor)] = tensor[rows].detach().to("cpu", torch.float32, copy=True)
    return copies[id(tensor)]


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
        transform = _transform(content)
        # Shapes that do not fit, and a matrix without an inverse, show where the map is used.
        there_and_back = transform.inverse_points(transform.points(torch.zeros(1, 3)))
        is_whole = bool(torch.isfinite(there_and_back).all())
    except (InputError, KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise _unusable(path) from error
    if not is_whole:
        raise _unusable(path)
    return transform


def _transform(content: Mapping[str, Any]) -> Transform:
    size = content["size"]
    there, back = (_displacement([_part(entry, size) for entry in parts]) for parts in content["maps"])
    function = Function(Grid.of(size, content["affine"]), there, back)
    return Transform((function, Affine(content["alignment"])))


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


def _part(entry: Mapping[str, Any], size: Sequence[int]) -> Part:
    if "fields" in entry:
        return ChainMap(entry["fields"], size)
    code = HybridCode(*entry["code"])
    return FieldMap(ModulatedField.of_state(entry["weights"], code), code, size)


def _displacement(parts: Sequence[Part]) -> Callable[[Tensor], Tensor]:
    """The displacement of points (1, N, 3) in voxels; along the third axis none where the map has two."""
    dims = len(parts[0].size)

    def displacement(points: Tensor) -> Tensor:
        start = points[..., :dims].float()
        end = start
        for part in parts:
            end = part(end)
        return F.pad(end - start, (0, 3 - dims))

    return displacement
