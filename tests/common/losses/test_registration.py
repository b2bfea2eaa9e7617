# SPDX-License-Identifier: Apache-2.0
"""The weighted sum of terms over levels, against the same sum written out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.checks import InputError
from common.losses import (
    GradientInverseConsistencyLoss,
    GradientLoss,
    ImagePyramid,
    RegistrationLoss,
    SoftDiceLoss,
    Term,
    WarpedDiceLoss,
    image_pyramid,
    label_pyramid,
)
from common.networks import EOIR
from common.spatial import field_map, warp, warp_labels

CLASSES = 3
SIZES = [(16, 12, 8), (8, 6, 4), (4, 3, 2)]


class Mean(nn.Module):
    """Something that needs nothing but one tensor."""

    def forward(self, x: Tensor) -> Tensor:
        """Mean of the tensor."""
        return x.mean()


class Product(nn.Module):
    """Mean of a field, times a number of its level."""

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        """Mean times scale."""
        return x.mean() * scale


class Agreement(nn.Module):
    """Share of voxels with the same label."""

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Without a gradient."""
        return (one == other).float().mean()


class Displaced(nn.Module):
    """How far a map takes the voxel (1, 1, ...), mean over components and batch."""

    def __init__(self, dims: int = 3) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, there: Any) -> Tensor:
        """Of a batch of two."""
        points = torch.ones(2, 1, self.dims)
        return (there(points) - points).mean()


