# SPDX-License-Identifier: Apache-2.0
"""Difference penalties against NumPy, MONAI and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.checks import InputError
from common.losses import BendingLoss, GradientLoss


def _field(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(2, 3, 5, 4, 6), (2, 2, 7, 5)])
@pytest.mark.parametrize("penalty", ["l1", "l2"])
def test_gradient_loss_equals_numpy(shape: tuple[int, ...], penalty: str) -> None:
    field = _field(*shape)
    power = 1 if penalty == "l1" else 2
    expected = np.mean([(np.abs(np.diff(field.numpy(), axis=axis)) ** power).mean() for axis in range(2, len(shape))])
    assert GradientLoss(penalty)(field).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shape", [(2, 3, 5, 4, 6), (1, 2, 4, 5)])
def test_bending_loss_equals_numpy(shape: tuple[int, ...]) -> None:
    field, expected = _field(*shape), 0.0
    for a in range(2, len(shape)):
        for b in range(2, len(shape)):
            expected += (np.diff(np.diff(field.numpy(), axis=a), axis=b) ** 2).mean()
    assert BendingLoss()(field).item() == pytest.approx(expected, rel=1e-12)


def test_bending_loss_equals_that_of_monai_for_constant_second_derivatives() -> None:
    monai = pytest.importorskip("monai.losses").BendingEnergyLoss()
    x, y, z = torch.meshgrid(*[torch.arange(6, dtype=torch.float64)] * 3, indexing="ij")
    field = torch.stack([x * x - y * z, 0.3 * x * y + z, y * y - 2 * x * z])[None]
    assert BendingLoss()(field).item() == pytest.approx(monai(field).item(), rel=1e-6)


def test_bending_loss_sees_mixed_oscillations_that_monai_misses() -> None:
    monai = pytest.importorskip("monai.losses").BendingEnergyLoss()
    x, y = torch.meshgrid(*[torch.arange(8, dtype=torch.float64)] * 2, indexing="ij")
    field = ((-1.0) ** (x + y)).expand(1, 2, 8, 8)
    pure = 2 * 4.0**2
    assert monai(field).item() == pytest.approx(pure)
    assert BendingLoss()(field).item() == pytest.approx(pure + 2 * 4.0**2)


@pytest.mark.parametrize("loss", [GradientLoss("l1"), GradientLoss("l2"), BendingLoss()])
@pytest.mark.parametrize("shape", [(2, 3, 4, 3, 5), (1, 2, 5, 4), (1, 3, 1, 4, 2)])
def test_gradients_are_exact(loss: torch.nn.Module, shape: tuple[int, ...]) -> None:
    assert torch.autograd.gradcheck(loss, (_field(*shape).requires_grad_(),))


def test_constant_and_affine_fields_cost_nothing() -> None:
    x, y = torch.meshgrid(torch.arange(5.0), torch.arange(6.0), indexing="ij")
    affine = torch.stack([2 * x - y, x + 3 * y])[None]
    assert GradientLoss("l2")(torch.ones(1, 3, 4, 4, 4)).item() == 0
    assert BendingLoss()(affine).item() == pytest.approx(0, abs=1e-9)
    assert GradientLoss("l1")(affine).item() == pytest.approx((1.5 + 2) / 2)


@pytest.mark.parametrize("penalty", ["l1", "l2"])
def test_many_equal_differences_are_added_up_to_rounding(penalty: str) -> None:
    field = 0.3 * torch.arange(128.0).view(1, 1, -1, 1, 1).repeat(1, 1, 1, 128, 64)
    loss = GradientLoss(penalty)
    assert loss(field).item() == pytest.approx(loss(field.double()).item(), rel=1e-6)


def test_an_axis_of_one_voxel_adds_nothing_and_still_counts() -> None:
    field = _field(1, 3, 4, 5, 1)
    flat = GradientLoss("l2")(field[..., 0]).item()
    assert GradientLoss("l2")(field).item() == pytest.approx(flat * 2 / 3)
    assert BendingLoss()(field).item() == pytest.approx(BendingLoss()(field[..., 0]).item())
    assert GradientLoss("l1")(torch.ones(1, 3, 1, 1, 1)).item() == 0


def test_autocast_keeps_float32_and_non_contiguous_fields_work() -> None:
    field = _field(1, 3, 4, 5, 6).float()
    turned = field.transpose(2, 4).contiguous().transpose(2, 4).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = GradientLoss("l2")(turned)
    value.backward()
    assert value.dtype == torch.float32
    reference = field.clone().requires_grad_()
    GradientLoss("l2")(reference).backward()
    torch.testing.assert_close(turned.grad, reference.grad)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="penalty='l3'"):
        GradientLoss("l3")
    with pytest.raises(ValueError, match=r"field of shape \(1, 1, 4\)"):
        BendingLoss()(torch.zeros(1, 1, 4))


@pytest.mark.parametrize("penalty", ["l1", "l2"])
@pytest.mark.parametrize("size", [(5, 6), (4, 5, 6)])
def test_spacing_makes_slopes_of_differences(size: tuple[int, ...], penalty: str) -> None:
    generator = torch.Generator().manual_seed(0)
    field = torch.randn(2, len(size), *size, dtype=torch.float64, generator=generator).requires_grad_()
    spacing = (1.0, 2.0, 1.5)[: len(size)]
    expected = torch.zeros((), dtype=torch.float64)
    for axis, across in enumerate(spacing):
        for c, along in enumerate(spacing):
            slope = field[:, c].diff(dim=axis + 1) * along / across
            expected = expected + (slope.abs() if penalty == "l1" else slope.square()).mean() / len(size) ** 2
    value = GradientLoss(penalty, spacing)(field)
    torch.testing.assert_close(value, expected)
    gradients = [torch.autograd.grad(x, field)[0] for x in (value, expected)]
    torch.testing.assert_close(*gradients)


def test_spacing_of_cubes_changes_nothing_and_must_fit() -> None:
    field = torch.rand(1, 3, 4, 5, 6)
    assert GradientLoss(spacing=(2.0, 2.0, 2.0))(field) == GradientLoss()(field)
    with pytest.raises(InputError, match=r"got spacing=\(1.0, 1.0\) for a field of shape"):
        GradientLoss(spacing=(1.0, 1.0))(field)


def test_slopes_in_units_of_the_extent_do_not_depend_on_the_voxels() -> None:
    field = _field(2, 3, 4, 5, 6)
    loss = GradientLoss("l2", "extent")
    # Differences of a field in units of the extent, over the size of a voxel in the same units.
    sizes = torch.tensor([4.0, 5.0, 6.0], dtype=torch.float64).view(1, 3, 1, 1, 1)
    expected = sum((field / sizes).diff(dim=axis).square().mean() * field.shape[axis] ** 2 for axis in (2, 3, 4)) / 3
    torch.testing.assert_close(loss(field), torch.as_tensor(expected))
    assert loss(field[..., :4, :4]) == pytest.approx(GradientLoss("l2")(field[..., :4, :4]).item())
    with pytest.raises(InputError, match="spacing='voxels'; give a voxel size along each axis, or 'extent'"):
        GradientLoss("l2", "voxels")
