# SPDX-License-Identifier: Apache-2.0
"""Folding and spread of the Jacobian against NumPy and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d

import common.spatial.slabs as slabs_module
from common.checks import InputError
from common.metrics import fold_fraction, fold_fraction_interior, jacobian_statistics, sdlogj, sdlogj_l2r

SHAPES = [(11, 13), (9, 11, 10)]


def random_field(shape: tuple[int, ...], scale: float = 0.8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return scale * torch.randn(2, len(shape), *shape, generator=generator, dtype=torch.float64)


def gradient_determinant(field: np.ndarray) -> np.ndarray:
    dims = len(field)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in field.shape[1:]], indexing="ij"))
    matrix = np.array([np.gradient(component) for component in field + grid])
    return np.linalg.det(np.moveaxis(matrix.reshape(dims, dims, *field.shape[1:]), (0, 1), (-2, -1)))


def l2r_determinant(field: np.ndarray) -> np.ndarray:
    dims = len(field)
    rows = [[correlate1d(u, [-0.5, 0, 0.5], axis=a, mode="constant") for a in range(dims)] for u in field]
    matrix = np.moveaxis(np.array(rows), (0, 1), (-2, -1)) + np.eye(dims)
    return np.linalg.det(matrix)[(slice(2, -2),) * dims]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("slab", [1, 300, 1 << 18])
def test_every_figure_equals_its_definition_whatever_the_slab(
    shape: tuple[int, ...], slab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slabs_module, "_SLAB_VOXELS", slab)
    ddf = random_field(shape)
    mask = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(3)) > 0.4
    statistics = jacobian_statistics(ddf, mask)
    for b in range(2):
        det, interior = gradient_determinant(ddf[b].numpy()), l2r_determinant(ddf[b].numpy())
        inside = mask[b, 0].numpy()
        crop = inside[(slice(2, -2),) * len(shape)]
        shifted = np.log(np.clip(interior + 3, 1e-9, 1e9))
        expected = [
            (det <= 0).mean(),
            (interior <= 0).sum() / det.size,
            (det[inside] <= 0).sum(),
            np.log(det[inside & (det > 0)]).std(),
            shifted.std(),
            shifted[crop].std(),
        ]
        np.testing.assert_allclose([entry[b].item() for entry in statistics], expected, rtol=1e-9)


def test_each_figure_has_a_function_of_its_own() -> None:
    ddf = random_field((9, 11, 10))
    mask = torch.rand(2, 1, 9, 11, 10, generator=torch.Generator().manual_seed(3)) > 0.4
    plain, masked = jacobian_statistics(ddf), jacobian_statistics(ddf, mask)
    assert torch.equal(fold_fraction(ddf), plain.fold_fraction)
    assert torch.equal(fold_fraction_interior(ddf), plain.fold_fraction_interior)
    assert torch.equal(sdlogj(ddf), plain.sdlogj) and torch.equal(sdlogj(ddf, mask), masked.sdlogj)
    assert torch.equal(sdlogj_l2r(ddf), plain.sdlogj_l2r)
    assert torch.equal(sdlogj_l2r(ddf, mask), masked.sdlogj_l2r_masked)
    assert torch.equal(masked.sdlogj_l2r, plain.sdlogj_l2r)


@pytest.mark.parametrize("shape", SHAPES)
def test_zero_and_translation_neither_fold_nor_spread(shape: tuple[int, ...]) -> None:
    for value in (0.0, 2.5):
        statistics = jacobian_statistics(torch.full((1, len(shape), *shape), value))
        assert all(entry.item() == pytest.approx(0, abs=1e-7) for entry in statistics)
        assert all(entry.dtype == torch.float64 for entry in statistics)


def test_a_mirrored_volume_is_folded_everywhere() -> None:
    ddf = torch.zeros(1, 3, 8, 8, 8)
    ddf[:, 0] = -2 * torch.arange(8.0).view(8, 1, 1)
    statistics = jacobian_statistics(ddf)
    assert statistics.fold_fraction.item() == 1 and statistics.folded.item() == 512
    assert statistics.fold_fraction_interior.item() == pytest.approx(4**3 / 8**3)
    assert statistics.sdlogj.isnan().all()


def test_float32_fields_give_the_double_precision_figures() -> None:
    ddf = random_field((9, 11, 10), scale=0.1)
    for single, double in zip(jacobian_statistics(ddf.float()), jacobian_statistics(ddf), strict=True):
        torch.testing.assert_close(single, double, rtol=1e-5, atol=1e-9)


def test_the_figures_of_a_slice_are_those_of_its_plane() -> None:
    plane = random_field((9, 11), scale=0.9)
    volume = torch.cat([plane, torch.rand_like(plane[:, :1])], dim=1)[..., None]
    mask = torch.rand(plane[:, :1].shape, generator=torch.Generator().manual_seed(1)).sub(0.4)
    found, expected = jacobian_statistics(volume, mask[..., None]), jacobian_statistics(plane, mask)
    for name in ("fold_fraction", "folded", "sdlogj"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    assert bool((found.fold_fraction > 0).all())
    assert bool(found.sdlogj_l2r.isnan().all())


def test_bad_input_is_refused_in_words() -> None:
    with pytest.raises(InputError, match="The mask has shape"):
        jacobian_statistics(torch.zeros(1, 2, 5, 5), torch.ones(1, 1, 5, 6))
    with pytest.raises(ValueError, match="ddf has shape"):
        jacobian_statistics(torch.zeros(1, 2, 5, 5, 5))


def test_a_field_of_nan_counts_as_folded() -> None:
    assert fold_fraction(torch.full((1, 2, 5, 5), torch.nan)).item() == 1
