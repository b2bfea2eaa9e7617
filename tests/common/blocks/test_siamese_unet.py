# SPDX-License-Identifier: Apache-2.0
"""The U-Net, against the same one in torch modules that store everything."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.blocks.affine_norm import AffineNorm
from common.blocks.remade import Remade
from common.blocks.siamese_unet import NormedConvolution, UNet


def plain(net: UNet, image: Tensor) -> list[Tensor]:
    dims = image.ndim - 2
    convolution, pool, mode = (
        (F.conv2d, F.avg_pool2d, "bilinear") if dims == 2 else (F.conv3d, F.avg_pool3d, "trilinear")
    )

    def block(x: Tensor, *layers: nn.Module) -> Tensor:
        for layer in layers:
            assert isinstance(layer, NormedConvolution)
            x = convolution(x, layer.conv.weight, layer.conv.bias, padding=1)
            x = F.leaky_relu(F.instance_norm(x, weight=layer.norm.weight, bias=layer.norm.bias), 0.01)
        return x

    x = F.instance_norm(image, weight=net.first_norm.weight, bias=net.first_norm.bias)
    x = F.leaky_relu(convolution(x, net.first.weight, net.first.bias, padding=1), 0.01)
    ways = []
    for layers in net.down:
        ways.append(block(x, *layers.children()))
        x = pool(ways[-1], 2)
    features = [block(x, *net.bottom.children())]
    for level in reversed(range(len(net.up))):
        enlarged = F.interpolate(features[0], scale_factor=2, mode=mode, align_corners=True)
        joined = torch.cat([block(enlarged, net.enlarge[level]), ways[level]], dim=1)
        features.insert(0, block(joined, *net.up[level].children()))
    return features


@pytest.mark.parametrize("dims", [2, 3])
def test_features_and_gradients_are_those_of_plain_modules(dims: int) -> None:
    torch.manual_seed(0)
    net = UNet(dims, 2, 2, 4).double()
    assert net.channels == [4, 4, 4]
    image = torch.rand(2, 1, *(8, 12, 8)[:dims], dtype=torch.float64).requires_grad_()
    found, expected = [level.value for level in net(image)], plain(net, image)
    torch.testing.assert_close(found, expected)
    of = [image, *net.parameters()]
    totals = [sum(level.square().sum() for level in levels) for levels in (found, expected)]
    gradients = [torch.autograd.grad(total, of) for total in totals]  # type: ignore[arg-type]
    torch.testing.assert_close(*gradients)


def test_every_level_can_be_made_again() -> None:
    torch.manual_seed(0)
    for level in UNet(3, 2, 2, 4)(torch.rand(1, 1, 8, 8, 8)):
        assert level.value.requires_grad and not level.again().requires_grad
        torch.testing.assert_close(level.again(), level.value.detach(), rtol=1e-5, atol=1e-5)


def test_no_activation_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    storages = []
    normalise = AffineNorm.forward

    def recorded(self: AffineNorm, x: Tensor) -> Remade:
        result = normalise(self, x)
        storages.append(weakref.ref(result.value.untyped_storage()))
        return result

    monkeypatch.setattr(AffineNorm, "forward", recorded)
    torch.manual_seed(0)
    net = UNet(3, 2, 2, 4)
    total = torch.stack([level.value.mean() for level in net(torch.rand(1, 1, 8, 8, 8))]).sum()
    gc.collect()
    assert len(storages) == 13 and not any(storage() for storage in storages)
    total.backward()
