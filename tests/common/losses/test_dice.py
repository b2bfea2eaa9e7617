# SPDX-License-Identifier: Apache-2.0
"""Dice without one-hot volumes against the one-hot form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from common.losses import SoftDiceLoss, WarpedDiceLoss

CLASSES = 5


def _labels(*shape: int, seed: int = 0) -> torch.Tensor:
    coarse = torch.randint(
        0, CLASSES, (2, 1, *[n // 2 + 1 for n in shape]), generator=torch.Generator().manual_seed(seed)
    )
    return F.interpolate(coarse.double(), size=shape).to(torch.uint8)


def _one_hot(label: torch.Tensor, classes: int = CLASSES) -> torch.Tensor:
    return F.one_hot(label[:, 0].long(), classes).movedim(-1, 1).double()


def _textbook(
    moving: torch.Tensor,
    fixed: torch.Tensor,
    ddf: torch.Tensor,
    include_background: bool = True,
    classes: int = CLASSES,
    squared: bool = False,
) -> torch.Tensor:
    """One-hot, sample with zeros outside, multiply, divide."""
    axes = [torch.arange(n, dtype=ddf.dtype) for n in ddf.shape[2:]]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij")) + ddf
    last = torch.tensor(moving.shape[2:], dtype=ddf.dtype) - 1
    grid = (2 * points.movedim(1, -1) / last - 1).flip(-1)
    warped = F.grid_sample(_one_hot(moving, classes), grid, align_corners=True)
    target = _one_hot(fixed, classes)
    dims = tuple(range(2, ddf.ndim))
    size = warped.square() if squared else warped
    dice = 2 * (warped * target).sum(dims) / (size.sum(dims) + target.sum(dims) + 1e-5)
    return 1 - dice[:, 0 if include_background else 1 :].mean()


def _fields(*shape: int) -> list[torch.Tensor]:
    generator, dims = torch.Generator().manual_seed(1), len(shape)
    noise = torch.randn(2, dims, *shape, generator=generator, dtype=torch.float64)
    # Small, large (mostly outside), far outside, half a voxel.
    return [noise, 10 * noise, 1e6 * noise, 0 * noise + 0.5]


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("include_background", [True, False])
@pytest.mark.parametrize("shape", [(7, 9, 6), (11, 8)])
@pytest.mark.parametrize("which", range(4))
def test_value_and_gradient_equal_the_one_hot_form(
    shape: tuple[int, ...], which: int, include_background: bool, squared: bool
) -> None:
    moving, fixed = _labels(*shape), _labels(*shape, seed=1)
    ours, reference = (_fields(*shape)[which].requires_grad_() for _ in range(2))
    value = WarpedDiceLoss(CLASSES, include_background, squared=squared)(moving, fixed, ours)
    expected = _textbook(moving, fixed, reference, include_background, squared=squared)
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.grad, reference.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shift", [0.0, 1.0, -1.0, 3.0])
@pytest.mark.parametrize("shape", [(5, 9, 3), (9, 17)])
def test_whole_voxel_displacements_take_the_same_one_sided_gradient(shape: tuple[int, ...], shift: float) -> None:
    # With sizes 2**k + 1 the reference's normalised coordinates are exact, so that both see the same cells.
    moving, fixed = _labels(*shape), _labels(*shape, seed=1)
    ours, reference = (
        torch.full((2, len(shape), *shape), shift, dtype=torch.float64, requires_grad=True) for _ in "12"
    )
    WarpedDiceLoss(CLASSES)(moving, fixed, ours).backward()
    _textbook(moving, fixed, reference).backward()
    torch.testing.assert_close(ours.grad, reference.grad, rtol=1e-9, atol=1e-12)


def test_gradient_passes_finite_differences() -> None:
    moving, fixed = _labels(5, 4, 6), _labels(5, 4, 6, seed=1)
    ddf = (_fields(5, 4, 6)[0] * 0.9 + 0.013).requires_grad_()
    assert torch.autograd.gradcheck(lambda field: WarpedDiceLoss(CLASSES)(moving, fixed, field), (ddf,))


def test_result_does_not_depend_on_the_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    moving, fixed, ddf = _labels(7, 9, 6), _labels(7, 9, 6, seed=1), _fields(7, 9, 6)[0]
    results = []
    for slab in (1, 150, 1 << 20):
        monkeypatch.setattr("common.losses.dice._CPU_SLAB", slab)
        field = ddf.clone().requires_grad_()
        value = WarpedDiceLoss(CLASSES)(moving, fixed, field)
        value.backward()
        results.append((value.detach(), field.grad))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_integer_types_and_many_classes_agree(dtype: torch.dtype) -> None:
    moving, fixed, ddf = _labels(7, 6), _labels(7, 6, seed=1), _fields(7, 6)[0]
    expected = _textbook(moving, fixed, ddf)
    torch.testing.assert_close(WarpedDiceLoss(CLASSES)(moving.to(dtype), fixed.to(dtype), ddf), expected)
    torch.testing.assert_close(WarpedDiceLoss(None)(moving.to(dtype), fixed.to(dtype), ddf), expected)
    many = WarpedDiceLoss(300)(moving.to(dtype), fixed.to(dtype), ddf)
    torch.testing.assert_close(many, _textbook(moving, fixed, ddf, classes=300))


def test_moving_grid_may_differ_from_the_fixed_one() -> None:
    moving, fixed, ddf = _labels(9, 5), _labels(7, 6, seed=1), _fields(7, 6)[0]
    torch.testing.assert_close(WarpedDiceLoss(CLASSES)(moving, fixed, ddf), _textbook(moving, fixed, ddf))


def test_identical_labels_overlap_fully_and_absent_classes_cost_their_share() -> None:
    label = _labels(6, 7, 8)
    ddf = torch.zeros(2, 3, 6, 7, 8)
    assert WarpedDiceLoss(CLASSES)(label, label, ddf).item() == pytest.approx(0, abs=1e-5)
    assert WarpedDiceLoss(CLASSES + 5)(label, label, ddf).item() == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("squared", [False, True])
def test_soft_class_maps_are_warped_as_they_are(squared: bool) -> None:
    moving, fixed, ddf = _labels(7, 6), _labels(7, 6, seed=1), _fields(7, 6)[0].float()
    loss = WarpedDiceLoss(CLASSES, squared=squared)
    maps = loss(_one_hot(moving).float(), _one_hot(fixed).float(), ddf)
    torch.testing.assert_close(maps, loss(moving, fixed, ddf))
    with pytest.raises(ValueError, match="num_classes=4 got floating maps"):
        WarpedDiceLoss(4)(_one_hot(moving).float(), _one_hot(fixed).float(), ddf)


def test_autocast_keeps_float32_and_non_contiguous_input_works() -> None:
    moving, fixed, ddf = _labels(6, 7, 8), _labels(6, 7, 8, seed=1), _fields(6, 7, 8)[0].float()
    turned = [t.transpose(2, 4).contiguous().transpose(2, 4) for t in (moving, fixed, ddf)]
    turned[2].requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = WarpedDiceLoss(CLASSES)(*turned)
    value.backward()
    field = ddf.clone().requires_grad_()
    WarpedDiceLoss(CLASSES)(moving, fixed, field).backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(turned[2].grad, field.grad)


def test_positions_that_are_not_numbers_do_not_crash() -> None:
    moving, fixed, ddf = _labels(7, 6), _labels(7, 6, seed=1), _fields(7, 6)[0]
    ddf[0, 0, 0, 0], ddf[0, 1, 2, 2], ddf[1, 0, 3, 3] = float("nan"), float("inf"), -float("inf")
    WarpedDiceLoss(CLASSES)(moving, fixed, ddf.requires_grad_()).backward()


def test_bad_labels_and_shapes_are_refused() -> None:
    label, ddf = _labels(7, 6), torch.zeros(2, 2, 7, 6)
    loss = WarpedDiceLoss(CLASSES)
    with pytest.raises(ValueError, match="moving_label contains the label 9, but num_classes=5"):
        loss(torch.full_like(label, 9), label, ddf)
    with pytest.raises(ValueError, match="fixed_label contains the label -1"):
        loss(label, label.to(torch.int16) - 1 - label.to(torch.int16), ddf)
    with pytest.raises(ValueError, match=r"moving_label has dtype torch.float32"):
        loss(label.float(), label, ddf)
    with pytest.raises(ValueError, match="fixed_label of shape"):
        loss(label, label[..., 1:], ddf)
    with pytest.raises(ValueError, match="moving_label of shape"):
        loss(label[:1], label, ddf)
    with pytest.raises(ValueError, match="ddf of shape"):
        loss(label, label, ddf[:, :1])
    with pytest.raises(ValueError, match="num_classes=1"):
        WarpedDiceLoss(1, include_background=False)


@pytest.mark.parametrize("squared", [True, False])
def test_soft_dice_equals_its_formula_and_its_gradient_is_exact(squared: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    p, t = torch.rand(2, 2, 3, 4, 3, 2, generator=generator, dtype=torch.float64)
    power = 2 if squared else 1
    scores = [
        2 * (p[b, c] * t[b, c]).sum() / ((p[b, c] ** power).sum() + (t[b, c] ** power).sum() + 1e-5)
        for b in (0, 1)
        for c in (1, 2)
    ]
    loss = SoftDiceLoss(include_background=False, squared=squared)
    torch.testing.assert_close(loss(p, t), 1 - torch.stack(scores).mean())
    assert torch.autograd.gradcheck(loss, (p.requires_grad_(), t.requires_grad_()))


def test_soft_dice_computes_in_float32_and_refuses_bad_shapes() -> None:
    maps = torch.rand(1, 3, 4, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert SoftDiceLoss()(maps, maps).dtype == torch.float32
    with pytest.raises(ValueError, match="SoftDiceLoss got pred of shape"):
        SoftDiceLoss()(maps, maps[:, 1:])
    with pytest.raises(ValueError, match="leaves no class"):
        SoftDiceLoss(include_background=False)(maps[:, :1], maps[:, :1])
