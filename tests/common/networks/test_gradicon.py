# SPDX-License-Identifier: Apache-2.0
"""GradICON as a whole: sizes, maps, directions, composition, autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.checks import InputError
from common.losses import GaussianLNCCLoss, GradientInverseConsistencyLoss, RegistrationLoss, Term
from common.networks import GradICON
from common.spatial import compose, identity_grid, resize_ddf, warp

from .conftest import pair

SMALL: dict[str, Any] = {"channels": (4, 6), "up_channels": (4, 5), "halvings": (2, 1, 0, 0)}


def network(spatial_dims: int = 3, **arguments: Any) -> GradICON:
    """A small network whose displacements, unlike those of a fresh one, amount to voxels."""
    torch.manual_seed(0)
    net = GradICON(spatial_dims, **{**SMALL, **arguments}).eval()
    for name, parameter in net.named_parameters():
        if ".last." in name:
            parameter.data.normal_(std=0.3)
    return net


@pytest.mark.parametrize("spatial", [(17, 9, 21), (3, 12, 1), (21, 10), (2, 3)])
def test_displacements_have_the_size_of_the_image_whatever_it_is(spatial: tuple[int, ...]) -> None:
    with torch.no_grad():
        outputs = network(len(spatial))(pair(*spatial, batch=2), details=["inverse_ddf"])
    for field in outputs.values():
        assert field.shape == (2, len(spatial), *spatial) and field.dtype == torch.float32
        assert field.isfinite().all() and field.abs().max() > 0.1


def test_images_are_padded_only_up_to_the_least_size() -> None:
    net = network(2)
    assert net.least == 9 and GradICON(2).least == 65
    with torch.no_grad():
        image = pair(6, 11)
        torch.testing.assert_close(net(image), net(F.pad(image, (0, 0, 0, 3)))[:, :, :6])


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_batch_equals_its_members(spatial_dims: int) -> None:
    net, image = network(spatial_dims).double(), pair(*(12, 16, 9)[:spatial_dims], batch=2).double()
    with torch.no_grad():
        torch.testing.assert_close(net(image), torch.cat([net(one[None]) for one in image]))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_way_back_is_that_of_the_exchanged_images_and_maps_are_the_fields(spatial_dims: int) -> None:
    net, image = network(spatial_dims), pair(*(13, 16, 9)[:spatial_dims], batch=2)
    with torch.no_grad():
        outputs, exchanged = net(image, details=True), net(image.flip(1))
    torch.testing.assert_close(outputs["inverse_ddf"], exchanged)
    grid = identity_grid(image.shape[2:])
    points = grid.flatten(2).mT.expand(2, -1, -1)
    for name, field in (("map", "ddf"), ("inverse_map", "inverse_ddf")):
        found = outputs[name](points).mT.view_as(outputs[field]) - grid
        torch.testing.assert_close(found, outputs[field], rtol=0, atol=1e-4)


def test_each_unet_registers_what_those_before_it_have_left() -> None:
    net, image = network(2, halvings=(1, 0, 0)).double(), pair(17, 13).double()
    extent = torch.tensor([16.0, 12.0]).view(1, 2, 1, 1).double()
    with torch.no_grad():
        coarse = net.stages[0](F.avg_pool2d(image, 2, ceil_mode=True)) * torch.tensor([8.0, 6.0]).view(1, 2, 1, 1)
        # An odd size: on each second voxel the fine grid has a voxel of the coarse one.
        known = resize_ddf(coarse, (17, 13))
        fine = net.stages[1](torch.cat([warp(image[:, :1], known), image[:, 1:]], 1)) * extent
        known = compose(known, fine)
        finest = net.stages[2](torch.cat([warp(image[:, :1], known), image[:, 1:]], 1)) * extent
        expected = compose(resize_ddf(coarse, (17, 13)), compose(fine, finest))
        torch.testing.assert_close(net(image), expected)


def test_gradients_reach_every_parameter_and_are_those_of_finite_differences() -> None:
    net, image = network(2).double(), pair(12, 9).double()
    weight = torch.randn(2, 12, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
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
            torch.testing.assert_close(slope, (values[0] - values[1]) / 2e-6, rtol=1e-4, atol=1e-5, msg=name)


def test_autocast_keeps_fields_in_float32_and_changes_little() -> None:
    net, image = network(), pair(16, 16, 16)
    expected = net(image).detach()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = net(image, details=True)
    assert all(outputs[name].dtype == torch.float32 for name in ("ddf", "inverse_ddf"))
    assert (outputs["ddf"] - expected).abs().mean() < 0.1 * expected.abs().mean()
    outputs["ddf"].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def step(net: GradICON, image: Tensor) -> Tensor:
    """Loss of a training step as published, after its backward pass."""
    terms = {
        "lncc": Term(GaussianLNCCLoss(2), ["warped", "fixed"]),
        "lncc_back": Term(GaussianLNCCLoss(2), ["warped_back", "moving"]),
        "consistency": Term(GradientInverseConsistencyLoss(), ["map", "inverse_map", "fixed", "draw"], 1.5),
    }
    loss = RegistrationLoss(terms)
    targets = {"moving": image[:, :1], "fixed": image[:, 1:], "draw": torch.tensor([[0, 1, 2]] * len(image))}
    total = loss(net(image, details=loss.details), targets)
    total.backward()
    return total


@pytest.mark.parametrize("constant", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("spatial", [(12, 12), (2, 3), (12, 9, 10)])
def test_constant_images_and_tiny_ones_are_trained_with_without_nan(
    spatial: tuple[int, ...], constant: tuple[int, ...]
) -> None:
    net, image = network(len(spatial)).train(), pair(*spatial)
    image[:, [*constant]] = 0.7
    assert step(net, image).isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    with torch.no_grad():
        assert net.eval()(image).isfinite().all()


@pytest.mark.parametrize("spatial", [(12, 12), (12, 9, 10)])
def test_a_run_that_diverges_has_a_loss_that_says_so(spatial: tuple[int, ...]) -> None:
    net = network(len(spatial)).train()
    next(parameter for name, parameter in net.named_parameters() if name.endswith("last.bias")).data.fill_(torch.nan)
    assert not step(net, pair(*spatial)).isfinite()


@pytest.mark.parametrize(
    ("dims", "halvings", "parameters"),
    [(3, (2, 1, 0, 0), 70_680_916), (3, (2, 1, 0), 53_010_687), (3, (0,), 17_670_229), (2, (0,), 4_756_902)],
)
def test_published_networks_have_as_many_parameters(dims: int, halvings: tuple[int, ...], parameters: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in GradICON(dims, halvings=halvings).parameters()) == parameters


@pytest.mark.parametrize(
    "arguments",
    [
        {"spatial_dims": 4},
        {"channels": (4, 4, 4)},
        {"channels": (), "up_channels": ()},
        {"channels": (0, 4)},
        {"up_channels": (4, "4")},
        {"halvings": ()},
        {"halvings": (2, 0)},
        {"halvings": ("1", 0)},
        {"halvings": (1, 1)},
        {"halvings": (0, 1, 0)},
    ],
)
def test_arguments_that_make_no_network_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected 2 or 3|as many of the one as the other|give (a )?whole number"):
        GradICON(**{**SMALL, **arguments})
