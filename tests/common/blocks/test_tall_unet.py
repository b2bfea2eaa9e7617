# SPDX-License-Identifier: Apache-2.0
"""The U-Net of ICON against its definition written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.blocks.tall_unet import TallUNet, _fitted

STATISTICS = ("weight", "bias", "running_mean", "running_var")


def unet(spatial_dims: int) -> TallUNet:
    torch.manual_seed(0)
    net = TallUNet(spatial_dims, (6, 4, 5), (3, 7, 4)).double()
    for parameter in net.parameters():
        parameter.data.normal_(std=0.3)
    return net


def plain(net: TallUNet, x: Tensor) -> Tensor:
    """Two dimensions, in eval mode, from the finest level to the coarsest and back."""
    values, skips = net.state_dict(), []
    for k in range(3):
        skips.append(x)
        y = F.conv2d(F.leaky_relu(x, 0.01), values[f"down.{k}.weight"], values[f"down.{k}.bias"], stride=2, padding=1)
        # Averages of what there is.
        added = (0, x.shape[3] % 2, 0, x.shape[2] % 2)
        sums, counts = (F.avg_pool2d(F.pad(z, added), 2, divisor_override=1) for z in (x, torch.ones_like(x)))
        x = y + to_channels(sums / counts, y.shape[1])
    for k in (2, 1, 0):
        weight, bias = values[f"up.{k}.weight"], values[f"up.{k}.bias"]
        y = F.conv_transpose2d(F.leaky_relu(x, 0.01), weight, bias, stride=2, padding=1)
        x = y + F.interpolate(to_channels(x, y.shape[1]), scale_factor=2, mode="bilinear")
        norm = {part: values[f"norms.{k}.{part}"].view(1, -1, 1, 1) for part in STATISTICS}
        x = (x - norm["running_mean"]) / (norm["running_var"] + 1e-5).sqrt() * norm["weight"] + norm["bias"]
        x = torch.cat([x[:, :, : skips[k].shape[2], : skips[k].shape[3]], skips[k]], 1)
    return F.conv2d(x, values["last.weight"], values["last.bias"], padding=1) / 10


def to_channels(x: Tensor, channels: int) -> Tensor:
    zeros = torch.zeros(x.shape[0], max(channels - x.shape[1], 0), *x.shape[2:], dtype=x.dtype)
    return torch.cat([zeros, x], 1)[:, :channels]


@pytest.mark.parametrize("size", [(5, 6), (9, 13), (16, 11)])
def test_output_is_that_of_the_definition(size: tuple[int, int]) -> None:
    net = unet(2)
    for name, buffer in net.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 2)
    image = torch.randn(2, 2, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(image), plain(net, image))


@pytest.mark.parametrize("size", [(5, 7), (5, 6, 9)])
def test_any_size_from_the_least_one_on_can_be_trained_with_a_single_pair(size: tuple[int, ...]) -> None:
    net = unet(len(size))
    found = net(torch.rand(1, 2, *size, dtype=torch.float64))
    assert found.shape == (1, len(size), *size)
    found.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_a_fresh_one_displaces_nothing_and_learns() -> None:
    net = TallUNet(2, (4, 4), (4, 4))
    image = torch.rand(1, 2, 8, 8)
    assert net(image).eq(0).all()
    net(image).sum().backward()
    assert net.last.weight.grad is not None and net.last.weight.grad.abs().max() > 0


def test_channels_are_cut_at_the_end_and_added_at_the_beginning() -> None:
    x = torch.arange(1.0, 4).view(1, 3, 1, 1)
    assert _fitted(x, 2).flatten().tolist() == [1, 2]
    assert _fitted(x, 5).flatten().tolist() == [0, 0, 1, 2, 3]
