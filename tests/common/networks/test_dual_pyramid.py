# SPDX-License-Identifier: Apache-2.0
"""The dual-pyramid networks as a whole: sizes, levels, invariances, what is published of them, autocast."""

from __future__ import annotations

import math
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.blocks.correlation import local_correlation
from common.blocks.dual_pyramid import EXCHANGED
from common.checks import InputError
from common.networks import DualPyramid
from common.networks.dual_pyramid import FURTHER, VARIANTS, hidden_channels
from common.spatial import compose, resize_image, warp
from common.spatial.fixed_point import Solver

from .conftest import pair

SMALL = (2, 3, 4)
SYMMETRIC = [name for name, variant in VARIANTS.items() if variant.symmetric]
ONE_WAY = [name for name in VARIANTS if name not in SYMMETRIC]
PUBLISHED = {
    "conv_mf": 2_854_079,
    "conv_mfc": 3_168_575,
    "conv_c": 1_993_023,
    "convic_mf": 2_854_079,
    "convic_c": 2_307_519,
    "vfa": 791_104,
}
"""Parameters of the published networks, of which 507 504 are those of the encoder."""


def network(variant: str, spatial_dims: int = 3, **arguments: Any) -> DualPyramid:
    """A small network whose displacements, unlike those of a fresh one, amount to voxels."""
    torch.manual_seed(0)
    net = DualPyramid(spatial_dims, variant=variant, **{"channels": SMALL, "solver": "tight", **arguments})
    for name, parameter in net.named_parameters():
        if "flow.weight" in name:
            parameter.data = parameter.data * 2e3
        elif "project" in name:
            parameter.data = parameter.data * 4
    return net


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("spatial", [(13, 8, 5), (3, 12, 1), (9, 21), (2, 3)])
def test_displacement_has_the_size_of_the_image_whatever_it_is(spatial: tuple[int, ...], variant: str) -> None:
    with torch.no_grad():
        ddf = network(variant, len(spatial))(pair(*spatial, batch=2))
    assert ddf.shape == (2, len(spatial), *spatial)
    assert ddf.dtype == torch.float32 and ddf.isfinite().all() and ddf.abs().max() > 0.05


@pytest.mark.parametrize("variant", ["conv_c", "convic_c", "vfa"])
def test_image_of_odd_size_is_treated_as_padded_with_zeros_at_the_far_ends(variant: str) -> None:
    net, image = network(variant), pair(9, 8, 5)
    with torch.no_grad():
        padded = net(F.pad(image, (0, 3, 0, 0, 0, 3)))
        torch.testing.assert_close(net(image), padded[:, :, :9, :, :5], rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(4, 1, 3), (1, 1, 1), (4, 4, 4)])
def test_the_coarsest_level_has_more_than_one_voxel(size: tuple[int, ...]) -> None:
    net = network("conv_mf")
    with torch.no_grad():
        pyramid = net(pair(*size), details=True)["pyramid"]
    assert [tuple(level.shape[2:]) for level in pyramid] == [(8, 4, 4), (4, 2, 2), (2, 1, 1)]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_batch_equals_its_members(spatial_dims: int, variant: str) -> None:
    net, image = network(variant, spatial_dims).double(), pair(*(8, 12, 8)[:spatial_dims], batch=2).double()
    with torch.no_grad():
        torch.testing.assert_close(net(image), torch.cat([net(one[None]) for one in image]))


@pytest.mark.parametrize("variant", ONE_WAY)
def test_levels_double_what_is_known_and_add_what_they_find(variant: str) -> None:
    net, image = network(variant).double(), pair(8, 16, 12).double()
    with torch.no_grad():
        moving, fixed = (net.encoder(image[:, c : c + 1]) for c in (0, 1))
        pyramid = net(image, details=["pyramid"])["pyramid"]
        for level in range(net.levels):
            m, f = moving[level], fixed[level]
            known = torch.zeros_like(pyramid[level])
            if level < net.levels - 1:
                known = 2 * resize_image(pyramid[level + 1], f.shape[2:])
            m = warp(m, known)
            found = {
                "conv_mf": lambda block, m, f: block(torch.cat([m, f], 1)),
                "conv_mfc": lambda block, m, f: block(torch.cat([m, local_correlation(f, m), f], 1)),
                "conv_c": lambda block, m, f: block(local_correlation(f, m)),
                "vfa": lambda block, m, f: block(f, m),
            }[variant](net.decoder[level], m, f)
            torch.testing.assert_close(pyramid[level], compose(known, found))
            assert found.abs().max() > 0.01


