# SPDX-License-Identifier: Apache-2.0
"""Non-diffeomorphic volume against a voxel-by-voxel evaluation of its definition."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

import common.spatial.slabs as slabs_module
from common.checks import InputError
from common.metrics import central_determinant, digital_determinants, nda, ndv_lumir, ndv_map, ndv_package


def random_field(shape: tuple[int, ...], scale: float = 0.6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return scale * torch.randn(2, len(shape), *shape, generator=generator, dtype=torch.float64)


def slow_determinants(field: np.ndarray, x: tuple[int, ...]) -> tuple[list[float], float]:
    """Determinants of the simplices and the central one at voxel ``x``; border values are repeated."""
    dims = len(field)
    unit = np.eye(dims, dtype=int)

    def phi(*steps: np.ndarray) -> np.ndarray:
        place = np.array(x) + sum(steps, np.zeros(dims, int))
        clamped = np.clip(place, 0, np.array(field.shape[1:]) - 1)
        return place + field[(slice(None), *clamped)]

    values = []
    for signs in product((1, -1), repeat=dims):
        rows = [s * (phi(s * e) - phi()) for s, e in zip(signs, unit, strict=True)]
        values.append(np.linalg.det(rows))
    if dims == 3:
        a, b, c = unit
        values.append(np.linalg.det([phi(-a - b) - phi(), phi(-a - c) - phi(), phi(-b - c) - phi()]))
        values.append(np.linalg.det([phi(a + b) - phi(), phi(b + c) - phi(), phi(a + c) - phi()]))
    return values, np.linalg.det([(phi(e) - phi(-e)) / 2 for e in unit])


def slow_measure(field: np.ndarray, mask: np.ndarray, voxels: list[tuple[int, ...]]) -> list[float]:
    volume = central = simplices = count = 0.0
    scale = 12 if len(field) == 3 else 4
    for x in voxels:
        if mask[x]:
            values, middle = slow_determinants(field, x)
            volume += sum(-min(v, 0) for v in values) / scale
            simplices += sum(v <= 0 for v in values) / len(values)
            central += middle <= 0
            count += 1
    return [100 * volume / count, volume, central, simplices, count]


@pytest.mark.parametrize("slab", [1, 1 << 18])
def test_lumir_form_equals_its_definition_in_the_interior(slab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slabs_module, "_SLAB_VOXELS", slab)
    ddf = random_field((6, 5, 7))
    mask = torch.rand(2, 1, 6, 5, 7, generator=torch.Generator().manual_seed(1)) > 0.3
    found = ndv_lumir(ddf, mask)
    interior = list(product(*[range(1, n - 1) for n in (6, 5, 7)]))
    for b in range(2):
        expected = slow_measure(ddf[b].numpy(), mask[b, 0].numpy(), interior)
        np.testing.assert_allclose([entry[b].item() for entry in found], expected, rtol=1e-10)


@pytest.mark.parametrize("shape", [(6, 7), (5, 4, 6)])
@pytest.mark.parametrize("slab", [1, 1 << 18])
def test_package_form_equals_its_definition_over_all_voxels(
    shape: tuple[int, ...], slab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slabs_module, "_SLAB_VOXELS", slab)
    ddf = random_field(shape)
    mask = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(1)) > 0.3
    voxels = list(product(*map(range, shape)))
    for given in (None, mask):
        found = ndv_package(ddf, given)
        for b in range(2):
            inside = np.ones(shape, bool) if given is None else mask[b, 0].numpy()
            expected = slow_measure(ddf[b].numpy(), inside, voxels)
            np.testing.assert_allclose([entry[b].item() for entry in found], expected, rtol=1e-10)


@pytest.mark.parametrize("shape", [(6, 7), (5, 6, 7)])
def test_zero_and_translation_have_no_volume(shape: tuple[int, ...]) -> None:
    for value in (0.0, 1.7):
        found = ndv_package(torch.full((1, len(shape), *shape), value))
        assert [float(entry) for entry in found] == pytest.approx([0, 0, 0, 0, np.prod(shape)])


def test_determinants_of_the_identity_are_one_and_two() -> None:
    determinants = dict(digital_determinants(torch.zeros(3, 4, 4, 4)))
    assert {name: det.unique().tolist() for name, det in determinants.items()} == {
        **{"".join(signs): [1.0] for signs in product("pm", repeat=3)},
        "star1": [2.0],
        "star2": [2.0],
    }
    assert central_determinant(torch.zeros(2, 4, 4)).unique().tolist() == [1.0]


def test_a_mirrored_volume_is_non_diffeomorphic_as_a_whole() -> None:
    ddf = torch.zeros(1, 3, 6, 6, 6)
    ddf[:, 0] = -2 * torch.arange(6.0).view(6, 1, 1)
    found = ndv_lumir(ddf)
    # Eight corners of 1/12 and two inner tetrahedra of 2/12 fill the voxel.
    assert found.percent.item() == pytest.approx(100) and found.volume.item() == pytest.approx(64)
    assert found.voxels.item() == found.tetrahedra.item() == found.mask_voxels.item() == 64


def test_the_map_adds_up_to_the_volume() -> None:
    ddf = random_field((6, 5, 7))
    assert ndv_map(ddf).shape == (2, 1, 4, 3, 5)
    torch.testing.assert_close(ndv_map(ddf).sum((1, 2, 3, 4)), ndv_lumir(ddf).volume)
    torch.testing.assert_close(ndv_map(ddf, edges=True).sum((1, 2, 3, 4)), ndv_package(ddf).volume)
    plane = random_field((6, 5))
    assert torch.equal(nda(plane).volume, ndv_package(plane).volume)


def test_half_precision_fields_are_evaluated_in_single_precision() -> None:
    ddf = random_field((5, 5, 5)).half()
    torch.testing.assert_close(ndv_lumir(ddf).volume, ndv_lumir(ddf.double()).volume, rtol=1e-5, atol=1e-6)


def test_bad_input_is_refused_in_words() -> None:
    with pytest.raises(InputError, match="use nda for 2D"):
        ndv_lumir(torch.zeros(1, 2, 5, 5))
    with pytest.raises(InputError, match="ndv_package for 3D"):
        nda(torch.zeros(1, 3, 5, 5, 5))
    with pytest.raises(InputError, match="at least 3 voxels"):
        ndv_lumir(torch.zeros(1, 3, 2, 5, 5))
    with pytest.raises(InputError, match="The mask has shape"):
        ndv_lumir(torch.zeros(1, 3, 5, 5, 5), torch.ones(5, 5, 5))
