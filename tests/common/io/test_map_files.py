# SPDX-License-Identifier: Apache-2.0
"""Maps as functions on disk, against the composition of their parts, written out."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from common.blocks.field_map import FieldMap
from common.blocks.hybrid_code import HybridCode
from common.blocks.nephi import ModulatedField
from common.checks import InputError
from common.io.checkpoints import load_checkpoint, save_atomically
from common.io.fields import read_field
from common.io.map_files import maps_of, read_map, write_map
from common.io.transforms import read_transform, write_transform
from common.networks import GradICON, NePhi, PreAligned, gradicon, nephi
from common.spatial import ComposedMap, Grid, chain_map
from common.spatial.chain import ChainMap
from common.spatial.plane import plane_affine

SIZE = (9, 8, 7)
AFFINE = torch.tensor([[-1.4, 0.3, 0.2, 5], [0.2, 1.1, -0.4, -7], [0.1, 0.5, 2.3, 3], [0, 0, 0, 1]]).double()
ALIGNMENT = torch.tensor([[1.02, 0.1, 0, 4], [-0.1, 0.97, 0.05, -3], [0, 0.02, 1.01, 2], [0, 0, 0, 1]]).double()


def field(dims: int, seed: int) -> ModulatedField:
    torch.manual_seed(seed)
    made = ModulatedField(dims, (3, 2), 8, 2, 4)
    made.frequencies *= 0.2
    torch.nn.init.normal_(made.head.weight, std=0.1)
    return made


def made(size: tuple[int, ...] = SIZE, batch: int = 2) -> tuple[FieldMap, FieldMap]:
    """Maps there and back that have nothing to do with each other."""
    torch.manual_seed(0)
    code = HybridCode(torch.randn(batch, 3), torch.randn(batch, 2, *[3] * len(size)))
    there, back = (FieldMap(field(len(size), seed), code, size) for seed in (1, 2))
    return there, back


def in_world(matrix: Tensor, points: Tensor) -> Tensor:
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def voxels(count: int, size: tuple[int, ...] = SIZE) -> Tensor:
    unit = torch.rand(count, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return unit * (torch.tensor((*size, 1)[:3]) - 1)


@torch.no_grad()
def by_hand(function: FieldMap, points: Tensor, pair: int = 1) -> Tensor:
    """Voxels (N, 3) by the pair's own code, the third coordinate as it is where there are two dimensions."""
    dims = len(function.size)
    code = HybridCode(*(part[pair : pair + 1] for part in function.code))
    moved = FieldMap(function.field, code, function.size)(points[None, :, :dims].float())[0]
    return torch.cat([moved.double(), points[:, dims:]], dim=1)


def saved(path: Path, outputs: tuple[Any, Any], pair: int, grid: Grid, alignment: Tensor | None = None) -> None:
    maps = maps_of({"map": outputs[0], "inverse_map": outputs[1]})
    assert maps is not None
    write_map(path, maps, pair, grid, alignment)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    saved(tmp_path / "a_map.pt", made(), 1, Grid(SIZE, AFFINE), ALIGNMENT)
    return tmp_path / "a_map.pt"


