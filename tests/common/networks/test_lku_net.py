# SPDX-License-Identifier: Apache-2.0
"""LKU-Net as a whole: sizes, units, integration, half resolution, autocast, parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from common.checks import InputError
from common.networks import LKUNet
from common.networks.lku_net import CONFIGURATIONS
from common.spatial import compose, integrate

from .conftest import pair


def network(spatial_dims: int = 3, **arguments: Any) -> LKUNet:
    """A small network whose displacements amount to voxels."""
    torch.manual_seed(0)
    net = LKUNet(spatial_dims, **{"start_channels": 2, **arguments}).eval()
    net.head.weight.data.mul_(4)
    return net


@pytest.mark.parametrize("half_res", [False, True])
@pytest.mark.parametrize("spatial", [(17, 9, 21), (3, 16, 1), (33, 10), (2, 3)])
def test_displacements_have_the_size_of_the_image_whatever_it_is(spatial: tuple[int, ...], half_res: bool) -> None:
    net = network(len(spatial), int_steps=3, half_res=half_res)
    with torch.no_grad():
        outputs = net(pair(*spatial, batch=2), details=True)
    assert set(outputs) == {"ddf", "velocity", "inverse_ddf"}
    for field in outputs.values():
        assert field.shape == (2, len(spatial), *spatial) and field.dtype == torch.float32
        assert field.isfinite().all() and field.abs().max() > 0.1


def test_images_are_padded_up_to_a_multiple_of_sixteen() -> None:
    net, image = network(2), pair(16, 19)
    with torch.no_grad():
        torch.testing.assert_close(net(image), net(F.pad(image, (0, 13)))[..., :19])


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_batch_equals_its_members(spatial_dims: int) -> None:
    net, image = network(spatial_dims).double(), pair(*(16, 32, 16)[:spatial_dims], batch=2).double()
    with torch.no_grad():
        torch.testing.assert_close(net(image), torch.cat([net(one[None]) for one in image]))


def test_half_the_extent_is_the_most_that_a_displacement_can_be() -> None:
    net, image = network(), pair(16, 32, 48)
    net.head.weight.data.mul_(1e9)
    with torch.no_grad():
        largest = net(image).abs().amax((0, 2, 3, 4))
    torch.testing.assert_close(largest, torch.tensor([7.5, 15.5, 23.5]))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_displacement_and_way_back_are_the_integrals_of_the_velocity(spatial_dims: int) -> None:
    image = pair(*(16, 32, 16)[:spatial_dims])
    with torch.no_grad():
        outputs = network(spatial_dims, int_steps=5)(image, details=True)
        plain = network(spatial_dims)(image, details=True)
    velocity = outputs["velocity"]
    assert set(plain) == {"ddf", "velocity"} and torch.equal(plain["ddf"], plain["velocity"])
    assert torch.equal(velocity, plain["ddf"]) and not torch.equal(velocity, outputs["ddf"])
    for name, sign in (("ddf", 1), ("inverse_ddf", -1)):
        torch.testing.assert_close(outputs[name], integrate(sign * velocity, 5, padding_mode="border"))
    missed = compose(outputs["ddf"], outputs["inverse_ddf"], padding_mode="border")
    assert missed.abs().mean() < 0.2 * outputs["ddf"].abs().mean()


def test_half_resolution_ends_a_level_below_and_is_interpolated() -> None:
    net, estimated = network(2, half_res=True), []
    net.head.register_forward_hook(lambda module, given, made: estimated.append(made))
    with torch.no_grad():
        ddf = net(pair(16, 32))
    assert estimated[0].shape == (1, 2, 8, 16)
    units = F.interpolate(F.softsign(estimated[0]), size=(16, 32), mode="bilinear", align_corners=False)
    torch.testing.assert_close(ddf, units * torch.tensor([7.5, 15.5]).view(1, 2, 1, 1))


def test_gradients_reach_every_parameter() -> None:
    for half_res in (False, True):
        net = network(2, half_res=half_res).train()
        net(pair(32, 32)).square().sum().backward()
        # A slope has none where all that comes in is positive.
        assert all(p.grad is not None and (p.ndim == 1 or p.grad.any()) for p in net.parameters())


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_autocast_keeps_fields_in_float32_and_changes_little(spatial_dims: int) -> None:
    net, image = network(spatial_dims, int_steps=2), pair(*[16] * spatial_dims)
    expected = net(image).detach()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = net(image, details=True)
    assert all(field.dtype == torch.float32 for field in outputs.values())
    assert (outputs["ddf"] - expected).abs().mean() < 0.1 * expected.abs().mean()
    outputs["ddf"].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(
    ("arguments", "parameters"),
    [
        ({"start_channels": 4}, 522_950),
        ({"start_channels": 8}, 2_087_638),
        ({"start_channels": 16}, 8_342_294),
        ({"start_channels": 32}, 33_352_726),
        ({"spatial_dims": 2}, 779_606),
    ],
)
def test_published_networks_have_as_many_parameters(arguments: dict[str, Any], parameters: int) -> None:
    with torch.device("meta"):
        net = LKUNet(**arguments)
    # The published count has the second head, which is never called.
    assert sum(p.numel() for p in net.parameters()) + net.head.weight.numel() == parameters


def test_published_configurations_say_how_they_integrate_and_where_they_end() -> None:
    named = {name: LKUNet(**{**arguments, "start_channels": 1}).arguments for name, arguments in CONFIGURATIONS.items()}
    assert {name: found["int_steps"] for name, found in named.items()}["ixi_8"] == 7
    assert [name for name, found in named.items() if found["half_res"]] == ["oasis_half"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"spatial_dims": 4},
        {"start_channels": 0},
        {"kernel_size": 3},
        {"kernel_size": 6},
        {"kernel_size": "5"},
        {"int_steps": -1},
    ],
)
def test_arguments_that_make_no_network_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected 2 or 3|give (a whole|an odd) number from"):
        LKUNet(**arguments)