@pytest.mark.parametrize("variant", SYMMETRIC)
@pytest.mark.parametrize("spatial", [(13, 16, 8), (20, 12)])
def test_exchanged_images_exchange_the_results(spatial: tuple[int, ...], variant: str) -> None:
    net, image = network(variant, len(spatial)), pair(*spatial)
    with torch.no_grad():
        there, back = (net(x, details=True) for x in (image, image.flip(1)))
    assert there["ddf"].abs().max() > 0.2
    for one, other in (("ddf", "inverse_ddf"), ("inverse_ddf", "ddf")):
        torch.testing.assert_close(there[one], back[other], rtol=0, atol=1e-5)
    for one, other in zip(there["pyramid"], back["inverse_pyramid"], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert torch.equal(there["pyramid"][0], there["ddf"]) and len(there["pyramid"]) == net.levels


@pytest.mark.parametrize("variant", SYMMETRIC)
@pytest.mark.parametrize("trained", [False, True])
def test_there_and_back_leads_to_where_one_began(variant: str, trained: bool) -> None:
    net = network(variant) if trained else DualPyramid(variant=variant, channels=SMALL)
    with torch.no_grad():
        outputs = net(pair(24, 32, 20), details=["inverse_ddf"])
    error = compose(outputs["ddf"], outputs["inverse_ddf"])[:, :, 2:-2, 2:-2, 2:-2].norm(dim=1)
    assert error.mean() < 0.05
    assert not trained or outputs["ddf"].norm(dim=1).mean() > 0.5


def test_what_is_fed_is_exchanged_with_the_images() -> None:
    assert all(EXCHANGED[EXCHANGED[name]] == name for name in EXCHANGED)
    fed = {name for variant in (VARIANTS | FURTHER).values() for name in variant.fed}
    assert fed | {EXCHANGED[name] for name in fed} == set(EXCHANGED)


def test_differences_and_sums_can_be_fed_and_correlations_of_the_moving_image() -> None:
    image = pair(16, 12).double()
    fed = {
        "conv_diff": lambda m, f: torch.cat([m, m - f, f], 1),
        "conv_diffonly": lambda m, f: m - f,
        "conv_diffsum": lambda m, f: torch.cat([m - f, m + f], 1),
        "conv_mfc_flip": lambda m, f: torch.cat([m, local_correlation(m, f, padding_mode="border"), f], 1),
        "conv_c_flip": lambda m, f: local_correlation(m, f, padding_mode="border"),
        "convic_diffsum": lambda m, f: torch.cat([m - f, m + f], 1),
    }
    assert set(fed) == set(FURTHER)
    for variant, made in fed.items():
        net = network(variant, 2, padding_mode="border").double()
        seen: list[Tensor] = []
        net.decoder[-1].register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
        with torch.no_grad():
            moving, fixed = (net.encoder(image[:, c : c + 1])[-1] for c in (0, 1))
            assert net(image).abs().max() > 0.1
        torch.testing.assert_close(seen[0], made(moving, fixed))
        if FURTHER[variant].symmetric:
            torch.testing.assert_close(seen[1], made(fixed, moving))


@pytest.mark.parametrize("variant", VARIANTS)
def test_published_networks_have_as_many_parameters_as_published(variant: str) -> None:
    with torch.device("meta"):
        net = DualPyramid(variant=variant)
    assert sum(p.numel() for p in net.parameters()) == PUBLISHED[variant]
    assert sum(p.numel() for p in net.encoder.parameters()) == 507_504


def test_fresh_networks_begin_as_published() -> None:
    torch.manual_seed(0)
    net = DualPyramid(channels=(16, 32, 32))
    for name, module in net.named_modules():
        if not isinstance(module, nn.Conv3d):
            continue
        assert module.bias is not None
        weight, fan_in = module.weight.detach(), module.weight[0].numel()
        if name.startswith("encoder"):
            expected, bias = math.sqrt(2 / (1 + 0.2**2) / fan_in), 0.0
        elif name.endswith("flow"):
            expected, bias = 1e-5, 0.0
        else:
            # Uniform in +- 1 / sqrt(fan_in), biases alike.
            expected, bias = math.sqrt(1 / 3 / fan_in), 1 / math.sqrt(fan_in)
            assert weight.abs().max() <= bias + 1e-6
        few = 4 / math.sqrt(2 * weight.numel())
        assert abs(weight.std() / expected - 1) < few and module.bias.abs().max() <= bias
    # Nothing is displaced at first.
    assert net(pair(16, 8, 8)).abs().max() < 0.01


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_every_parameter_and_are_those_of_finite_differences(variant: str) -> None:
    net, image = network(variant, 2, channels=SMALL[:2]).double(), pair(12, 8).double()
    net.solver = Solver(1e-10, 100)
    weight = torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (net(image) * weight).sum().backward()
    generator = torch.Generator().manual_seed(2)
    for part in (net.encoder, net.decoder):
        slope, before = torch.zeros(()), [parameter.detach().clone() for parameter in part.parameters()]
        directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in before]
        for parameter, direction in zip(part.parameters(), directions, strict=True):
            assert parameter.grad is not None
            slope = slope + (parameter.grad * direction).sum()
        values = []
        for step in (1e-7, -1e-7, 0):
            for parameter, start, direction in zip(part.parameters(), before, directions, strict=True):
                parameter.data = start + step * direction
            with torch.no_grad():
                values.append((net(image) * weight).sum())
        assert slope.abs() > 1
        torch.testing.assert_close(slope, (values[0] - values[1]) / 2e-7, rtol=1e-4, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_is_float64_but_for_rounding(variant: str) -> None:
    net, image = network(variant, channels=(4, 6, 8)), pair(16, 24, 16)
    fields = []
    with torch.no_grad():
        for dtype in (torch.float32, torch.float64):
            fields.append(net.to(dtype)(image.to(dtype)).double())
    assert fields[1].abs().max() > 0.2
    # Attention turns rounding of its features into displacements: up to 4e-4 voxels here, without it 3e-5.
    torch.testing.assert_close(fields[0], fields[1], rtol=0, atol=1e-3 if variant == "vfa" else 1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_autocast_keeps_fields_in_float32_and_changes_little(variant: str) -> None:
    net, image = network(variant), pair(16, 16, 8)
    with torch.no_grad():
        expected = net(image)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = net(image, details=True)
    assert all(level.dtype == torch.float32 for level in (outputs["ddf"], *outputs["pyramid"]))
    assert (outputs["ddf"] - expected).abs().mean() < 0.15 * expected.abs().mean()
    outputs["ddf"].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_blocks_can_be_of_another_kind() -> None:
    blocks = {"encoder_block": {"pooled": True, "separable": True}, "decoder_block": {"groups": 2, "convolutions": 1}}
    net = network("convic_mf", 2, channels=(2, 4), **blocks)
    assert net(pair(9, 8)).shape == (1, 2, 9, 8)
    assert DualPyramid(**net.arguments).state_dict().keys() == net.state_dict().keys()


def test_hidden_channels_and_radius_can_be_chosen() -> None:
    assert hidden_channels("conv_c", [16, 32]) == [32, 64] and hidden_channels("vfa", [16, 32]) == [16, 32]
    net = network("conv_mfc", 2, decoder_channels=(5, 6, 7), radius=2)
    weights = [net.decoder.state_dict()[f"{level}.residual.first.weight"] for level in range(3)]
    assert [tuple(weight.shape[:2]) for weight in weights] == [(5, 29), (6, 31), (7, 33)]
    assert net(pair(8, 8)).shape == (1, 2, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spatial_dims": 4}, "spatial_dims is 4; expected 2 or 3"),
        ({"variant": "conv"}, "variant is 'conv'; expected one of .*convic_mf"),
        ({"solver": "exact"}, "solver is 'exact'; expected one of"),
        ({"channels": ()}, "give one number for each level"),
        ({"channels": (4, 4), "decoder_channels": (4,)}, "give one number for each level"),
        ({"channels": (4, 0)}, r"channels\[1\] is 0; give a whole number from 1 on"),
        ({"channels": (4,), "decoder_channels": ("8",)}, r"decoder_channels\[0\] is '8'; give a whole number"),
        ({"padding_mode": "reflect"}, "padding_mode is 'reflect'; expected one of"),
        ({"encoder_block": {"bias": False}}, "encoder_block has bias; its options are convolutions, skip"),
        ({"attention": {"beta": 1}}, "attention has beta; its options are cosine, temperature"),
        ({"radius": 0}, "radius is 0; give a whole number from 1 on"),
    ],
)
def test_networks_that_there_are_not_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DualPyramid(**arguments)


@pytest.mark.parametrize("variant", ["conv_c", "conv_mfc"])
def test_correlations_are_not_stored_for_the_backward_pass(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Tensor]] = []

    def observed(*arguments: Any) -> Tensor:
        correlation = local_correlation(*arguments)
        made.append(weakref.ref(correlation))
        return correlation

    monkeypatch.setattr("common.blocks.dual_pyramid.local_correlation", observed)
    ddf = network(variant, 2)(pair(16, 16))
    assert len(made) == len(SMALL)
    assert all(correlation() is None for correlation in made)
    ddf.sum().backward()
    assert len(made) > len(SMALL)
