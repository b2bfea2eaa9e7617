# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import Tensor

from common.checks import InputError
from common.losses import FoldingLoss
from common.metrics import nda, ndv_lumir


def field(*size: int, scale: float = 1.0, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(batch, len(size), *size, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("slab", [1, 100, 10**6])
def test_value_is_the_challenges_volume(slab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.losses.folding._SLAB_VOXELS", slab)
    ddf = field(6, 7, 5)
    assert FoldingLoss()(ddf).item() == pytest.approx(ndv_lumir(ddf).volume.mean().item())


def test_value_in_two_dimensions_is_the_area_of_inner_pixels() -> None:
    ddf = field(6, 7)
    inner = torch.zeros(2, 1, 6, 7)
    inner[:, :, 1:-1, 1:-1] = 1
    assert FoldingLoss()(ddf).item() == pytest.approx(nda(ddf, inner).volume.mean().item())


@pytest.mark.parametrize("size", [(4, 5), (4, 3, 5)])
def test_gradient_is_exact(size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.losses.folding._SLAB_VOXELS", 20)
    assert torch.autograd.gradcheck(FoldingLoss(), field(*size).requires_grad_())


def test_nothing_folds_in_a_smooth_field() -> None:
    ddf = field(6, 7, 5, scale=0.05).requires_grad_()
    value = FoldingLoss()(ddf)
    value.backward()
    assert value.item() == 0 and ddf.grad is not None and not ddf.grad.any()


def test_reflection_folds_everything() -> None:
    ddf = torch.zeros(1, 3, 5, 6, 7)
    ddf[0, 0] = -2 * torch.arange(5.0)[:, None, None]
    # Eight determinants of -1 and two of -2 at each voxel of the interior, a twelfth of their sum.
    assert FoldingLoss()(ddf).item() == pytest.approx(3 * 4 * 5)


@pytest.mark.parametrize("shape", [(1, 2, 5, 5, 5), (1, 3, 2, 5, 5), (3, 5, 5)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="FoldingLoss got a field of shape"):
        FoldingLoss()(torch.zeros(shape))