def outputs_of(sizes: Sequence[tuple[int, ...]] = SIZES, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    pyramid, velocity = (
        [torch.randn((2, 3, *size), generator=generator).requires_grad_() for size in sizes] for _ in range(2)
    )
    return {"ddf": pyramid[0], "pyramid": pyramid, "velocity": velocity}


def targets_of(size: tuple[int, ...] = SIZES[0], seed: int = 1) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand((2, 2, 1, *size), generator=generator)
    labels = torch.randint(0, CLASSES, (2, 2, 1, *size), generator=generator)
    named = {"moving": images[0], "fixed": images[1], "moving_label": labels[0], "fixed_label": labels[1]}
    return {**named, "moving_id": ["a", "b"], "affine": torch.eye(4)}


def similarity(weight: float = 1.0) -> Term:
    return Term(nn.MSELoss(), ["warped", "fixed"], weight)


def overlap(weight: float = 1.0) -> Term:
    return Term(WarpedDiceLoss(CLASSES), ["moving_label", "fixed_label", "ddf"], weight)


def smoothness(weight: float = 1.0) -> Term:
    return Term(GradientLoss(), ["velocity"], weight)


def test_single_level_is_the_weighted_sum_of_its_terms() -> None:
    outputs, targets = outputs_of(), targets_of()
    loss = RegistrationLoss(
        {"mse": similarity(2.0), "dice": overlap(0.5), "smooth": Term(GradientLoss("l1"), ["ddf"], 3.0)}
    )
    total = loss(outputs, targets)
    ddf = outputs["ddf"]
    mse = (warp(targets["moving"], ddf, padding_mode="zeros") - targets["fixed"]).square().mean()
    dice = WarpedDiceLoss(CLASSES)(targets["moving_label"], targets["fixed_label"], ddf)
    smooth = GradientLoss("l1")(ddf)
    torch.testing.assert_close(total, 2.0 * mse + 0.5 * dice + 3.0 * smooth)
    assert total.ndim == 0
    assert loss.terms_of_last_call() == pytest.approx({"mse": mse.item(), "dice": dice.item(), "smooth": smooth.item()})


def test_total_of_several_levels_is_the_doubly_weighted_sum_on_reduced_images() -> None:
    outputs, targets, level_weights = outputs_of(), targets_of(), (1.0, 0.5, 0.25)
    loss = RegistrationLoss(
        {"mse": similarity(2.0), "smooth": smoothness(0.1), "dice": overlap(0.3)},
        level_weights,
        ImagePyramid("isotropic", num_classes=CLASSES),
    )
    total = loss(outputs, targets)
    moving, fixed = (image_pyramid(targets[name], 3, "isotropic") for name in ("moving", "fixed"))
    moving_label, fixed_label = (
        [targets[name], *label_pyramid(targets[name], CLASSES, 3, "isotropic")]
        for name in ("moving_label", "fixed_label")
    )
    terms = {name: torch.zeros(()) for name in ("mse", "smooth", "dice")}
    for i, weight in enumerate(level_weights):
        ddf = outputs["pyramid"][i]
        terms["mse"] = terms["mse"] + weight * F.mse_loss(warp(moving[i], ddf, padding_mode="zeros"), fixed[i])
        terms["smooth"] = terms["smooth"] + weight * GradientLoss()(outputs["velocity"][i])
        terms["dice"] = terms["dice"] + weight * WarpedDiceLoss(CLASSES)(moving_label[i], fixed_label[i], ddf)
    torch.testing.assert_close(total, 2.0 * terms["mse"] + 0.1 * terms["smooth"] + 0.3 * terms["dice"])
    assert loss.terms_of_last_call() == pytest.approx({name: value.item() for name, value in terms.items()})
    total.backward()
    assert all(x.grad is not None and x.grad.any() for x in [*outputs["pyramid"], *outputs["velocity"]])


def test_labels_of_several_levels_are_those_of_one_hot_maps() -> None:
    outputs, targets = outputs_of(), targets_of()
    loss = RegistrationLoss({"dice": overlap()}, (1.0, 1.0, 1.0), ImagePyramid("isotropic", num_classes=CLASSES))
    one_hots = (F.one_hot(targets[n][:, 0], CLASSES).movedim(-1, 1).float() for n in ("moving_label", "fixed_label"))
    levels = (image_pyramid(one_hot, 3, "isotropic") for one_hot in one_hots)
    expected = sum(
        SoftDiceLoss()(warp(moving, ddf, padding_mode="zeros"), fixed)
        for moving, fixed, ddf in zip(*levels, outputs["pyramid"], strict=True)
    )
    torch.testing.assert_close(loss(outputs, targets), torch.as_tensor(expected))


def test_each_level_has_the_loss_made_for_it() -> None:
    class Constant(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def forward(self, x: Tensor) -> Tensor:
            return x.new_tensor(self.value)

    term = Term([Constant(1.0), Constant(10.0), Constant(100.0)], ["ddf"])
    loss = RegistrationLoss({"constant": term}, (1.0, 2.0, 3.0), ImagePyramid())
    assert loss(outputs_of(), targets_of()).item() == 1 + 20 + 300


def test_fewer_weights_than_levels_look_at_the_finest_ones() -> None:
    outputs = outputs_of()
    loss = RegistrationLoss({"mean": Term(Mean(), ["ddf"])}, (1.0, 1.0), ImagePyramid())
    expected = outputs["pyramid"][0].mean() + outputs["pyramid"][1].mean()
    torch.testing.assert_close(loss(outputs, targets_of()), expected)


def test_term_of_weight_zero_is_left_out() -> None:
    loss = RegistrationLoss({"mse": similarity(), "never": Term(Mean(), ["not there"], 0)})
    loss(outputs_of(), targets_of())
    assert list(loss.terms_of_last_call()) == ["mse"]


def test_terms_are_reported_in_their_order_as_plain_numbers_of_the_last_call() -> None:
    loss = RegistrationLoss({"b": similarity(), "a": smoothness(7.0)})
    assert loss.terms_of_last_call() == {}
    for seed in (0, 5):
        outputs = outputs_of(seed=seed)
        loss(outputs, targets_of())
    values = loss.terms_of_last_call()
    assert list(values) == ["b", "a"] and all(type(value) is float for value in values.values())
    assert values["a"] == pytest.approx(GradientLoss()(outputs["velocity"][0]).item())


def test_single_level_takes_one_velocity_as_well_as_a_list() -> None:
    outputs = outputs_of()
    loss = RegistrationLoss({"smooth": smoothness()})
    expected = loss(outputs, targets_of())
    torch.testing.assert_close(loss({**outputs, "velocity": outputs["velocity"][0]}, targets_of()), expected)


def test_levels_of_a_network_without_velocity() -> None:
    outputs = outputs_of()
    del outputs["velocity"]
    assert RegistrationLoss({"mse": similarity()}, (1.0, 1.0), ImagePyramid())(outputs, targets_of()).isfinite()
    with pytest.raises(ValueError, match="needs velocity"):
        RegistrationLoss({"smooth": smoothness()}, (1.0, 1.0), ImagePyramid())(outputs, targets_of())


@pytest.mark.parametrize("sizes", [SIZES, SIZES[:1]])
def test_odd_sizes_equal_explicitly_padded_inputs(sizes: list[tuple[int, ...]]) -> None:
    outputs, targets = outputs_of(sizes), targets_of((13, 12, 7))
    names = ("moving", "fixed", "moving_label", "fixed_label")
    padded = {name: F.pad(targets[name], (0, 1, 0, 0, 0, 3)) for name in names}
    terms = {"mse": similarity(), "dice": overlap()}
    loss = RegistrationLoss(terms, [1.0] * len(sizes), ImagePyramid("isotropic", num_classes=CLASSES))
    torch.testing.assert_close(loss(outputs, targets), loss(outputs, padded), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_total_is_float32_under_autocast(dtype: torch.dtype) -> None:
    outputs, targets = outputs_of(), targets_of()
    terms = {"mse": similarity(), "smooth": smoothness(), "dice": overlap()}
    loss = RegistrationLoss(terms, (1.0, 0.5), ImagePyramid(num_classes=CLASSES))
    images = {name: targets[name].to(dtype) for name in ("moving", "fixed")}
    expected = loss(outputs, {**targets, **{name: image.float() for name, image in images.items()}})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = loss(outputs, {**targets, **images})
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, expected, rtol=0, atol=0)


@pytest.mark.parametrize("variant", ["plain", "oasis"])
def test_network_of_odd_size_can_be_trained_on_all_levels(variant: Any) -> None:
    torch.manual_seed(0)
    net = EOIR(variant=variant, start_channel=2, int_steps=2)
    targets = targets_of((33, 20, 18))
    outputs = net(torch.cat([targets["moving"], targets["fixed"]], 1), details=True)
    pyramid = ImagePyramid(num_classes=CLASSES)
    loss = RegistrationLoss({"mse": similarity(), "smooth": smoothness(), "dice": overlap()}, [1.0] * 4, pyramid)
    loss(outputs, targets).backward()
    for level in range(4):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.estimators[level].parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.encoder.parameters())


def test_two_dimensions() -> None:
    generator = torch.Generator().manual_seed(0)
    ddf = torch.randn((1, 2, 9, 8), generator=generator)
    images = torch.rand((2, 1, 1, 9, 8), generator=generator)
    loss = RegistrationLoss({"mse": similarity()})
    expected = F.mse_loss(warp(images[0], ddf, padding_mode="zeros"), images[1])
    torch.testing.assert_close(loss({"ddf": ddf}, {"moving": images[0], "fixed": images[1]}), expected)


def test_every_list_of_the_network_is_handed_out_level_by_level() -> None:
    outputs = outputs_of()
    outputs["inverse_pyramid"] = [2 * field for field in outputs["pyramid"]]
    outputs["inverse_ddf"] = outputs["inverse_pyramid"][0]
    outputs["scale"] = [torch.tensor(3.0), torch.tensor(5.0), torch.tensor(7.0)]
    product = Term(Product(), ["inverse_ddf", "scale"])
    loss = RegistrationLoss({"product": product}, (1.0, 0.5), ImagePyramid())
    expected = 3 * outputs["inverse_pyramid"][0].mean() + 0.5 * 5 * outputs["inverse_pyramid"][1].mean()
    torch.testing.assert_close(loss(outputs, targets_of()), expected)
    single = RegistrationLoss({"product": product})
    torch.testing.assert_close(single(outputs, targets_of()), 3 * outputs["inverse_ddf"].mean())
    with pytest.raises(InputError, match="3 level weights do not fit a network whose scale has 2 levels"):
        short = {**outputs, "scale": outputs["scale"][:2]}
        RegistrationLoss({"product": product}, (1, 1, 1), ImagePyramid())(short, targets_of())
    with pytest.raises(InputError, match="needs scale"):
        RegistrationLoss({"product": product}, (1, 1), ImagePyramid())(
            {**outputs, "scale": torch.ones(())}, targets_of()
        )


@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("spatial", [(9, 8), (7, 6, 5)])
def test_both_directions(spatial: tuple[int, ...], padding: str) -> None:
    generator = torch.Generator().manual_seed(0)
    there, back = torch.randn((2, 2, len(spatial), *spatial), generator=generator)
    moving, fixed = torch.rand((2, 2, 1, *spatial), generator=generator)
    labels = {side: torch.randint(0, CLASSES, (2, 1, *spatial), generator=generator) for side in ("moving", "fixed")}
    terms = {
        "there": Term(nn.MSELoss(), ["warped", "fixed"]),
        "back": Term(nn.MSELoss(), ["warped_back", "moving"], 0.5),
        "labels": Term(Agreement(), ["warped_label", "fixed_label"]),
    }
    loss = RegistrationLoss(terms, padding_mode=padding)
    targets = {"moving": moving, "fixed": fixed, **{f"{side}_label": label for side, label in labels.items()}}
    loss({"ddf": there, "inverse_ddf": back}, targets)
    expected = {
        "there": F.mse_loss(warp(moving, there, padding_mode=padding), fixed),
        "back": F.mse_loss(warp(fixed, back, padding_mode=padding), moving),
        "labels": (warp_labels(labels["moving"], there) == labels["fixed"]).float().mean(),
    }
    assert loss.terms_of_last_call() == pytest.approx({name: float(value) for name, value in expected.items()})
    assert set(loss.details) == {*targets, "ddf", "inverse_ddf"}


def test_a_network_is_asked_for_what_its_terms_look_at() -> None:
    smooth = {"smooth": smoothness(), "back": Term(nn.MSELoss(), ["warped_back", "moving"])}
    assert set(RegistrationLoss(smooth).details) == {"velocity", "fixed", "inverse_ddf", "moving"}
    several = RegistrationLoss({**smooth, "mse": similarity()}, (1, 1), ImagePyramid())
    assert {"pyramid", "inverse_pyramid", "velocity"} <= set(several.details)
    assert "pyramid" in RegistrationLoss({"smooth": smoothness()}, (1, 1), ImagePyramid()).details
    assert "map" in RegistrationLoss({"map": Term(Displaced(), ["map"])}).details


def test_fields_that_stand_in_for_maps_are_named_by_a_pattern_and_need_not_be_there() -> None:
    terms = {"there": Term(Displaced(2), ["map"]), "back": Term(Displaced(2), ["inverse_map"])}
    loss = RegistrationLoss(terms)
    assert set(loss.details) == {"map", "inverse_map", "ddf*", "inverse_ddf*"}
    assert "ddf" in RegistrationLoss({**terms, "smooth": Term(nn.Identity(), ["ddf"])}).details
    maps = {"map": lambda points: points + 2, "inverse_map": lambda points: points + 3}
    assert loss(maps, {"draw": torch.tensor([[0, 1, 2], [0, 1, 3]])}).item() == pytest.approx(5)


@pytest.mark.parametrize("spatial", [(9, 8), (7, 6, 5)])
def test_a_term_on_points_takes_a_map_or_a_dense_field(spatial: tuple[int, ...]) -> None:
    ddf = torch.randn((2, len(spatial), *spatial), generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets = {"draw": torch.tensor([[0, 1, 2], [0, 1, 3]])}
    displaced = Displaced(len(spatial))
    terms = {"there": Term(displaced, ["map"]), "back": Term(displaced, ["inverse_map"])}
    loss = RegistrationLoss(terms)
    moved = loss({"ddf": ddf, "inverse_ddf": -ddf}, targets)
    assert moved.item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(
        loss._last["there"], ddf.detach()[:, :, 1, 1].reshape(2, len(spatial), -1)[..., len(spatial) - 2].mean()
    )
    own = loss({"ddf": ddf, "map": lambda points: points + 2, "inverse_map": lambda points: points + 3}, targets)
    assert own.item() == pytest.approx(5)


def test_a_penalty_at_random_points_looks_at_every_level_at_the_same_draw() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes, draw = [(8, 12), (4, 6)], torch.tensor([[0, 1, 2]])
    there, back = ([torch.randn((1, 2, *size), generator=generator) for size in sizes] for _ in range(2))
    images = [torch.zeros(1, 1, *size) for size in sizes]
    penalty = GradientInverseConsistencyLoss()
    loss = RegistrationLoss(
        {"consistency": Term(penalty, ["map", "inverse_map", "fixed", "draw"])}, (1, 0.5), ImagePyramid()
    )
    found = loss({"pyramid": there, "inverse_pyramid": back, "ddf": there[0]}, {"fixed": images[0], "draw": draw})
    fine, coarse = (penalty(field_map(a), field_map(b), x, draw) for a, b, x in zip(there, back, images, strict=True))
    torch.testing.assert_close(found, fine + 0.5 * coarse)


def test_the_slope_of_a_map_of_points_can_be_penalised() -> None:
    class Slope(nn.Module):
        def forward(self, there: Any) -> Tensor:
            points = torch.tensor([[[1.3, 2.4, 1.7]]], requires_grad=True)
            (slope,) = torch.autograd.grad(there(points).sum(), points, create_graph=True)
            return (slope - 1).square().sum()

    ddf = torch.randn((1, 3, 5, 6, 7), generator=torch.Generator().manual_seed(0)).requires_grad_()
    RegistrationLoss({"slope": Term(Slope(), ["map"])})({"ddf": ddf}, {}).backward()
    assert ddf.grad is not None and (ddf.grad != 0).sum() == 3 * 8


def test_missing_label_is_named() -> None:
    targets = targets_of()
    del targets["moving_label"], targets["fixed_label"]
    loss = RegistrationLoss({"mse": similarity(), "dice": overlap()})
    with pytest.raises(InputError, match="needs moving_label, fixed_label, which neither the network nor the data"):
        loss(outputs_of(), targets)


def pair_of(batch: Any, place: int) -> Any:
    """One pair of a batch of outputs or targets."""
    if isinstance(batch, dict):
        return {name: pair_of(value, place) for name, value in batch.items()}
    return [pair_of(value, place) for value in batch] if isinstance(batch, list) else batch[place : place + 1]


@pytest.mark.parametrize("levels", [1, 3])
def test_a_batch_in_which_a_pair_lacks_labels_is_the_mean_of_its_pairs(levels: int) -> None:
    pyramid = ImagePyramid("isotropic", num_classes=CLASSES)
    terms = {"mse": similarity(2.0), "dice": overlap(0.5)}
    loss = RegistrationLoss(terms, [0.5**level for level in range(levels)], pyramid)
    outputs, names = outputs_of(), ("moving", "fixed", "moving_label", "fixed_label")
    targets = {name: targets_of()[name] for name in names}
    total = loss(outputs, {**targets, "labelled": [False, True]})
    seen = loss.terms_of_last_call()
    (gradient,) = torch.autograd.grad(total, outputs["ddf"])

    without = {name: targets[name][:1] for name in ("moving", "fixed")}
    first = loss(pair_of(outputs, 0), {**without, "labelled": [False]})
    assert list(loss.terms_of_last_call()) == ["mse"]
    second = loss(pair_of(outputs, 1), pair_of(targets, 1))
    torch.testing.assert_close(total, (first + second) / 2)
    torch.testing.assert_close(gradient, torch.autograd.grad((first + second) / 2, outputs["ddf"])[0])
    # What is shown is the mean over the pairs that have labels.
    assert seen["dice"] == pytest.approx(loss.terms_of_last_call()["dice"])


def test_a_batch_of_labels_alone_that_no_pair_has_gives_no_gradient() -> None:
    outputs, targets = outputs_of(), targets_of()
    images = {name: targets[name] for name in ("moving", "fixed")}
    loss = RegistrationLoss({"dice": overlap()})
    (gradient,) = torch.autograd.grad(loss(outputs, {**images, "labelled": [False, False]}), outputs["ddf"])
    assert not gradient.any() and loss.terms_of_last_call() == {}


def test_a_map_of_points_cannot_be_taken_for_some_pairs_only() -> None:
    class Labelled(nn.Module):
        def forward(self, there: Any, label: Tensor) -> Tensor:
            """Of nothing."""
            return there(torch.ones(len(label), 1, 3)).mean()

    loss = RegistrationLoss({"points": Term(Labelled(), ["map", "fixed_label"])})
    with pytest.raises(InputError, match="of labels and of a map of points needs labels of all pairs"):
        loss(outputs_of(), {**targets_of(), "labelled": [True, False]})


def test_levels_without_a_pyramid_are_refused() -> None:
    with pytest.raises(InputError, match="2 level weights need a pyramid"):
        RegistrationLoss({"mse": similarity()}, (1.0, 0.5))


def test_more_weights_than_levels_are_refused() -> None:
    loss = RegistrationLoss({"mse": similarity()}, [1.0] * 4, ImagePyramid())
    with pytest.raises(InputError, match="4 level weights do not fit a network with 3 levels"):
        loss(outputs_of(), targets_of())


def test_more_losses_than_levels_are_refused() -> None:
    with pytest.raises(InputError, match="Term 'mse' has 4 losses for 3 level weights"):
        RegistrationLoss({"mse": Term([nn.MSELoss()] * 4, ["warped", "fixed"])}, (1, 1, 1), ImagePyramid())


def test_last_loss_of_a_term_serves_the_coarser_levels() -> None:
    calls: list[str] = []

    class Named(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, ddf: Tensor) -> Tensor:
            calls.append(self.name)
            return ddf.mean()

    loss = RegistrationLoss({"mean": Term([Named("fine"), Named("coarse")], ["ddf"])}, (1, 1, 1), ImagePyramid())
    image = torch.rand(1, 1, 8, 8, 8)
    fields = [torch.zeros(1, 3, n, n, n) for n in (8, 4, 2)]
    loss({"ddf": fields[0], "pyramid": fields, "velocity": fields}, {"moving": image, "fixed": image})
    assert calls == ["fine", "coarse", "coarse"]


@pytest.mark.parametrize("terms", [{}, {"mse": similarity(0.0)}])
def test_a_loss_without_terms_is_refused(terms: dict[str, Term]) -> None:
    with pytest.raises(InputError, match="No term of the loss has a weight"):
        RegistrationLoss(terms)
