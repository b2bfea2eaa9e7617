# SPDX-License-Identifier: Apache-2.0
"""TransMorph-bspl: sizes, the lattice, what is integrated and sampled, parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from common.blocks.remade import stored
from common.checks import InputError
from common.networks import TransMorphBSpline
from common.networks.transmorph_bspline import CONFIGURATIONS
from common.spatial.free_form import free_form_field, lattice_size
from common.spatial.outer_edges import integrate_at_edges, sampled_at_edges

from .conftest import pair


def network(spatial_dims: int = 3, **arguments: Any) -> TransMorphBSpline:
    """A small network whose displacements amount to voxels."""
    torch.manual_seed(0)
    net = TransMorphBSpline(spatial_dims, **{**CONFIGURATIONS["tiny"], **arguments})
    net.control.conv.weight.data *= 5
    return net.eval()


@pytest.mark.parametrize("spatial", [(17, 9, 5), (1, 12, 3), (21, 9)])
def test_displacement_has_the_size_of_the_image_whatever_it_is(spatial: tuple[int, ...]) -> None:
    with torch.no_grad():
        outputs = network(len(spatial))(pair(*spatial, batch=2), details=True)
    for field in outputs.values():
        assert field.shape == (2, len(spatial), *spatial)
        assert field.dtype == torch.float32 and field.isfinite().all() and field.abs().max() > 0.1


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_batch_equals_its_members(spatial_dims: int) -> None:
    net, image = network(spatial_dims).double(), pair(*(12, 16, 8)[:spatial_dims], batch=2).double()
    with torch.no_grad():
        torch.testing.assert_close(net(image), torch.cat([net(one[None]) for one in image]))


def test_control_points_are_made_on_the_lattice_and_their_spline_is_integrated() -> None:
    net, image = network(int_steps=2, spacing=4).double(), pair(8, 16, 24).double()
    lattice = lattice_size((8, 16, 24), 4)
    with torch.no_grad():
        outputs = net(image, details=True)
        x = F.interpolate(net.unet(image).value, size=lattice, mode="trilinear", align_corners=False)
        control = net.control(stored(F.leaky_relu(net.on_lattice[0](x), 0.2)))
    velocity = free_form_field(control, (8, 16, 24), 4)
    flow = integrate_at_edges(velocity, 2, stretched=False)
    expected = {"velocity": velocity, "flow": flow, "ddf": sampled_at_edges(flow, stretched=False)}
    torch.testing.assert_close(outputs, expected)
    assert flow.abs().max() > 0.5


def test_gradients_reach_every_parameter() -> None:
    net = network().train()
    net(pair(8, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in net.parameters())


def test_autocast_keeps_fields_in_float32() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network()(pair(8, 8, 8), details=True)
    assert all(field.dtype == torch.float32 for field in outputs.values())


def test_published_network_has_as_many_parameters_as_the_published_one() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in TransMorphBSpline().parameters()) == 46_806_307


@pytest.mark.parametrize(
    "arguments", [{"spacing": 0}, {"lattice_channels": ()}, {"lattice_channels": (8, 0)}, {"int_steps": -1}]
)
def test_arguments_that_make_no_network_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="give a whole number from|give one number of channels or more"):
        TransMorphBSpline(**arguments)
