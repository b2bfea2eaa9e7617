# SPDX-License-Identifier: Apache-2.0
"""Non-diffeomorphic volume (NDV) and area (NDA): where the deformation of the voxel grid's own simplices folds.

Liu et al., "On finite difference Jacobian computation in deformable image registration", IJCV 2024: a field is
digitally diffeomorphic when every simplex spanned by neighbouring voxels keeps its orientation. In three dimensions
ten determinants describe two splittings of the cube into tetrahedra, in two dimensions four describe triangles.

``ndv_lumir`` is the challenge's form (interior, foreground), ``ndv_package`` the authors' later one (all voxels).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from common.checks import InputError
from common.metrics.jacobian import check_field
from common.spatial.slabs import slab_ranges


class NonDiffeomorphicVolume(NamedTuple):
    """Folding of a field; every entry is (B,), float64.

    Attributes:
        percent: 100 times ``volume`` over ``mask_voxels``.
        volume: folded volume (area in two dimensions) inside the mask, in voxels.
        voxels: voxels inside the mask whose central-difference determinant is 0 or less.
        tetrahedra: a tenth of the number of simplices (a quarter in two dimensions) with determinant 0 or less.
        mask_voxels: voxels counted.
    """

    percent: Tensor
    volume: Tensor
    voxels: Tensor
    tetrahedra: Tensor
    mask_voxels: Tensor


def ndv_lumir(ddf: Tensor, mask: Tensor | None = None) -> NonDiffeomorphicVolume:
    """Non-diffeomorphic volume as in the LUMIR evaluation: one voxel off each border, inside a mask.

    The challenge takes the foreground of the *moving* image as mask although the field lives on the fixed grid; the
    fixed image's foreground is the sensible choice elsewhere.

    Args:
        ddf: (B, 3, D, H, W), in voxels, at least 3 voxels along every axis. float64 fields are evaluated in float64.
        mask: (B, 1, D, H, W), voxels above 0 count; default all.

    Returns:
        See :class:`NonDiffeomorphicVolume`.

    Raises:
        InputError: when the field is two-dimensional or too small, or the mask does not fit.
    """
    if ddf.ndim == 4:
        raise InputError("The LUMIR form of the non-diffeomorphic volume is three-dimensional: use nda for 2D fields.")
    check_field(ddf, mask, minimum=3)
    return _measure(ddf, mask, edges=False)


def ndv_package(ddf: Tensor, mask: Tensor | None = None) -> NonDiffeomorphicVolume:
    """Non-diffeomorphic volume of *all* voxels, the field continued by its border values.

    This is what the ``digital-diffeomorphism`` package reports. It differs a lot from :func:`ndv_lumir` where a field
    folds at the border.

    Args:
        ddf: (B, d, *spatial), in voxels.
        mask: (B, 1, *spatial), voxels above 0 count; default all.

    Returns:
        See :class:`NonDiffeomorphicVolume`.
    """
    check_field(ddf, mask, minimum=2)
    return _measure(ddf, mask, edges=True)


def nda(ddf: Tensor, mask: Tensor | None = None) -> NonDiffeomorphicVolume:
    """Non-diffeomorphic area of a two-dimensional field, all pixels, the field continued by its border values.

    Args:
        ddf: (B, 2, H, W), in pixels.
        mask: (B, 1, H, W), pixels above 0 count; default all.

    Returns:
        See :class:`NonDiffeomorphicVolume`; ``volume`` is an area.

    Raises:
        InputError: when the field is three-dimensional or the mask does not fit.
    """
    if ddf.ndim == 5:
        raise InputError("The non-diffeomorphic area is two-dimensional: use ndv_lumir or ndv_package for 3D fields.")
    return ndv_package(ddf, mask)


def ndv_map(ddf: Tensor, edges: bool = False) -> Tensor:
    """Folded volume (area) that belongs to each voxel.

    Args:
        ddf: (B, d, *spatial), in voxels.
        edges: whether to continue the field by its border values and keep all voxels, or to drop one at each side.

    Returns:
        (B, 1, *(n - 2 for n in spatial)), or (B, 1, *spatial) with ``edges``; 0 where nothing folds.
    """
    check_field(ddf, None, minimum=2 if edges else 3)
    maps = [torch.cat([_folded_volume(block)[0] for _, _, block in _blocks(field, edges)]) for field in _floating(ddf)]
    return torch.stack(maps).unsqueeze(1)


def digital_determinants(block: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Determinants of the grid's simplices at the inner voxels of a piece of a field.

    Args:
        block: (d, *spatial), displacement in voxels.

    Yields:
        name and determinant (*(n - 2 for n in spatial)). One sign per axis says whether its row holds forward ("p") or
        backward ("m") differences; "star1" and "star2" hold differences along the diagonals of the faces (3D only).
    """
    dims = block.shape[0]
    rows = [{"p": _difference(block, {k: 1}), "m": _difference(block, {k: -1})} for k in range(dims)]
    if dims == 2:
        for first, second in product("pm", repeat=2):
            (a, b), (c, d) = rows[0][first], rows[1][second]
            yield first + second, a * d - b * c
        return
    for second, third in product("pm", repeat=2):
        normal = _cross(rows[1][second], rows[2][third])
        for first in "pm":
            yield first + second + third, _dot(rows[0][first], normal)
    for name, step, planes in (("star1", -1, ((0, 1), (0, 2), (1, 2))), ("star2", 1, ((0, 1), (1, 2), (0, 2)))):
        diagonals = [_difference(block, {i: step, j: step}) for i, j in planes]
        yield name, _dot(diagonals[0], _cross(diagonals[1], diagonals[2]))


