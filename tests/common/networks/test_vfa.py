# SPDX-License-Identifier: Apache-2.0
"""VFA as a whole: sizes, levels, invariances, what is stored, autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from common.checks import InputError
from common.networks import VFA
from common.networks.vfa import _follow
from common.spatial import identity_grid, sample_at

from .conftest import pair

SMALL: dict[str, Any] = {"downsamples": 2, "start_channels": 2, "matching_channels": 2, "max_channels": 4}


def network(spatial_dims: int = 3, **arguments: Any) -> VFA:
    """A small network whose displacements, unlike those of a fresh one, amount to voxels."""
    torch.manual_seed(0)
    net = VFA(spatial_dims, **{**SMALL, "initial_beta": 1.0, **arguments})
    for parameter in net.attention.parameters():
        parameter.data *= 4
    return net


@pytest.mark.parametrize("spatial", [(17, 9, 5), (8, 8, 8), (3, 12, 1), (21, 9), (2, 3)])
def test_displacement_has_the_size_of_the_image_whatever_it_is(spatial: tuple[int, ...]) -> None:
    with torch.no_grad():
        ddf = network(len(spatial))(pair(*spatial, batch=2))
    assert ddf.shape == (2, len(spatial), *spatial)
    assert ddf.dtype == torch.float32 and ddf.isfinite().all() and ddf.abs().max() > 0.1


def test_image_of_odd_size_is_treated_as_padded_with_zeros_at_the_far_ends() -> None:
    net, image = network(), pair(9, 16, 5)
    with torch.no_grad():
        padded = net(F.pad(image, (0, 3, 0, 0, 0, 3)))
        torch.testing.assert_close(net(image), padded[:, :, :9, :, :5], rtol=0, atol=1e-5)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_batch_equals_its_members(spatial_dims: int) -> None:
    net, image = network(spatial_dims).double(), pair(*(12, 16, 8)[:spatial_dims], batch=2).double()
    with torch.no_grad():
        torch.testing.assert_close(net(image), torch.cat([net(one[None]) for one in image]))


def test_scale_of_intensities_does_not_matter() -> None:
    net, image = network().double(), pair(16, 16, 8).double()
    # Large ones, beside which the constant in the first normalisation is nothing.
    with torch.no_grad():
        torch.testing.assert_close(net(1e4 * image), net(1e6 * image), rtol=0, atol=1e-5)


def test_each_level_adds_at_most_beta_voxels() -> None:
    with torch.no_grad():
        pyramid = network(initial_beta=0.5)(pair(16, 16, 16), details=True)["pyramid"]
    largest = [level.abs().max().item() for level in pyramid]
    # Enlarging (2, 4, 8 ...) voxels multiplies by (2 n - 1) / (n - 1).
    bounds = [0.5]
    for n in (4, 8):
        bounds.append(bounds[-1] * (2 * n - 1) / (n - 1) + 0.5)
    assert all(0.1 < found <= bound + 1e-5 for found, bound in zip(largest, bounds[::-1], strict=True))


def test_composition_is_that_of_grids_of_coordinates_held_at_their_border() -> None:
    generator = torch.Generator().manual_seed(0)
    outer, inner = 3 * torch.randn(2, 1, 3, 4, 5, 6, generator=generator, dtype=torch.float64)
    identity = identity_grid((4, 5, 6), dtype=torch.float64)
    points = (identity + inner).flatten(2).mT
    expected = sample_at(identity + outer, points).view_as(inner) - identity
    torch.testing.assert_close(_follow(outer, inner), expected)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_squarings_repeat_the_displacement_of_a_level(spatial_dims: int) -> None:
    image = pair(*[8] * spatial_dims)
    nets = [
        network(spatial_dims, downsamples=1, int_steps=steps, initial_beta=beta) for steps, beta in ((1, 1), (0, 0.5))
    ]
    with torch.no_grad():
        twice, once = (net(image, details=True)["pyramid"][-1] for net in nets)
        torch.testing.assert_close(twice, _follow(once, once), rtol=0, atol=1e-6)


def test_finest_level_can_be_left_out() -> None:
    net = network(skip=True)
    outputs = net(pair(8, 12, 8), details=True)
    assert len(outputs["pyramid"]) == net.levels == 3
    expected = F.interpolate(outputs["pyramid"][1], size=(8, 12, 8), mode="trilinear", align_corners=True)
    factors = torch.tensor([7 / 3, 11 / 5, 7 / 3]).view(1, 3, 1, 1, 1)
    torch.testing.assert_close(outputs["ddf"], expected * factors)
    outputs["ddf"].square().sum().backward()
    unused = {name.rpartition(".")[0] for name, p in net.named_parameters() if p.grad is None}
    layers = {f"encoder.{way}.{part}" for way in ("enlarge.0", "up.0.0", "up.0.1") for part in ("conv", "norm")}
    assert unused == {"attention.0.project"} | layers


def test_gradients_reach_every_parameter_and_are_those_of_finite_differences() -> None:
    net, image = network().double(), pair(8, 8, 8).double()
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
            torch.testing.assert_close(slope, (values[0] - values[1]) / 2e-6, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("spatial", [(32, 48, 32), (64, 48)])
def test_float32_is_float64_but_for_rounding(spatial: tuple[int, ...]) -> None:
    net, image = network(len(spatial), start_channels=4, max_channels=16), pair(*spatial)
    weight = torch.randn((len(spatial), *spatial), generator=torch.Generator().manual_seed(1))
    fields, gradients = [], []
    for dtype in (torch.float32, torch.float64):
        net.to(dtype).zero_grad()
        ddf = net(image.to(dtype))
        (ddf * weight.to(dtype)).sum().backward()
        fields.append(ddf.detach().double())
        gradients.append(torch.cat([p.grad.flatten().double() for p in net.parameters() if p.grad is not None]))
    assert fields[1].abs().max() > 1
    # The attention of each level turns rounding of its features into displacements, by which the next level warps: up
    # to 5e-4 voxels here. Fields or warps in bfloat16 would differ by more than 1e-2.
    torch.testing.assert_close(fields[0], fields[1], rtol=0, atol=1e-3)
    # Signs of a few activations differ, and with them their gradients: 1e-2 of the norm here.
    assert (gradients[0] - gradients[1]).norm() < 2e-2 * gradients[1].norm()


def test_autocast_keeps_fields_in_float32_and_changes_little() -> None:
    net, image = network(), pair(16, 16, 16)
    expected = net(image).detach()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = net(image, details=True)
    assert all(level.dtype == torch.float32 for level in (outputs["ddf"], *outputs["pyramid"]))
    assert (outputs["ddf"] - expected).abs().mean() < 0.1 * expected.abs().mean()
    outputs["ddf"].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_published_network_has_as_many_parameters_as_the_published_one() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in VFA().parameters()) == 2_014_827


@pytest.mark.parametrize(
    "arguments",
    [
        {"spatial_dims": 4},
        {"spatial_dims": 1},
        {"downsamples": 0},
        {"start_channels": 0},
        {"matching_channels": "8"},
        {"max_channels": True},
        {"int_steps": -1},
    ],
)
def test_dimensions_and_depth_that_there_are_not_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected 2 or 3|give a whole number from"):
        VFA(**arguments)