@pytest.mark.parametrize("size", [SIZE, (9, 8)])
def test_points_go_through_map_and_alignment_and_back_through_the_other_map(
    size: tuple[int, ...], tmp_path: Path
) -> None:
    there, back = made(size)
    grid = Grid.of(size, AFFINE)
    alignment = plane_affine(ALIGNMENT) if grid.flat else ALIGNMENT
    saved(tmp_path / "a_map.pt", (there, back), 1, grid, alignment)
    transform, points = read_transform(tmp_path / "a_map.pt"), voxels(40, size)
    assert transform.flat == grid.flat
    expected = in_world(alignment, in_world(grid.affine, by_hand(there, points)))
    start = in_world(grid.affine, points)
    assert (expected - in_world(alignment, start)).norm(dim=1).max() > 0.5
    torch.testing.assert_close(transform.points(start), expected, rtol=0, atol=1e-5)
    aligned = in_world(alignment, start)
    expected = in_world(grid.affine, by_hand(back, points))
    torch.testing.assert_close(transform.inverse_points(aligned), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(transform.inverse().points(aligned), expected, rtol=0, atol=1e-5)


def test_codes_that_do_not_fit_are_refused(file: Path) -> None:
    content = load_checkpoint(file)
    for code in ([torch.zeros(1, 3)], [torch.zeros(1, 4), torch.zeros(1, 2, 3, 3, 3)]):
        content["maps"][0][0]["code"] = code
        save_atomically(content, file)
        with pytest.raises(InputError, match="a_map.pt is a map whose parts do not fit together"):
            read_transform(file)


def test_a_dense_pre_alignment_is_kept_on_its_own_grid(tmp_path: Path) -> None:
    (there, back), grid = made(), Grid(SIZE, AFFINE)
    fields = [torch.randn(2, 3, 4, 5, 3) for _ in range(2)]
    before, after = (chain_map([field], SIZE) for field in fields)
    saved(tmp_path / "a_map.pt", (ComposedMap(before, there), ComposedMap(back, after)), 1, grid, ALIGNMENT)
    points = voxels(40)
    transform, start = read_map(tmp_path / "a_map.pt"), in_world(AFFINE, points)
    own = [chain_map([field[1:]], SIZE) for field in fields]
    expected = own[0](by_hand(there, points)[None])[0]
    torch.testing.assert_close(
        transform.points(start), in_world(ALIGNMENT, in_world(AFFINE, expected)), rtol=0, atol=1e-5
    )
    expected = by_hand(back, own[1](points[None])[0])
    found = transform.inverse_points(in_world(ALIGNMENT, start))
    torch.testing.assert_close(found, in_world(AFFINE, expected), rtol=0, atol=1e-5)


def test_on_a_grid_it_is_the_dense_field(file: Path) -> None:
    with torch.no_grad():
        dense = made()[0].on_grid()[1:]
    grid = Grid(SIZE, AFFINE)
    found, convention = read_field(file, grid)
    assert convention == "map"
    # In world points, the dense displacement and the alignment after it.
    index = torch.cartesian_prod(*[torch.arange(n, dtype=torch.float64) for n in SIZE])
    ends = [in_world(AFFINE, index + ddf[0].flatten(1).T) for ddf in (dense, found)]
    torch.testing.assert_close(ends[1], in_world(ALIGNMENT, ends[0]), rtol=0, atol=2e-5)


def test_beyond_the_grid_points_are_displaced_as_at_its_border(file: Path) -> None:
    points = voxels(40) * 3 - 6
    inside = torch.minimum(points.clamp(min=0), torch.tensor(SIZE).double() - 1)
    assert ((points - inside) != 0).any(1).sum() > 20
    moved = points + by_hand(made()[0], inside) - inside
    found = read_map(file).points(in_world(AFFINE, points))
    torch.testing.assert_close(found, in_world(ALIGNMENT, in_world(AFFINE, moved)), rtol=0, atol=1e-5)


def test_the_file_holds_what_the_map_needs_and_no_more(file: Path) -> None:
    parameters = sum(value.numel() for one in made() for value in one.field.state_dict().values())
    assert file.stat().st_size < 4 * (parameters + 3 + 2 * 27) + 16000
    state = torch.random.get_rng_state()
    read_map(file)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_maps_with_a_field_of_a_network_are_taken() -> None:
    there, back = made()
    dense = chain_map([torch.zeros(1, 3, 4, 4, 4)], SIZE)
    assert maps_of({"map": there, "inverse_map": back}) == ([there], [back])
    assert maps_of({"map": ComposedMap(dense, there), "inverse_map": back}) == ([there, dense], [back])
    for outputs in ({"map": there}, {"map": ComposedMap(abs, there), "inverse_map": back}, {}):
        assert maps_of(outputs) is None
    # What its dense fields say already.
    assert maps_of({"map": dense, "inverse_map": dense}) is None


def test_maps_of_a_pre_aligned_network_are_taken() -> None:
    network = PreAligned(GradICON(**gradicon.CONFIGURATIONS["tiny"]), NePhi(**nephi.CONFIGURATIONS["tiny"])).eval()
    with torch.no_grad():
        maps = maps_of(network(torch.rand(1, 2, 9, 8, 7), details=["map", "inverse_map"]))
    assert maps is not None
    assert [[type(part) for part in parts] for parts in maps] == [[FieldMap, ChainMap], [ChainMap, FieldMap]]


def test_values_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    maps = made()
    maps[1].field.head.bias.data[1] = torch.nan
    with pytest.raises(InputError, match="a_map.pt is not written: .*NaN"):
        saved(tmp_path / "a_map.pt", maps, 0, Grid(SIZE, AFFINE))
    assert not [*tmp_path.iterdir()]


def test_itk_has_no_functions(file: Path) -> None:
    with pytest.raises(InputError, match="a.h5: ITK has no functions"):
        write_transform(file.with_name("a.h5"), read_map(file))


class Code:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_files_that_are_damaged_or_something_else_are_refused(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    place = whole.index(np.float32(made()[0].code.shared[1, 0].item()).tobytes())
    broken = {
        "half.pt": whole[: len(whole) // 2],
        "empty.pt": b"",
        "bit.pt": whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :],
        "pickle.pt": pickle.dumps(Code(tmp_path / "ran")),
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name} is damaged, or no file of a map"):
            read_transform(tmp_path / name)
    torch.save({"format": Code(tmp_path / "ran")}, tmp_path / "code.pt")
    with pytest.raises(InputError, match="code.pt is no checkpoint of tensors and plain values"):
        read_transform(tmp_path / "code.pt")
    assert not (tmp_path / "ran").exists()
    torch.save(made()[0].field.state_dict(), tmp_path / "model.pt")
    with pytest.raises(InputError, match="model.pt holds no map"):
        read_transform(tmp_path / "model.pt")
    with pytest.raises(InputError, match="is a map as a function, but --convention voxels was stated"):
        read_transform(file, convention="voxels")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"version": 2}, "version 2, and version 1 is read here"),
        ({"size": [9, 8]}, "do not fit together"),
        ({"size": ["x", "y", "z"]}, "do not fit together"),
        ({"affine": torch.zeros(4, 4)}, "do not fit together"),
        ({"alignment": torch.zeros(4, 4)}, "do not fit together"),
        ({"alignment": torch.eye(3)}, "do not fit together"),
        ({"maps": []}, "do not fit together"),
        ({"maps": [[], []]}, "do not fit together"),
        ({"maps": [[{}], [{}]]}, "do not fit together"),
        ({"maps": [[{"fields": [torch.zeros(1, 2, 4, 4)]}]] * 2}, "do not fit together"),
        ({"maps": [[{"fields": [torch.full((1, 3, 4, 4, 4), torch.nan)]}]] * 2}, "do not fit together"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: dict[str, Any], sentence: str, file: Path) -> None:
    save_atomically(load_checkpoint(file) | change, file)
    with pytest.raises(InputError, match=f"a_map.pt is a map .*{sentence}"):
        read_transform(file)


def test_the_examples_of_the_docs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[3] / "docs" / "conventions.md").read_text(encoding="utf-8")
    first, second = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(first, names)
    assert names["there"].shape == names["back"].shape == names["points"].shape
    maps = maps_of(names["found"])
    assert maps is not None
    write_map(tmp_path / "MOVING_to_FIXED_map.pt", maps, 0, Grid((24, 24, 24), AFFINE))
    monkeypatch.chdir(tmp_path)
    exec(second, names)
    assert names["moved"].shape == names["again"].shape == (1, 3)
