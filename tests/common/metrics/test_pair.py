# SPDX-License-Identifier: Apache-2.0
"""One pair whose figures are known: a box that lies one voxel further along the first axis in the moving image."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan

import pytest
import torch
from torch import Tensor

from common.checks import InputError
from common.metrics.pair import Landmarks, RegisteredPair, pair_figures
from common.spatial import warp_labels


def box(first: int, shape: tuple[int, ...]) -> Tensor:
    """(1, 1, *shape) labels: 1 in a bar from ``first`` to two voxels on, 2 at its first edge."""
    label = torch.zeros(1, 1, *shape, dtype=torch.uint8)
    label[0, 0, first : first + 3, 2:5] = 1
    label[0, 0, first, 2] = 2
    return label


def step(shape: tuple[int, ...], voxels: float = 1.0) -> Tensor:
    ddf = torch.zeros(1, len(shape), *shape)
    ddf[:, 0] = voxels
    return ddf


def pair(shape: tuple[int, ...]) -> RegisteredPair:
    points = torch.tensor([[[3.0, 2, 2], [4, 3, 4]]], dtype=torch.float64)[..., : len(shape)]
    further = points + torch.eye(len(shape), dtype=torch.float64)[0]
    return RegisteredPair(
        step(shape),
        moving_label=box(4, shape),
        fixed_label=box(3, shape),
        inverse_ddf=step(shape, -1.0),
        spacing=[2.0, 1.5, 1.0][: len(shape)],
        landmarks={
            "tre": Landmarks(moving=further, fixed=points, spacing=[2.0, 1.5, 1.0][: len(shape)]),
            "tre_volumes": Landmarks(moving=box(4, shape).int(), fixed=box(3, shape).int()),
        },
    )


@pytest.mark.parametrize("shape", [(9, 8), (9, 8, 7)])
def test_the_true_field_brings_everything_together_and_its_opposite_does_not(shape: tuple[int, ...]) -> None:
    found = pair_figures(pair(shape), labels=[1, 2, 7], hd95="millimetres")
    assert found["dice_per_label"] == pytest.approx({1: 1.0, 2: 1.0, 7: nan}, nan_ok=True)
    assert (found["dice"], found["hd95"], found["tre"], found["tre_volumes"]) == (1, 0, 0, 0)
    # A voxel is 2 mm along the first axis; volumes were asked for in voxels.
    assert (found["hd95_before_per_label"][2], found["tre_before"], found["tre_volumes_before"]) == (2, 2, 1)
    assert found["dice_before_per_label"][2] == 0 and 0.5 < found["dice_before_per_label"][1] < 1
    assert (found["fold_fraction"], found["ndv"], found["sdlogj"]) == (0, 0, 0)
    back = pair_figures(replace(pair(shape), ddf=step(shape, -1.0)), labels=[1, 2])
    assert (back["tre"], back["tre_volumes"], back["dice_per_label"][2]) == (4, 2, 0)


@pytest.mark.parametrize("shape", [(9, 8), (9, 8, 7)])
def test_sides_that_are_exchanged_give_other_figures(shape: tuple[int, ...]) -> None:
    one = pair(shape)
    exchanged = replace(one, moving_label=one.fixed_label, fixed_label=one.moving_label)
    assert pair_figures(exchanged, [1, 2])["dice_per_label"][2] == 0
    marks = one.landmarks["tre"]
    opposite = {"tre": replace(marks, moving=marks.fixed, fixed=marks.moving)}
    assert pair_figures(replace(one, landmarks=opposite))["tre"] == 4


def test_a_label_that_warping_loses_is_no_label_that_was_missing() -> None:
    shape = (9, 8, 7)
    lost = pair_figures(replace(pair(shape), ddf=step(shape, 20.0)), [1, 2], "voxels")
    assert lost["dice_per_label"] == {1: 0, 2: 0} and lost["hd95_per_label"] == {1: inf, 2: inf}


def test_arrays_of_another_grid_are_sampled_where_the_pair_says() -> None:
    shape = (9, 8, 7)
    one = pair(shape)
    shifted = torch.nn.functional.pad(box(4, shape), (0, 0, 0, 0, 2, 0))
    placed = replace(
        one, moving_label=shifted, to_moving=step(shape, 3.0), to_moving_before=step(shape, 2.0), landmarks={}
    )
    names = ("dice", "dice_before", "dice_per_label", "dice_before_per_label", "hd95", "hd95_before")
    found, expected = (pair_figures(each, [1, 2], "voxels") for each in (placed, one))
    assert {name: found[name] for name in names} == {name: expected[name] for name in names}
    unplaced = pair_figures(replace(placed, to_moving_before=None), [1, 2], "voxels")
    assert not {"dice_before", "hd95_before"} & set(unplaced) and unplaced["dice"] == 1


def test_the_field_is_judged_in_the_foreground_alone() -> None:
    shape = (9, 8, 7)
    ddf = step(shape)
    ddf[0, 0, 1] = 4.0
    foreground = torch.ones(1, 1, *shape, dtype=torch.bool)
    foreground[:, :, :4] = False
    everywhere, inside = (pair_figures(RegisteredPair(ddf, foreground=where)) for where in (None, foreground))
    assert everywhere["ndv"] > inside["ndv"] == 0 and everywhere["sdlogj"] > inside["sdlogj"] == 0
    assert everywhere["fold_fraction"] == inside["fold_fraction"] > 0
    assert set(inside) == {"fold_fraction", "sdlogj", "sdlogj_l2r", "sdlogj_l2r_masked", "ndv"}


def test_millimetres_without_a_spacing_are_refused() -> None:
    with pytest.raises(InputError, match="needs the spacing"):
        pair_figures(replace(pair((9, 8)), spacing=None), [1], "millimetres")


@pytest.mark.parametrize(
    ("slices", "missing"),
    [(1, {"ndv": 3, "sdlogj_l2r": 5, "sdlogj_l2r_masked": 5}), (2, {"ndv": 3, "sdlogj_l2r": 5, "sdlogj_l2r_masked": 5})]
    + [(4, {"sdlogj_l2r": 5, "sdlogj_l2r_masked": 5}), (5, {})],
)
def test_few_slices_have_what_is_defined_and_say_what_is_not(slices: int, missing: dict[str, int]) -> None:
    thin = {
        name: getattr(pair((9, 8)), name).unsqueeze(-1).repeat_interleave(slices, -1)
        for name in ("moving_label", "fixed_label")
    }
    found = pair_figures(RegisteredPair(step((9, 8, slices)), **thin), [1, 2], "voxels")
    assert (found["dice"], found["hd95"], found["fold_fraction"], found["sdlogj"]) == (1, 0, 0, 0)
    assert found["dice_before"] < 1 and found["hd95_before"] >= 1
    undefined = found.get("undefined", {})
    assert {name: int(reason.split()[1]) for name, reason in undefined.items()} == missing
    assert all(reason.endswith(f"but the field has {slices}") for reason in undefined.values())
    assert {name for name, value in found.items() if isinstance(value, float) and value != value} == set(missing)


def test_a_slice_keeps_its_labels_until_it_leaves_them() -> None:
    label = torch.randint(1, 9, (1, 1, 6, 5, 1), generator=torch.Generator().manual_seed(0))
    for voxels, kept in ((0.3, True), (-0.5, True), (0.7, False)):
        ddf = torch.zeros(1, 3, 6, 5, 1)
        ddf[:, 2] = voxels
        assert torch.equal(warp_labels(label, ddf), label if kept else torch.zeros_like(label))
