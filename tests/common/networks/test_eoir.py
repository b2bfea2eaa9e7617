# SPDX-License-Identifier: Apache-2.0
"""EOIR as a whole: sizes, variants, invariances, parameters, official weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.networks import EOIR
from common.spatial import compose, integrate

from .conftest import pair

VARIANTS = ["plain", "acdc", "oasis"]


def network(spatial_dims: int = 3, *, lively: bool = True, **arguments: Any) -> EOIR:
    """A small network whose displacements, unlike those of a fresh one, amount to voxels."""
    torch.manual_seed(0)
    published_steps = 0 if arguments.get("variant") == "oasis" else 7
    arguments = {"start_channel": 4, "int_steps": published_steps, **arguments}
    net = EOIR(spatial_dims, **arguments)
    if lively:
        for name, parameter in net.named_parameters():
            if ".flow." in name:
                parameter.data *= 2
    return net


def assert_same(a: Tensor, b: Tensor) -> None:
    """Equal up to float32: either differs from double precision by up to 3e-6 of the largest displacement."""
    torch.testing.assert_close(a, b, rtol=0, atol=2e-5 * b.abs().max().item())


def count(net: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("spatial", [(33, 20, 5), (17, 48, 31), (32, 32, 32), (3, 7, 4)])
def test_displacement_has_the_size_of_the_image_whatever_it_is(variant: str, spatial: tuple[int, ...]) -> None:
    with torch.no_grad():
        ddf = network(variant=variant)(pair(*spatial))
    assert ddf.shape == (1, 3, *spatial)
    assert ddf.dtype == torch.float32 and ddf.isfinite().all() and ddf.abs().max() > 0.1


@pytest.mark.parametrize("variant", ["plain", "oasis"])
def test_two_dimensions(variant: str) -> None:
    with torch.no_grad():
        ddf = network(2, variant=variant)(pair(45, 37, batch=2))
    assert ddf.shape == (2, 2, 45, 37)
    assert ddf.isfinite().all() and ddf.abs().max() > 0.1


@pytest.mark.parametrize("variant", VARIANTS)
def test_image_of_odd_size_is_treated_as_padded_with_zeros_at_the_far_ends(variant: str) -> None:
    net, image = network(variant=variant), pair(30, 33, 17)
    z = 17 if variant == "acdc" else 32
    padded = F.pad(image, (0, z - 17, 0, 48 - 33, 0, 32 - 30))
    with torch.no_grad():
        assert_same(net(image), net(padded)[:, :, :30, :33, :17])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("int_steps", [0, 2])
def test_details_hold_every_level_in_voxels_of_its_grid(variant: str, int_steps: int) -> None:
    image = pair(30, 47, 20)
    with torch.no_grad():
        net = network(variant=variant, int_steps=int_steps)
        details, ddf = net(image, details=True), net(image)
    assert set(details) == {"ddf", "pyramid", "velocity"}
    torch.testing.assert_close(details["ddf"], ddf, rtol=0, atol=0)
    torch.testing.assert_close(details["pyramid"][0][:, :, :30, :47, :20], ddf, rtol=0, atol=0)
    sizes = [(32 >> i, 48 >> i, 20 if variant == "acdc" else 32 >> i) for i in range(5)]
    displacements, velocities = (sizes[:4], sizes[1:]) if variant == "oasis" else (sizes, sizes)
    assert [tuple(x.shape) for x in details["pyramid"]] == [(1, 3, *size) for size in displacements]
    assert [tuple(x.shape) for x in details["velocity"]] == [(1, 3, *size) for size in velocities]
    coarsest = details["velocity"][-1]
    if int_steps == 0 and variant != "oasis":
        torch.testing.assert_close(details["pyramid"][-1], coarsest, rtol=0, atol=0)
    if int_steps == 0 and variant == "oasis":
        doubled = 2 * F.interpolate(coarsest, scale_factor=2, mode="trilinear", align_corners=True)
        torch.testing.assert_close(details["pyramid"][-1], doubled, rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_level_composes_what_was_known_with_what_it_adds(variant: str) -> None:
    with torch.no_grad():
        net = network(variant=variant, int_steps=3)
        details = net(pair(32, 48, 32, seed=3), details=True)

    def doubled(ddf: Tensor) -> Tensor:
        scale = (2, 2, 1) if variant == "acdc" else (2, 2, 2)
        return 2 * F.interpolate(ddf, scale_factor=scale, mode="trilinear", align_corners=True)

    for level, velocity in enumerate(details["velocity"][:-1]):
        added, coarser = integrate(velocity, 3), details["pyramid"][level + 1]
        if variant == "oasis":
            expected = doubled(compose(coarser, added, padding_mode="zeros"))
        else:
            expected = compose(doubled(coarser), added, padding_mode="zeros")
        assert_same(details["pyramid"][level], expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_coarsest_level_of_a_tiny_image_has_an_extent(variant: str) -> None:
    net = network(variant=variant)
    details = net(pair(9, 16, 3), details=True)
    resampled = 2 if variant == "acdc" else 3
    assert min(details["velocity"][-1].shape[2 : 2 + resampled]) >= 2
    details["ddf"].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_batch_equals_its_members(variant: str) -> None:
    net, image = network(variant=variant), pair(20, 32, 18, batch=2)
    with torch.no_grad():
        singles = torch.cat([net(one[None]) for one in image])
        assert_same(net(image), singles)


def test_order_of_moving_and_fixed_matters() -> None:
    net, image = network(), pair(32, 32, 32)
    with torch.no_grad():
        assert (net(image) - net(image.flip(1))).abs().max() > 0.1


@pytest.mark.parametrize("variant", VARIANTS)
def test_scale_of_intensities_does_not_matter(variant: str) -> None:
    # In float64, and large enough that the constant under the root of the first normalisation is nothing.
    net, image = network(variant=variant).double(), pair(32, 32, 20).double()
    with torch.no_grad():
        torch.testing.assert_close(net(1e4 * image), net(1e6 * image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_flow_heads_of_zero_give_zero_displacement(variant: str) -> None:
    net = network(variant=variant)
    for name, parameter in net.named_parameters():
        if ".flow." in name:
            parameter.data.zero_()
    with torch.no_grad():
        assert not net(pair(32, 18, 33)).any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_gets_a_finite_gradient(variant: str) -> None:
    net = network(variant=variant)
    details = net(pair(32, 24, 20), details=True)
    sum(x.square().mean() for x in [*details["pyramid"], *details["velocity"]]).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # Normalisation takes biases in front of it out again.
        if not (name.endswith("bias") and ("encoder" in name or (variant == "oasis" and "mix" in name))):
            assert parameter.grad.abs().max() > 0, name


# On the coarsest level the first axis is shorter than the kernel.
@pytest.mark.parametrize(
    ("variant", "spatial"), [("plain", (32, 32, 32)), ("acdc", (32, 48, 6)), ("oasis", (64, 32, 32))]
)
def test_autocast_rounds_and_the_displacement_is_float32(variant: str, spatial: tuple[int, ...]) -> None:
    net, image = network(variant=variant), pair(*spatial)
    displacements, gradients = [], []
    for enabled in (False, True):
        net.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            details = net(image, details=True)
        assert details["ddf"].dtype == torch.float32
        sum(x.square().mean() for x in details["pyramid"]).backward()
        displacements.append(details["ddf"].detach())
        weights = [p.grad for name, p in net.named_parameters() if not name.endswith("bias") and p.grad is not None]
        gradients.append(torch.cat([grad.flatten() for grad in weights]).double())
    torch.testing.assert_close(*displacements, rtol=0, atol=0.05 * displacements[0].abs().max().item())
    exact, rounded = gradients
    assert F.cosine_similarity(exact, rounded, dim=0) > 0.99
    assert rounded.norm().item() == pytest.approx(exact.norm().item(), rel=0.05)


@pytest.mark.filterwarnings("ignore:.*jit.* is deprecated", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(("spatial_dims", "variant"), [(3, "plain"), (3, "acdc"), (3, "oasis"), (2, "plain")])
def test_traced_network_equals_eager_on_another_pair(spatial_dims: int, variant: str) -> None:
    spatial = (32, 20, 18)[:spatial_dims]
    net = network(spatial_dims, variant=variant).eval()
    with torch.no_grad():
        traced = torch.jit.trace(net, pair(*spatial), check_trace=False)
        other = pair(*spatial, seed=4)
        assert_same(traced(other), net(other))


# Parameters of the published networks by N: plain, oasis with kernel 5 (without the estimator that is never called),
# oasis with kernel 3 (with it).
PARAMETERS = {
    4: (50_780, 83_136, 52_522),
    8: (111_208, 258_772, 118_142),
    16: (294_272, 914_172, 321_958),
    32: (909_232, 3_441_484, 1_019_894),
}


@pytest.mark.parametrize("channels", PARAMETERS)
def test_number_of_parameters_is_the_published_one(channels: int) -> None:
    plain, large, small = PARAMETERS[channels]
    assert count(EOIR(start_channel=channels)) == count(EOIR(variant="acdc", start_channel=channels)) == plain
    assert count(EOIR(variant="oasis", start_channel=channels)) == large
    net = EOIR(variant="oasis", start_channel=channels, kernel_size=3)
    assert count(net) + count(net.estimators[0]) == small


def test_default_is_the_published_lumir_network() -> None:
    net = EOIR()
    assert count(net) == 909_232 and net.int_steps == 7 and net.spatial_dims == 3


@pytest.mark.parametrize("variant", VARIANTS)
def test_state_dict_holds_parameters_and_no_grids(variant: str) -> None:
    net = network(variant=variant)
    net(pair(32, 32, 32))
    assert set(net.state_dict()) == {name for name, _ in net.named_parameters()}


@pytest.mark.parametrize(
    "shape", [(1, 1, 32, 32, 32), (1, 3, 32, 32, 32), (2, 32, 32, 32), (1, 2, 32), (1, 2, 4, 4, 4, 4)]
)
def test_image_without_two_channels_or_of_another_dimension_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(B, 2, \*spatial\) with 3 spatial axes"):
        network()(torch.zeros(shape))


def test_unknown_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="variant is 'EOIR'; expected 'plain', 'acdc' or 'oasis'"):
        EOIR(variant="EOIR")  # type: ignore[arg-type]


@pytest.mark.parametrize(("spatial_dims", "variant"), [(1, "plain"), (4, "plain"), (2, "acdc")])
def test_unsupported_dimension_is_refused(spatial_dims: int, variant: Any) -> None:
    with pytest.raises(ValueError, match=f"spatial_dims is {spatial_dims}; expected 2 or 3"):
        EOIR(spatial_dims, variant=variant)


@pytest.mark.parametrize("kernel_size", [1, 4])
def test_even_or_tiny_large_kernel_is_refused(kernel_size: int) -> None:
    with pytest.raises(ValueError, match="expected an odd number"):
        EOIR(variant="oasis", kernel_size=kernel_size)
