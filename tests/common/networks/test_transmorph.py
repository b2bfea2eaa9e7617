# SPDX-License-Identifier: Apache-2.0
"""TransMorph as a whole: sizes, forms, what is sampled, what is stored, autocast, parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from common.checks import InputError
from common.networks import TransMorph
from common.networks.transmorph import CONFIGURATIONS
from common.spatial import warp

from .conftest import pair

FORMS: list[dict[str, Any]] = [
    {},
    {"output_resolution": "half", "align_corners": False},
    {"conv_skip": False},
    {"trans_skip": False},
]


def network(spatial_dims: int = 3, **arguments: Any) -> TransMorph:
    """A small network whose displacements, unlike those of a fresh one, amount to voxels."""
    torch.manual_seed(0)
    net = TransMorph(spatial_dims, **{**CONFIGURATIONS["tiny"], **arguments})
    net.head.conv.weight.data.normal_(std=0.3)
    return net.eval()


@pytest.mark.parametrize("spatial", [(17, 9, 5), (8, 16, 8), (1, 12, 3), (21, 9), (2, 3)])
@pytest.mark.parametrize("form", FORMS[:2])
def test_displacement_has_the_size_of_the_image_whatever_it_is(spatial: tuple[int, ...], form: dict[str, Any]) -> None:
    with torch.no_grad():
        ddf = network(len(spatial), **form)(pair(*spatial, batch=2))
    assert ddf.shape == (2, len(spatial), *spatial)
    assert ddf.dtype == torch.float32 and ddf.isfinite().all() and ddf.abs().max() > 0.1


@pytest.mark.parametrize("form", FORMS)
def test_image_of_odd_size_is_treated_as_padded_with_zeros_at_the_far_ends(form: dict[str, Any]) -> None:
    net, image = network(**form), pair(9, 16, 5)
    with torch.no_grad():
        padded = net(F.pad(image, (0, 3, 0, 0, 0, 7)))
        torch.testing.assert_close(net(image), padded[:, :, :9, :, :5], rtol=0, atol=0)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_batch_equals_its_members(spatial_dims: int) -> None:
    net, image = network(spatial_dims).double(), pair(*(12, 16, 8)[:spatial_dims], batch=2).double()
    with torch.no_grad():
        torch.testing.assert_close(net(image), torch.cat([net(one[None]) for one in image]))


def test_the_published_warp_takes_centres_for_outer_edges_and_the_field_says_where_it_looks() -> None:
    net, image = network(output_resolution="half", align_corners=False).double(), pair(16, 24, 8).double()
    with torch.no_grad():
        outputs = net(image, details=True)
    size, axes = image.shape[2:], [torch.arange(n, dtype=torch.float64) for n in image.shape[2:]]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None] + outputs["flow"]
    grid = torch.stack([2 * places[:, k] / (n - 1) - 1 for k, n in enumerate(size)][::-1], dim=-1)
    published = F.grid_sample(image[:, :1], grid, align_corners=False)
    torch.testing.assert_close(warp(image[:, :1], outputs["ddf"], padding_mode="zeros"), published)
    assert (published - image[:, :1]).abs().max() > 0.05


def test_aligned_corners_have_one_field() -> None:
    outputs = network()(pair(8, 8, 8), details=True)
    assert torch.equal(outputs["flow"], outputs["ddf"])


@pytest.mark.parametrize("form", FORMS)
def test_gradients_reach_every_parameter_and_are_those_of_finite_differences(form: dict[str, Any]) -> None:
    net, image = network(**form).double(), pair(8, 8, 8).double()
    weight = torch.randn(3, 8, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (net(image) * weight).sum().backward()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None, name
            direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
            values = []
            for step in (1e-6, -2e-6):
                parameter.add_(direction, alpha=step)
                values.append((net(image) * weight).sum())
            parameter.add_(direction, alpha=1e-6)
            slope = (parameter.grad * direction).sum()
            # Steps of 1e-6 to both sides, sums of 1536 float64 products: off by up to 4e-6, of slopes up to 900.
            torch.testing.assert_close(slope, (values[0] - values[1]) / 2e-6, rtol=1e-6, atol=2e-5, msg=name)


def test_float32_is_float64_but_for_rounding() -> None:
    net, image = network(embed_dim=8, head_channels=8), pair(32, 48, 32)
    with torch.no_grad():
        fields = [net.to(dtype)(image.to(dtype)).double() for dtype in (torch.float32, torch.float64)]
    assert fields[1].abs().max() > 1
    # float32: 1e-6 of displacements up to 18 voxels, rounding of all the layers.
    torch.testing.assert_close(*fields, rtol=0, atol=5e-5)


def test_autocast_keeps_fields_in_float32_and_a_fresh_head_speaks() -> None:
    torch.manual_seed(0)
    net, image = TransMorph(**CONFIGURATIONS["tiny"]), pair(16, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = net(image, details=True)
    assert outputs["ddf"].dtype == torch.float32 and 1e-6 < outputs["ddf"].abs().max() < 1e-3
    outputs["ddf"].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_samples_skip_branches_in_training_alone() -> None:
    net, image = network(drop_path=0.5), pair(8, 8, 8)
    with torch.no_grad():
        assert torch.equal(net(image), net(image))
        net.train()
        torch.manual_seed(0)
        fields = [net(image) for _ in range(8)]
        assert any(not torch.equal(fields[0], field) for field in fields[1:])
        torch.manual_seed(0)
        assert torch.equal(net(image), fields[0])


def test_what_is_dropped_is_drawn_in_training_and_for_the_deviation_alone() -> None:
    net, image = network(2, dropout=0.3, drop_path=0.0, samples=3), pair(8, 16, batch=2)
    plain = network(2, drop_path=0.0)
    plain.load_state_dict(net.state_dict())
    with torch.no_grad():
        outputs = net(image, details=True)
        torch.testing.assert_close(outputs["ddf"], plain(image))
        net.train()
        assert not torch.equal(net(image), net(image))
    assert "deviation" not in plain(image, details=True)
    assert outputs["deviation"].shape == (2, 2, 8, 16) and outputs["deviation"].amin() > 0


def test_deviation_of_a_pair_is_the_same_each_time_in_any_batch_and_any_mode() -> None:
    net, image = network(2, dropout=0.3, drop_path=0.5, samples=3), pair(8, 16, batch=2)
    expected = net(image, ["deviation"])["deviation"]
    torch.manual_seed(3)
    assert not expected.requires_grad
    assert torch.equal(net(image[1:], ["deviation"])["deviation"], expected[1:])
    net.train()
    assert torch.equal(net(image, ["deviation"])["deviation"], expected)
    assert all(module.training for module in net.modules())


@pytest.mark.parametrize("part", ["attn_drop", "proj_drop", "drop1", "dropout"])
def test_each_kind_of_dropout_makes_the_displacement_scatter(part: str) -> None:
    net = network(2, dropout=0.3, samples=2)
    kept = [module for name, module in net.named_modules() if name.endswith(part)]
    assert kept
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout | torch.nn.Dropout2d) and module not in kept:
            module.p = 0.0
    assert net(pair(8, 16), ["deviation"])["deviation"].amax() > 1e-3


def test_grids_and_indices_are_no_part_of_the_state_dict() -> None:
    assert set(network().state_dict()) == {name for name, _ in network().named_parameters()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spatial_dims": 4}, "expected 2 or 3"),
        ({"depths": (2, 2)}, "as many of the one as of the other"),
        ({"depths": (), "heads": ()}, "as many of the one as of the other"),
        ({"depths": (2, 0, 2, 2)}, "whole number from 1"),
        ({"embed_dim": 6}, "the heads divide"),
        ({"embed_dim": 3, "heads": (1, 1, 1, 1)}, "an even number of channels"),
        ({"window": (5, 6)}, "for each of the 3 axes"),
        ({"output_resolution": "quarter"}, "expected 'full' or 'half'"),
        ({"drop_path": 1.0}, "a probability"),
        ({"dropout": -0.1}, "a probability"),
        ({"samples": 1}, "whole number from 2"),
        ({"head_channels": "16"}, "whole number from 1"),
    ],
)
def test_arguments_that_make_no_network_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TransMorph(**arguments)
