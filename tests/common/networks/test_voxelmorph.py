# SPDX-License-Identifier: Apache-2.0
"""VoxelMorph as a whole: sizes, grids of the velocity, the inverse, MONAI's integration, autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monai.networks.blocks import DVF2DDF

from common.checks import InputError
from common.networks import VoxelMorph
from common.networks.voxelmorph import CONFIGURATIONS
from common.spatial import compose, integrate, resize_image

from .conftest import pair

SMALL: dict[str, Any] = {"encoder": (2, 4, 4), "decoder": (4, 4, 4, 3)}


def network(spatial_dims: int = 3, **arguments: Any) -> VoxelMorph:
    """A small network whose displacements, unlike those of a fresh one, amount to voxels."""
    torch.manual_seed(0)
    net = VoxelMorph(spatial_dims, **{**SMALL, **arguments})
    net.flow.weight.data *= 8e4
    return net


@pytest.mark.parametrize("arguments", [{}, {"backbone": "stride"}, {"int_steps": 3}, {"svf_resolution": 2}])
@pytest.mark.parametrize("spatial", [(17, 9, 5), (3, 12, 1), (21, 9), (2, 3)])
def test_displacement_has_the_size_of_the_image_whatever_it_is(
    spatial: tuple[int, ...], arguments: dict[str, Any]
) -> None:
    with torch.no_grad():
        ddf = network(len(spatial), **arguments)(pair(*spatial, batch=2))
    assert ddf.shape == (2, len(spatial), *spatial)
    assert ddf.dtype == torch.float32 and ddf.isfinite().all() and ddf.abs().max() > 0.05


def test_image_of_odd_size_is_treated_as_padded_with_zeros_at_the_far_ends() -> None:
    net, image = network(int_steps=2), pair(9, 16, 5)
    with torch.no_grad():
        padded = net(F.pad(image, (0, 3, 0, 0, 0, 7)), details=True)
        outputs = net(image, details=True)
    for name in ("ddf", "inverse_ddf"):
        torch.testing.assert_close(outputs[name], padded[name][:, :, :9, :, :5], rtol=0, atol=0)
    torch.testing.assert_close(outputs["velocity"], padded["velocity"], rtol=0, atol=0)


def test_images_that_fit_are_not_padded() -> None:
    net, shapes = network(2, **CONFIGURATIONS["voxelmorph2"] | {"encoder": (2,) * 4, "decoder": (2,) * 5}), []
    net.unet.register_forward_pre_hook(lambda module, given: shapes.append(given[0].shape[2:]))
    for size in ((16, 32), (17, 1)):
        net(pair(*size))
    assert shapes == [(16, 32), (32, 16)]


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_batch_equals_its_members(spatial_dims: int) -> None:
    net, image = network(spatial_dims, int_steps=2).double(), pair(*(12, 16, 8)[:spatial_dims], batch=2).double()
    with torch.no_grad():
        torch.testing.assert_close(net(image), torch.cat([net(one[None]) for one in image]))


@pytest.mark.parametrize("svf_resolution", [1, 2, 4])
@pytest.mark.parametrize("int_downsize", [1, 2, 4])
def test_velocity_lies_on_its_grid_and_is_what_is_integrated(svf_resolution: int, int_downsize: int) -> None:
    grids = {"svf_resolution": svf_resolution, "int_downsize": int_downsize}
    net, image = network(2, int_steps=3, padding_mode="border", **grids), pair(16, 24)
    with torch.no_grad():
        outputs, found = net(image, details=True), net.flow(net.unet(image))
    velocity, size = outputs["velocity"], (16 // int_downsize, 24 // int_downsize)
    assert found.shape[2:] == (16 // svf_resolution, 24 // svf_resolution)
    torch.testing.assert_close(velocity, resize_image(found, size) * (svf_resolution / int_downsize))
    ddf = resize_image(integrate(velocity, 3, "border"), (16, 24)) * int_downsize
    torch.testing.assert_close(outputs["ddf"], ddf)


def test_without_integration_the_velocity_is_the_displacement_and_there_is_no_way_back() -> None:
    net, image = network(2, svf_resolution=2), pair(16, 8)
    with torch.no_grad():
        outputs = net(image, details=True)
        expected = 2 * resize_image(net.flow(net.unet(image)), (16, 8))
    assert set(outputs) == {"ddf", "velocity"} and torch.equal(outputs["ddf"], outputs["velocity"])
    torch.testing.assert_close(outputs["ddf"], expected)


def test_way_back_undoes_the_way_there() -> None:
    net, image = network(2, int_steps=7, int_downsize=1), pair(32, 40)
    # Smooth enough that interpolation matters little; the border, beyond which there is no motion, is left out.
    net.flow.weight.data *= 0.3
    with torch.no_grad():
        outputs = net(image, ["inverse_ddf"])
    there = outputs["ddf"]
    left = compose(outputs["inverse_ddf"], there)[:, :, 4:-4, 4:-4]
    assert there.abs().mean() > 10 * left.abs().mean() > 0


def test_at_full_resolution_the_integration_is_that_of_monai() -> None:
    net, image = network(int_steps=7, int_downsize=1), pair(16, 8, 16)
    with torch.no_grad():
        outputs = net(image, ["velocity"])
        expected = DVF2DDF(num_steps=7, mode="bilinear", padding_mode="zeros")(outputs["velocity"])
    # MONAI's coordinates go up to 15, where numbers of float32 are 1e-6 apart.
    torch.testing.assert_close(outputs["ddf"], expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("arguments", [{"int_steps": 2}, {"backbone": "stride"}])
def test_gradients_reach_every_parameter_and_are_those_of_finite_differences(arguments: dict[str, Any]) -> None:
    net, image = network(2, **arguments).double(), pair(8, 8).double()
    weight = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
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
            # Steps of 1e-6 to both sides: float64 rounding of the sum, 1e-15, is 1e-9 of a slope; 3e-9 is found.
            torch.testing.assert_close(slope, (values[0] - values[1]) / 2e-6, rtol=1e-6, atol=1e-7, msg=name)


def test_autocast_keeps_fields_in_float32_and_changes_little() -> None:
    net, image = network(int_steps=3), pair(16, 16, 16)
    expected = net(image).detach()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = net(image, details=True)
    assert all(field.dtype == torch.float32 for field in outputs.values())
    assert (outputs["ddf"] - expected).abs().mean() < 0.1 * expected.abs().mean()
    outputs["ddf"].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_fresh_network_leaves_images_where_they_are() -> None:
    torch.manual_seed(0)
    net = VoxelMorph()
    assert net.flow.bias is not None and not net.flow.bias.any()
    # Of 1296 weights the deviation is off by 2 %, of one standard deviation: five of them.
    assert net.flow.weight.std().item() == pytest.approx(1e-5, rel=0.1)
    assert net(pair(16, 16, 16)).abs().max() < 1e-3


COUNTS = {
    "voxelmorph1": 300_307,
    "voxelmorph2": 327_331,
    "cvpr": 276_523,
    "diffeomorphic": 327_331,
    "probabilistic": 328_630,
    "ixi1": 274_387,
    "ixi2": 301_411,
    "lumir": 301_411,
    "synthmorph": 21_270_787,
}


@pytest.mark.parametrize("name", COUNTS)
def test_published_networks_have_as_many_parameters(name: str) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in VoxelMorph(**CONFIGURATIONS[name]).parameters()) == COUNTS[name]
    assert set(CONFIGURATIONS) == {*COUNTS, "tiny"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spatial_dims": 4}, "expected 2 or 3"),
        ({"backbone": "resnet"}, "expected 'pool' or 'stride'"),
        ({"padding_mode": "reflection"}, "expected 'zeros' or 'border'"),
        ({"int_steps": -1}, "int_steps is -1; give a whole number from 0"),
        ({"convs_per_level": 0}, "convs_per_level is 0; give a whole number from 1"),
        ({"convs_per_level": 3, "backbone": "stride"}, "convs_per_level is 3; a U-Net with strides has 1"),
        ({"encoder": ()}, "encoder is .* give 1 numbers of channels for each level"),
        ({"convs_per_level": 2}, "encoder is .* give 2 numbers of channels for each level"),
        ({"encoder": (2, 0, 4)}, r"encoder\[1\] is 0; give a whole number from 1"),
        ({"decoder": (4, 4, 4)}, "decoder is .* give more numbers than encoder has, which are 3"),
        ({"int_downsize": 3}, "int_downsize is 3; give a power of two up to 8"),
        ({"svf_resolution": 16}, "svf_resolution is 16; give a power of two up to 8"),
        ({"svf_resolution": 0}, "svf_resolution is 0; give a whole number from 1"),
        ({"passes": 0}, "passes is 0; give a whole number from 1"),
        ({"passes": 2}, "passes is 2; more than 1 need int_steps above 0"),
        ({"passes": 2, "int_steps": 2, "probabilistic": True}, "passes is 2; more than 1 need int_steps above 0"),
    ],
)
def test_arguments_that_make_no_network_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        VoxelMorph(**{**SMALL, **arguments})


def test_a_network_that_sees_edges_takes_an_inverted_scan_for_the_same() -> None:
    torch.manual_seed(0)
    seeing = VoxelMorph(2, **CONFIGURATIONS["tiny"], initialisation="he", sees="edges").eval()
    torch.nn.init.normal_(seeing.flow.weight)
    image = torch.rand(1, 2, 24, 17)
    ddf, other = seeing(image), seeing(torch.cat([1 - image[:, :1], image[:, 1:]], 1))
    # float32: edges of 1 - image are off by some 5e-6 of the largest, the field by 1e-6.
    torch.testing.assert_close(other, ddf, rtol=0, atol=1e-5 * float(ddf.detach().abs().max()))
    plain = VoxelMorph(2, **CONFIGURATIONS["tiny"])
    plain.load_state_dict(seeing.state_dict())
    assert (plain(image) - ddf).abs().max() > 0.1 * ddf.abs().max()


def test_weights_of_he_keep_the_size_of_features() -> None:
    torch.manual_seed(0)
    spreads = {}
    for name in ("torch", "he"):
        sizes: dict[str, Any] = {"encoder": (16, 16), "decoder": (16, 16, 16), "initialisation": name}
        fresh = VoxelMorph(2, **sizes)
        # Of what depends on the image.
        with_image, without = (fresh.unet(image) for image in (torch.randn(2, 2, 16, 16), torch.zeros(2, 2, 16, 16)))
        spreads[name] = float((with_image - without).std())
    assert spreads["he"] > 5 * spreads["torch"]
    with pytest.raises(InputError, match="initialisation is 'cold'; expected 'torch' or 'he'"):
        VoxelMorph(2, **{**sizes, "initialisation": "cold"})
