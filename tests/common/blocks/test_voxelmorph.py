# SPDX-License-Identifier: Apache-2.0
"""The U-Nets of VoxelMorph: what stands beside what, and MONAI's where it is the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import VoxelMorphUNet
from torch import Tensor, nn

from common.blocks.voxelmorph import PairUNet, convolved, enlarged_and_convolved

ENCODER, DECODER = (3, 4, 5), (6, 7, 8, 9, 5)


def places(halvings: int) -> Iterator[tuple[str, str, bool]]:
    """Our layer, MONAI's, and whether something stands beside its input."""
    prefix = "net.0"
    for level in range(halvings):
        yield f"encoder.{level}.0", f"{prefix}.0.conv" if level == 0 else f"{prefix}.0.1.conv", False
        up = f"{prefix}.2.conv" if level == 0 else f"{prefix}.2.0.conv"
        yield f"decoder.{halvings - level}.0", up, True
        prefix += ".1.submodule"
    yield "decoder.0.0", f"{prefix}.0.1.conv", False


def as_monai(unet: PairUNet) -> VoxelMorphUNet:
    """MONAI's network with the same weights, its last convolution that of the flow."""
    channels = [n for level in range(3) for n in (ENCODER[level], DECODER[2 - level])]
    monai = VoxelMorphUNet(3, 2, DECODER[3], channels, DECODER[4:], use_maxpool=True)
    ours, state = unet.state_dict(), monai.state_dict()
    for place, name, beside in places(3):
        weight = ours[f"{place}.weight"]
        if beside:
            # MONAI puts what comes from below last.
            below = weight.shape[1] - ENCODER[3 - int(place.split(".")[1])]
            weight = torch.cat([weight[:, below:], weight[:, :below]], 1)
        state[f"{name}.weight"], state[f"{name}.bias"] = weight, ours[f"{place}.bias"]
    for parameter in ("weight", "bias"):
        state[f"net.1.final_conv_0.conv.{parameter}"] = ours[f"decoder.3.1.{parameter}"]
    monai.load_state_dict(state)
    return monai


def test_with_pooling_it_is_the_network_of_monai() -> None:
    torch.manual_seed(0)
    unet, pair = PairUNet(3, ENCODER, DECODER), torch.rand(2, 2, 16, 8, 24)
    monai = as_monai(unet)
    head = monai.net[1].final_conv_out
    assert isinstance(head, nn.Module)
    with torch.no_grad():
        # float32 sums in another order: 7e-9 for values up to 0.07.
        torch.testing.assert_close(head(unet(pair)), monai(pair), rtol=0, atol=1e-7)


def layers(part: nn.Module) -> list[nn.Conv2d | nn.Conv3d]:
    return [layer for layer in part.modules() if isinstance(layer, nn.Conv2d | nn.Conv3d)]


def plain(unet: PairUNet, x: Tensor, strides: bool) -> Tensor:
    """Level by level."""
    down, up = layers(unet.encoder), layers(unet.decoder)

    def step(x: Tensor, layer: nn.Module) -> Tensor:
        return F.leaky_relu(layer(x), 0.2)

    kept = []
    for layer in down:
        kept.append(x if strides else step(x, layer))
        x = step(x, layer) if strides else F.max_pool2d(kept[-1], 2)
    for layer, beside in zip(up[:3], reversed(kept), strict=True):
        x = step(x, layer)
        x = torch.cat([x.repeat_interleave(2, 2).repeat_interleave(2, 3), beside], 1)
    for layer in up[3:]:
        x = step(x, layer)
    return x


@pytest.mark.parametrize("strides", [False, True])
def test_levels_are_put_together_as_described(strides: bool) -> None:
    torch.manual_seed(0)
    unet, pair = PairUNet(2, ENCODER, DECODER, strides=strides), torch.rand(2, 2, 16, 24)
    assert unet.halvings == 3 and unet.channels == 5
    with torch.no_grad():
        torch.testing.assert_close(unet(pair), plain(unet, pair, strides))


@pytest.mark.parametrize("strides", [False, True])
def test_enlargements_that_are_left_out_leave_a_coarser_grid(strides: bool) -> None:
    for left_out, size in enumerate([(16, 24), (8, 12), (4, 6), (2, 3)]):
        unet = PairUNet(2, ENCODER, DECODER, strides=strides, levels_left_out=left_out)
        assert unet(torch.rand(1, 2, 16, 24)).shape == (1, 5, *size)


def test_levels_may_have_several_convolutions() -> None:
    unet = PairUNet(3, (2, 3, 4, 5), (6, 7, 8, 9, 3), convs_per_level=2)
    kernels = [[layer.weight.shape[:2] for layer in layers(part)] for part in (unet.encoder, unet.decoder)]
    assert kernels[0] == [(2, 2), (3, 2), (4, 3), (5, 4)]
    assert kernels[1] == [(6, 5), (7, 6), (8, 12), (9, 8), (3, 12)]
    assert set(unet.state_dict()) >= {"encoder.1.1.weight", "decoder.1.1.weight", "decoder.2.0.weight"}
    assert unet(torch.rand(1, 2, 4, 8, 4)).shape == (1, 3, 4, 8, 4)


@pytest.mark.parametrize("dims", [2, 3])
def test_what_comes_from_below_is_repeated_and_comes_first(dims: int) -> None:
    kind = nn.Conv2d if dims == 2 else nn.Conv3d
    below, way = torch.rand(1, 2, *[2] * dims), torch.rand(1, 1, *[4] * dims)
    first, last = kind(3, 1, 3, padding=1), kind(1, 1, 3, padding=1)
    for convolution, values in ((first, [1.0, 0, 0]), (last, [-1.0])):
        for parameter in convolution.parameters():
            nn.init.zeros_(parameter)
        convolution.weight.data.flatten(2)[..., 3**dims // 2] = torch.tensor([values])
    enlarged = below[:, :1]
    for axis in range(2, 2 + dims):
        enlarged = enlarged.repeat_interleave(2, axis)
    torch.testing.assert_close(enlarged_and_convolved(below, way, first), enlarged)
    torch.testing.assert_close(convolved(way, last), -0.2 * way)
