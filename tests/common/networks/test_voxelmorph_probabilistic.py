# SPDX-License-Identifier: Apache-2.0
"""VoxelMorph's distribution of velocities: what is drawn, what is not, and how far displacements scatter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from common.checks import InputError
from common.networks import VoxelMorph
from common.spatial import integrate, resize_image

from .conftest import pair


def network(spatial_dims: int = 3, log_sigma: float = -1.0, **arguments: Any) -> VoxelMorph:
    """A small network that displaces by voxels and is unsure by tenths of them."""
    torch.manual_seed(0)
    small: dict[str, Any] = {"encoder": (2, 4), "decoder": (4, 4, 4), "int_steps": 4, "padding_mode": "border"}
    net = VoxelMorph(spatial_dims, **{**small, **arguments}, probabilistic=True)
    net.flow.weight.data *= 5e4
    net.log_variance.weight.data *= 3e9
    assert net.log_variance.bias is not None
    torch.nn.init.constant_(net.log_variance.bias, 2 * log_sigma)
    return net


@pytest.mark.parametrize("size", [(10, 8, 7), (9, 12)])
@pytest.mark.parametrize("grids", [{}, {"svf_resolution": 2}, {"int_steps": 0}, {"backbone": "stride"}])
def test_all_that_is_said_of_the_distribution_has_its_grid(size: tuple[int, ...], grids: dict[str, Any]) -> None:
    net, image = network(len(size), **grids).eval(), pair(*size, batch=2)
    outputs = net(image, details=True)
    grid = tuple(-(-n // 4) * 4 // grids.get("svf_resolution", 1) for n in size)
    assert outputs["velocity"].shape == outputs["log_sigma"].shape == (2, len(size), *grid)
    assert outputs["deviation"].shape == outputs["ddf"].shape == (2, len(size), *size)
    assert outputs["deviation"].dtype == torch.float32 and (outputs["deviation"] > 0).all()
    assert outputs["log_sigma"].requires_grad and not outputs["deviation"].requires_grad
    features = net.unet(torch.nn.functional.pad(image, [n for g in reversed(size) for n in (0, -g % 4)]))
    torch.testing.assert_close(outputs["velocity"], net.flow(features))
    torch.testing.assert_close(outputs["log_sigma"], net.log_variance(features) / 2)


def test_the_mean_counts_in_evaluation_and_a_draw_in_training() -> None:
    net, image = network(2), pair(8, 12)
    torch.manual_seed(1)
    drawn = [net(image) for _ in range(2)]
    outputs = net(image, details=True)
    evaluated = net.eval()(image, details=True)
    assert not torch.equal(*drawn) and torch.equal(net(image), evaluated["ddf"])
    for name in ("velocity", "log_sigma", "deviation"):
        assert torch.equal(outputs[name], evaluated[name]), name
    mean = resize_image(evaluated["velocity"], (4, 6)) / 2
    for name, sign in (("ddf", 1), ("inverse_ddf", -1)):
        torch.testing.assert_close(evaluated[name], 2 * resize_image(integrate(sign * mean, 4, "border"), (8, 12)))


def test_what_is_drawn_has_the_mean_and_the_deviation_that_are_said() -> None:
    net, image = network(2, int_steps=0), pair(8, 8)
    torch.manual_seed(1)
    outputs = net(image.expand(4000, -1, -1, -1), details=["velocity", "log_sigma"])
    drawn = outputs["ddf"].detach()
    sigma = outputs["log_sigma"][0].detach().exp()
    assert ((drawn.mean(0) - outputs["velocity"][0].detach()) / sigma * 4000**0.5).abs().max() < 5
    assert (drawn.std(0) / sigma - 1).abs().max() < 5 / 8000**0.5


def test_deviation_is_that_of_the_displacements_of_draws() -> None:
    """Without integration it is the one that the network says, as far as so many draws can tell."""
    net = network(2, int_steps=0, samples=2000).eval()
    outputs = net(pair(8, 8), details=True)
    assert (outputs["deviation"] / outputs["log_sigma"].exp() - 1).abs().max() < 5 / 4000**0.5
    again = net(pair(8, 8), details=["deviation"])
    assert torch.equal(again["deviation"], outputs["deviation"])


def test_deviation_of_a_coarser_integration_grows_with_the_spread() -> None:
    image, found = pair(12, 8, 8), []
    for log_sigma in (-4.0, -3.0):
        net = network(log_sigma=log_sigma).eval()
        net.log_variance.weight.data.zero_()
        found.append(net(image, details=["deviation"])["deviation"].mean())
    # All but the integration is linear in the draws, which are the same; larger ones are interpolated further: 0.2 %.
    assert found[1] / found[0] == pytest.approx(torch.e, rel=5e-3)


def test_deviation_neither_uses_up_random_numbers_nor_depends_on_the_other_pairs() -> None:
    net, image = network().eval(), pair(8, 8, 4, batch=2)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    both = net(image, details=["deviation"])["deviation"]
    assert torch.equal(torch.rand(2), expected)
    torch.testing.assert_close(both[1:], net(image[1:], details=["deviation"])["deviation"])


def test_gradients_reach_both_heads_through_a_draw() -> None:
    net, image = network(2).double(), pair(8, 8).double()
    weight = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def value() -> Tensor:
        torch.manual_seed(2)
        result: Tensor = (net(image) * weight).sum()
        return result

    value().backward()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None, name
            direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
            values = []
            for step in (1e-6, -2e-6):
                parameter.add_(direction, alpha=step)
                values.append(value())
            parameter.add_(direction, alpha=1e-6)
            slope = (parameter.grad * direction).sum()
            # Steps of 1e-6 to both sides: float64 rounding of the sum, 1e-15, is 1e-9 of a slope; 1e-9 is found.
            torch.testing.assert_close(slope, (values[0] - values[1]) / 2e-6, rtol=1e-6, atol=1e-7, msg=name)


def test_fresh_network_is_sure_that_images_stay_where_they_are() -> None:
    torch.manual_seed(0)
    outputs = VoxelMorph(probabilistic=True, int_steps=7)(pair(16, 16, 16), details=["log_sigma"])
    assert outputs["ddf"].abs().max() < 0.1
    torch.testing.assert_close(outputs["log_sigma"], torch.full_like(outputs["log_sigma"], -5))


def test_autocast_keeps_the_distribution_in_float32() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network()(pair(8, 8, 8), details=True)
    assert {field.dtype for field in outputs.values()} == {torch.float32}


def test_one_draw_is_refused_and_plain_networks_have_no_distribution() -> None:
    with pytest.raises(InputError, match="samples is 1; give a whole number from 2 on"):
        VoxelMorph(samples=1)
    plain = VoxelMorph(2, encoder=(2, 2), decoder=(2, 2, 2))
    assert not {"log_sigma", "deviation"} & {*plain(pair(8, 8), details=True)}
    assert not any("variance" in name for name in plain.state_dict())
