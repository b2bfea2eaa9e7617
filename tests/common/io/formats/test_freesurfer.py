# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from common.checks import InputError
from common.io.formats.reader import read_world
from common.io.transforms import Grid, read_transform


def geometry(grid: Grid) -> tuple[list[float], list[float], list[float]]:
    """Voxel sizes, directions column by column, and the place of voxel shape / 2."""
    affine = grid.affine.numpy()
    size = np.linalg.norm(affine[:3, :3], axis=0)
    centre = affine[:3, :3] @ (np.array(grid.shape) / 2) + affine[:3, 3]
    return size.tolist(), (affine[:3, :3] / size).T.ravel().tolist(), centre.tolist()


def warp(scene: Any, name: str, vectors: np.ndarray, kind: int | None) -> Path:
    """As FreeSurfer 7.4 and surfa write it: purpose in the version, geometries and kind behind the voxels."""
    file = nibabel.MGHImage(vectors.astype(np.float32), scene.fixed.affine.numpy())
    content = bytearray(file.to_bytes())[: 284 + 4 * vectors.size]
    content += struct.pack(">5f", 0, 0, 0, 0, 0)
    if kind is not None:
        content[2] = 1
        content += struct.pack(">iq7s", 41, 7, b"UNKNOWN") + struct.pack(">i", 10)
        for grid in (scene.moving, scene.fixed):
            size, directions, centre = geometry(grid)
            content += struct.pack(">i3i3f9f3f512s", 1, *grid.shape, *size, *directions, *centre, b"scan.mgz")
        content += struct.pack(">iqiif", 13, 12, kind, 1, 0.0)
    path: Path = scene.folder / name
    path.write_bytes(gzip.compress(content) if name.endswith("z") else bytes(content))
    return path


def test_warps_of_every_kind(scene: Any) -> None:
    to_moving = np.linalg.inv(scene.moving.affine.numpy())
    voxels = scene.positions @ to_moving[:3, :3].T + to_moving[:3, 3]
    index = np.stack(np.meshgrid(*map(np.arange, scene.fixed.shape), indexing="ij"), -1)
    kinds = [voxels, voxels - index, scene.positions, scene.positions - scene.places]
    for kind, vectors in enumerate(kinds):
        path = warp(scene, "a.mgz" if kind % 2 else "a.mgh", vectors, kind)
        world = read_world(path, "auto")
        assert world is not None and world[1] == ("ras_mm" if kind == 3 else "ras_positions")
        np.testing.assert_allclose(scene.found(world[0]), scene.positions, atol=2e-4)
        with pytest.raises(InputError, match="warp of FreeSurfer, but --convention lps_mm"):
            read_transform(path, None, "lps_mm")


def test_a_warp_that_does_not_say_its_kind_is_stated(scene: Any) -> None:
    path = warp(scene, "a.mgz", scene.positions - scene.places, None)
    with pytest.raises(InputError, match="does not say what its vectors are: state --convention ras_mm"):
        read_transform(path)
    np.testing.assert_allclose(scene.found(read_transform(path, None, "ras_mm")), scene.positions, atol=2e-4)


def test_volumes_that_are_no_warps(scene: Any) -> None:
    with pytest.raises(InputError, match=r"a warp of FreeSurfer is \(X, Y, Z, 3\)"):
        read_transform(warp(scene, "a.mgz", scene.positions[..., 0], None))
    (scene.folder / "b.mgz").write_bytes(b"\x1f\x8b no")
    with pytest.raises(InputError, match="cannot be read as a volume of FreeSurfer"):
        read_transform(scene.folder / "b.mgz")
    with pytest.raises(InputError, match="unknown kind"):
        read_transform(warp(scene, "a.mgz", scene.positions, 7))


def lta(scene: Any, kind: int) -> str:
    matrix = np.linalg.inv(scene.affine)
    if kind == 0:
        matrix = np.linalg.inv(scene.fixed.affine.numpy()) @ matrix @ scene.moving.affine.numpy()
    text = f"# created by a test\ntype      = {kind}\nnxforms   = 1\nmean      = 0.0 0.0 0.0\nsigma     = 1.0000\n"
    text += "1 4 4\n" + "\n".join(" ".join(f"{v:.15e}" for v in row) for row in matrix) + "\n"
    for side, grid in (("src", scene.moving), ("dst", scene.fixed)):
        size, directions, centre = geometry(grid)
        rows = {"volume": grid.shape, "voxelsize": size, "cras": centre}
        rows |= {name: directions[3 * n : 3 * n + 3] for n, name in enumerate(("xras", "yras", "zras"))}
        text += f"{side} volume info\nvalid = 1  # volume info valid\nfilename = {side}.mgz\n"
        text += "".join(
            f"{name} = {' '.join(f'{v:.15e}' if name != 'volume' else str(v) for v in row)}\n"
            for name, row in rows.items()
        )
    return text + "subject fsaverage\nfscale 0.15\n"


@pytest.mark.parametrize("kind", [0, 1])
def test_linear_transforms_go_from_the_moving_to_the_fixed_scan(scene: Any, kind: int) -> None:
    (scene.folder / "a.lta").write_text(lta(scene, kind))
    expected = scene.places @ scene.affine[:3, :3].T + scene.affine[:3, 3]
    np.testing.assert_allclose(scene.found(read_transform(scene.folder / "a.lta")), expected, atol=1e-6)


def test_linear_transforms_that_are_not_read(scene: Any) -> None:
    good = lta(scene, 0)
    for text, message in (
        (
            good.replace("type      = 0", "type      = 14"),
            "type 14, neither voxels to voxels nor RAS to RAS: lta_convert",
        ),
        (good.replace("xras", "x"), r"voxels of its \w+ volume lie .xras is missing"),
        (good.replace("nxforms   = 1", "nxforms   = 2"), "one linear transform"),
        ("nothing", "cannot be read as one linear transform"),
    ):
        (scene.folder / "a.lta").write_text(text)
        with pytest.raises(InputError, match=message):
            read_transform(scene.folder / "a.lta")
    with pytest.raises(InputError, match="linear transform of FreeSurfer, but .* state auto"):
        read_transform(scene.folder / "a.lta", None, "itk")


def test_torch_and_numpy_agree_on_the_scene(scene: Any) -> None:
    assert torch.linalg.det(scene.fixed.affine[:3, :3]) * torch.linalg.det(scene.moving.affine[:3, :3]) < 0
