# SPDX-License-Identifier: Apache-2.0
"""TransMorphTVF: sizes, steps in time, both variants, what batches are measured for, parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.blocks.remade import stored
from common.blocks.skip_decoder import doubled
from common.checks import InputError
from common.networks import TransMorphTVF, transmorph_tvf
from common.networks.transmorph_tvf import CONFIGURATIONS
from common.spatial import warp
from common.spatial.outer_edges import integrate_at_edges, sampled_at_edges

from .conftest import pair

VARIANTS = ("oasis", "lumir")


def network(spatial_dims: int = 3, **arguments: Any) -> TransMorphTVF:
    """A small network whose displacements, unlike those of a fresh one, amount to voxels."""
    torch.manual_seed(0)
    net = TransMorphTVF(spatial_dims, **{**CONFIGURATIONS["tiny"], **arguments})
    for name, parameter in net.named_parameters():
        if ".head.conv.weight" in name:
            parameter.data.normal_(std=0.2)
    return net.eval()


@pytest.mark.parametrize("spatial", [(17, 9, 5), (1, 12, 3), (21, 9)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_displacement_has_the_size_of_the_image_whatever_it_is(spatial: tuple[int, ...], variant: str) -> None:
    with torch.no_grad():
        ddf = network(len(spatial), variant=variant)(pair(*spatial, batch=2))
    assert ddf.shape == (2, len(spatial), *spatial)
    assert ddf.dtype == torch.float32 and ddf.isfinite().all() and ddf.abs().max() > 0.1


@pytest.mark.parametrize(("variant", "missing"), [("oasis", 3), ("lumir", 11)])
def test_image_of_odd_size_is_treated_as_padded_with_zeros_at_the_far_ends(variant: str, missing: int) -> None:
    net, image = network(variant=variant), pair(9, 16, 5)
    with torch.no_grad():
        padded = net(F.pad(image, (0, missing, 0, 0, 0, 7)))
        torch.testing.assert_close(net(image), padded[:, :, :9, :, :5], rtol=0, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_batch_equals_its_members(spatial_dims: int, variant: str) -> None:
    net, image = network(spatial_dims, variant=variant).double(), pair(*(12, 16, 8)[:spatial_dims], batch=2).double()
    with torch.no_grad():
        torch.testing.assert_close(net(image), torch.cat([net(one[None]) for one in image]))


def seen(net: TransMorphTVF, image: Tensor) -> tuple[Tensor, Tensor]:
    """Features that all steps share, and the pair that they look at."""
    if net.halves:
        half = F.avg_pool3d(image, 2)
        return doubled(net.unet(half).value), half
    return doubled(net.unet(image).value), F.avg_pool3d(image, 3, stride=2, padding=1)


@pytest.mark.parametrize("int_steps", [0, 3])
@pytest.mark.parametrize(("variant", "factor"), [("oasis", 1), ("lumir", 2)])
def test_each_step_sees_what_those_before_have_left(variant: str, factor: int, int_steps: int) -> None:
    net, image = network(variant=variant, time_steps=3, int_steps=int_steps).double(), pair(16, 32, 16).double()
    with torch.no_grad():
        outputs = net(image, details=True)
        features, half = seen(net, image)
        flow = torch.zeros(1, 3, *half.shape[2:], dtype=torch.float64)
        moved = half[:, :1]
        for step in net.steps:
            velocity = step(stored(features), torch.cat([moved, half[:, 1:]], dim=1))
            flow += warp(velocity, sampled_at_edges(velocity), padding_mode="zeros")
            moved = warp(half[:, :1], sampled_at_edges(flow), padding_mode="zeros")
        flow = integrate_at_edges(flow, int_steps) if int_steps else flow
        expected = factor * F.interpolate(flow, scale_factor=2, mode="trilinear", align_corners=False)
    torch.testing.assert_close(outputs["flow"], expected)
    torch.testing.assert_close(outputs["ddf"], sampled_at_edges(expected))
    assert flow.abs().max() > 0.5


def test_an_integrated_field_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transmorph_tvf, "_MOST", 0.25)
    with torch.no_grad():
        fields = [network(int_steps=n)(pair(16, 16, 16), details=["flow"])["flow"].abs().max() for n in (0, 1)]
    assert fields[0] > 0.25 and fields[1] == 0.25


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_every_parameter(variant: str) -> None:
    net = network(variant=variant).train()
    net(pair(16, 16, 16, batch=2)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in net.parameters())


def test_batches_are_measured_in_training_alone() -> None:
    net, image = network(variant="lumir", drop_path=0.0), pair(16, 16, 16, batch=2)
    means = [value for name, value in net.named_buffers() if name.endswith("running_mean")]
    assert len(means) == 1 + net.arguments["time_steps"]
    with torch.no_grad():
        net(image)
        assert not any(mean.any() for mean in means)
        net.train()(image)
        assert all(mean.all() for mean in means)


def test_autocast_keeps_fields_in_float32_and_a_fresh_head_speaks() -> None:
    torch.manual_seed(0)
    net, image = TransMorphTVF(**CONFIGURATIONS["tiny"]), pair(16, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        flow = net(image, details=True)["flow"]
    assert flow.dtype == torch.float32 and 1e-6 < flow.abs().max() < 1e-3


COUNTS = {"oasis": 108_989_780, "oasis_8_steps": 108_611_336, "base": 47_067_192, "base_12_steps": 47_359_236}


@pytest.mark.parametrize(("name", "count"), [*COUNTS.items(), ("lumir", 17_449_584 - 1299)])
def test_published_networks_have_as_many_parameters_as_the_published_ones(name: str, count: int) -> None:
    """But for the head that the network of LUMIR has and does not use."""
    with torch.device("meta"):
        assert sum(p.numel() for p in TransMorphTVF(**CONFIGURATIONS[name]).parameters()) == count


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "ixi"}, "choose one of oasis, lumir"),
        ({"time_steps": 0}, "whole number from 1"),
        ({"int_steps": -1}, "whole number from 0"),
        ({"depths": (2, 2)}, "as many of the one as of the other"),
    ],
)
def test_arguments_that_make_no_network_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TransMorphTVF(**arguments)