def central_determinant(block: Tensor) -> Tensor:
    """Central-difference determinant at the inner voxels of a piece (d, *spatial) of a field."""
    dims = block.shape[0]
    rows = [
        [0.5 * (p - m) for p, m in zip(_shifted(block, {k: 1}), _shifted(block, {k: -1}), strict=True)]
        for k in range(dims)
    ]
    for k in range(dims):
        rows[k][k] += 1
    if dims == 2:
        return rows[0][0] * rows[1][1] - rows[0][1] * rows[1][0]
    return _dot(rows[0], _cross(rows[1], rows[2]))


def _measure(ddf: Tensor, mask: Tensor | None, edges: bool) -> NonDiffeomorphicVolume:
    dims = ddf.shape[1]
    share = 0.1 if dims == 3 else 0.25
    results = []
    for b, field in enumerate(_floating(ddf)):
        # Volume, central determinants, simplices, voxels.
        sums = field.new_zeros(4, dtype=torch.float64)
        for start, stop, block in _blocks(field, edges):
            volume, folds = _folded_volume(block)
            central = central_determinant(block) <= 0
            if mask is None:
                counted = field.new_tensor(volume.numel(), dtype=torch.int64)
            else:
                inner = (slice(start, stop), *([slice(None) if edges else slice(1, -1)] * (dims - 1)))
                inside = mask[b, 0][inner] > 0
                volume, folds, central, counted = volume * inside, folds * inside, central & inside, inside.sum()
            sums += torch.stack(
                [volume.sum(dtype=torch.float64), central.sum(), folds.sum(dtype=torch.float64), counted]
            )
        folded, voxels, simplices, total = sums
        results.append([100 * folded / total, folded, voxels, share * simplices, total])
    return NonDiffeomorphicVolume(*(torch.stack(list(column)) for column in zip(*results, strict=True)))


def _folded_volume(block: Tensor) -> tuple[Tensor, Tensor]:
    """Folded volume at the inner voxels of a block, and how many of its determinants are 0 or less."""
    volume = folds = None
    for _, det in digital_determinants(block):
        folded = (det <= 0).to(torch.uint8)
        folds = folded if folds is None else folds.add_(folded)
        negative = det.clamp_(max=0)
        volume = negative if volume is None else volume.add_(negative)
    assert volume is not None and folds is not None
    # Two splittings are averaged; a determinant is 6 times a tetrahedron's volume, twice a triangle's area.
    return volume.mul_(-0.5 / (6 if block.shape[0] == 3 else 2)), folds


def _floating(ddf: Tensor) -> Tensor:
    return ddf.detach().to(torch.promote_types(ddf.dtype, torch.float32))


def _blocks(field: Tensor, edges: bool) -> Iterator[tuple[int, int, Tensor]]:
    """(first voxel plane, end, piece of the field with one more voxel at every side)."""
    depth = field.shape[1]
    for start, stop in slab_ranges(*((0, depth) if edges else (1, depth - 1)), field[0, 0].numel()):
        low, high = max(start - 1, 0), min(stop + 1, depth)
        block = field[:, low:high]
        if edges:
            ends = [low - start + 1, stop + 1 - high]
            block = F.pad(block[None], [1, 1] * (field.ndim - 2) + ends, mode="replicate")[0]
        yield start, stop, block


def _shifted(block: Tensor, steps: dict[int, int]) -> list[Tensor]:
    """Components of the block's inner voxels, moved by ``steps`` (axis: -1 or 1)."""
    dims = block.shape[0]
    window = tuple(slice(1 + steps.get(k, 0), block.shape[1 + k] - 1 + steps.get(k, 0)) for k in range(dims))
    return [component[window] for component in block]


def _difference(block: Tensor, steps: dict[int, int]) -> list[Tensor]:
    """Differences of ``f(x) = x + u(x)``, one per component.

    ``f(x + step) - f(x)``; along a single axis with step -1 the backward difference ``f(x) - f(x - 1)``.
    """
    moved, here = _shifted(block, steps), _shifted(block, {})
    backward = len(steps) == 1 and -1 in steps.values()
    difference = [h - m if backward else m - h for m, h in zip(moved, here, strict=True)]
    for axis, step in steps.items():
        difference[axis] += 1 if backward else step
    return difference


def _cross(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
    return [
        (a[1] * b[2]).addcmul_(a[2], b[1], value=-1),
        (a[2] * b[0]).addcmul_(a[0], b[2], value=-1),
        (a[0] * b[1]).addcmul_(a[1], b[0], value=-1),
    ]


def _dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
    return (a[0] * b[0]).addcmul_(a[1], b[1]).addcmul_(a[2], b[2])
