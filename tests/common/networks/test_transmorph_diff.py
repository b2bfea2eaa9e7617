# SPDX-License-Identifier: Apache-2.0
"""TransMorph-diff: sizes, what is drawn when, how displacements scatter, parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from common.checks import InputError
from common.losses import GradientLoss, MSELoss, RegistrationLoss, Term, VelocityKLLoss
from common.networks import TransMorphDiff
from common.networks.transmorph_diff import CONFIGURATIONS
from common.spatial import compose

from .conftest import pair

FORMS = ("full", "half")


def network(spatial_dims: int = 3, **arguments: Any) -> TransMorphDiff:
    """A small network whose displacements and their deviations, unlike those of a fresh one, amount to voxels."""
    torch.manual_seed(0)
    net = TransMorphDiff(spatial_dims, **{**CONFIGURATIONS["tiny"], **arguments})
    net.head.conv.weight.data.normal_(std=0.1)
    net.log_variance.conv.weight.data.normal_(std=0.1)
    torch.nn.init.constant_(net.log_variance.conv.bias, -2)  # type: ignore[arg-type]  # it has one
    return net.eval()


@pytest.mark.parametrize("spatial", [(17, 9, 5), (1, 12, 3), (21, 9)])
@pytest.mark.parametrize("form", FORMS)
def test_fields_have_the_size_of_the_image_whatever_it_is(spatial: tuple[int, ...], form: str) -> None:
    with torch.no_grad():
        outputs = network(len(spatial), output_resolution=form)(pair(*spatial, batch=2), ["deviation"])
    for field in outputs.values():
        assert field.shape == (2, len(spatial), *spatial)
        assert field.dtype == torch.float32 and field.isfinite().all() and field.abs().max() > 0.1


@pytest.mark.parametrize("form", FORMS)
def test_batch_equals_its_members(form: str) -> None:
    net, image = network(2, output_resolution=form).double(), pair(12, 16, batch=2).double()
    with torch.no_grad():
        both = net(image, ["deviation"])
        each = [net(one[None], ["deviation"]) for one in image]
    for name, value in both.items():
        torch.testing.assert_close(value, torch.cat([one[name] for one in each]))


def test_the_mean_is_squared_without_a_division() -> None:
    net, image = network(int_steps=3, output_resolution="half").double(), pair(8, 16, 8).double()
    with torch.no_grad():
        outputs = net(image, details=True)
        ddf = outputs["velocity"]
        assert ddf.shape == outputs["log_sigma"].shape == (1, 3, 4, 8, 4)
        for _ in range(3):
            ddf = compose(ddf, ddf, padding_mode="zeros")
    expected = F.interpolate(ddf, scale_factor=2, mode="trilinear", align_corners=False)
    torch.testing.assert_close(outputs["ddf"], expected)


def test_velocities_are_drawn_in_training_alone_and_scatter_as_the_network_says() -> None:
    net, image = network(2, int_steps=0, drop_path=0.0, samples=400).double(), pair(8, 8).double()
    with torch.no_grad():
        outputs = net(image, details=True)
        assert torch.equal(net(image), outputs["velocity"])
        sigma = outputs["log_sigma"].exp()
        # Of 400 draws the deviation is off by 3.5 %, of one standard deviation.
        assert ((outputs["deviation"] / sigma - 1).square().mean().sqrt() - 0.035).abs() < 0.01
        net.train()
        draws = torch.cat([net(image) for _ in range(400)])
        # Both lines: four standard deviations, which are 1 / 20 of sigma for the mean and 3.5 % for the deviation.
        mean, most = draws.mean(0, keepdim=True), 0.2 * sigma.max().item()
        torch.testing.assert_close(mean, outputs["velocity"], rtol=0, atol=most)
        torch.testing.assert_close(draws.std(0, keepdim=True), sigma, rtol=0.15, atol=0)


def test_deviation_is_the_same_each_time_and_leaves_the_generator_alone() -> None:
    net, image = network(2), pair(8, 8)
    first = net(image, ["deviation"])["deviation"]
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(net(image, ["deviation"])["deviation"], first) and not first.requires_grad
    assert torch.equal(torch.rand(1), expected)


def test_a_step_of_its_training_reaches_every_parameter() -> None:
    net, image = network().train(), pair(8, 8, 8, batch=2)
    terms = {
        "recon": Term(MSELoss(), ["warped", "fixed"]),
        "kl": Term(VelocityKLLoss(10), ["velocity", "log_sigma"]),
        "smoothness": Term(GradientLoss(), ["ddf"]),
    }
    loss = RegistrationLoss(terms)
    loss(net(image, loss.details), {"moving": image[:, :1], "fixed": image[:, 1:]}).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in net.parameters())


@pytest.mark.parametrize(("form", "count"), [("half", 46_557_414), ("full", 46_772_550)])
def test_published_networks_have_as_many_parameters_as_the_published_ones(form: Any, count: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in TransMorphDiff(output_resolution=form).parameters()) == count


@pytest.mark.parametrize("arguments", [{"int_steps": -1}, {"samples": 1}, {"output_resolution": "quarter"}])
def test_arguments_that_make_no_network_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="give a whole number from|expected 'full' or 'half'"):
        TransMorphDiff(**arguments)
