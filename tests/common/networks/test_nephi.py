# SPDX-License-Identifier: Apache-2.0
"""NePhi as a whole: any size, both maps, what is made when, the table of codes, training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from common.checks import InputError
from common.io.checkpoints import load_weights, save_atomically
from common.networks import NePhi
from common.spatial import sample_at

from .conftest import nephi_loss, pair

SMALL: dict[str, Any] = {"size": 16, "channels": (2, 4), "local_level": 0, "latent": 3, "hidden": 8, "frequencies": 4}


def network(spatial_dims: int = 3, **arguments: Any) -> NePhi:
    """A small network whose displacements, unlike those of a fresh one, amount to voxels."""
    torch.manual_seed(0)
    net = NePhi(spatial_dims, **{**SMALL, **arguments}).eval()
    for field in (net.field, net.inverse_field):
        torch.nn.init.normal_(field.head.weight, std=0.2)
    return net


@pytest.mark.parametrize("spatial", [(17, 9, 5), (16, 16, 16), (3, 12, 1), (21, 9), (16, 16)])
def test_fields_have_the_size_of_the_image_and_are_what_the_maps_say(spatial: tuple[int, ...]) -> None:
    with torch.no_grad():
        out = network(len(spatial))(pair(*spatial, batch=2), details=True)
        nodes = torch.stack([torch.randint(n, (2, 20)) for n in spatial], dim=-1).float()
        for name, function in (("ddf", "map"), ("inverse_ddf", "inverse_map")):
            field = out[name]
            assert field.shape == (2, len(spatial), *spatial) and field.dtype == torch.float32
            assert field.isfinite().all() and field.abs().max() > 0.1
            expected = nodes + sample_at(field, nodes).mT
            torch.testing.assert_close(out[function](nodes), expected, atol=1e-4, rtol=0)
    assert not torch.equal(out["ddf"], out["inverse_ddf"])


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_batch_equals_its_members(spatial_dims: int) -> None:
    net, image = network(spatial_dims).double(), pair(*(16, 12, 9)[:spatial_dims], batch=2).double()
    with torch.no_grad():
        torch.testing.assert_close(net(image), torch.cat([net(one[None]) for one in image]))


def test_autocast_leaves_the_field_in_single_precision() -> None:
    net, image = network(), pair(16, 16, 16)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        ddf = net(image)
    assert ddf.dtype == torch.float32
    torch.testing.assert_close(ddf, net(image), atol=0.2, rtol=0)


def test_training_makes_only_the_fields_that_are_named() -> None:
    net, image, loss = network(), pair(16, 16, 16), nephi_loss()
    functions = {"map", "inverse_map", "latent", "local_latent"}
    assert set(net.train()(image, details=loss.details)) == functions
    assert set(net(image, details=[*loss.details, "ddf"])) == {*functions, "ddf"}
    assert set(net(image, details=True)) == {*functions, "ddf", "inverse_ddf"}
    assert set(net.eval()(image, details=["map", "inverse_ddf*"])) == {"map", "ddf", "inverse_ddf"}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("constant", [False, True])
def test_a_training_step_reaches_every_parameter_and_gives_no_nan(batch: int, constant: bool) -> None:
    net, image, loss = network(2).train(), pair(16, 16, batch=batch), nephi_loss()
    image = torch.ones_like(image) if constant else image
    targets = {"moving": image[:, :1], "fixed": image[:, 1:], "draw": torch.tensor([[0, 1, 2]] * batch)}
    loss(net(image, details=loss.details), targets).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert set(loss.terms_of_last_call()) == {"there", "back", "consistency", "consistency_back", "prior"}


@pytest.mark.parametrize("spatial", [(16, 16), (16, 12, 9)])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e38])
def test_a_run_that_diverges_has_a_loss_that_says_so(spatial: tuple[int, ...], value: float) -> None:
    net, image, loss = network(len(spatial)).train(), pair(*spatial, batch=2), nephi_loss()
    torch.nn.init.constant_(net.field.head.weight, value)
    targets = {"moving": image[:, :1], "fixed": image[:, 1:], "draw": torch.tensor([[0, 1, 2]] * 2)}
    total = loss(net(image, details=loss.details), targets)
    total.backward()
    assert not total.isfinite()


def test_codes_of_one_pair_are_trained_until_it_is_registered() -> None:
    axes = torch.linspace(-1, 1, 24)
    bump = [torch.exp(-((axes[:, None] - row) ** 2 + axes**2) / 0.1) for row in (-0.1, 0.15)]
    image = torch.stack(bump)[None]
    torch.manual_seed(0)
    net, loss = NePhi(2, **{**SMALL, "hidden": 32, "frequencies": 16}, pairs=1), nephi_loss()
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    values = []
    for step in range(60):
        targets = {"moving": image[:, :1], "fixed": image[:, 1:], "draw": torch.tensor([[0, step, 0]])}
        total = loss(net(image, details=loss.details), targets)
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        values.append(loss.terms_of_last_call()["there"])
    assert sum(values[-5:]) < 0.3 * sum(values[:5])


def test_rows_of_the_table_are_chosen_by_number() -> None:
    net, image = network(2, pairs=3), pair(16, 16, batch=2)
    with torch.no_grad():
        assert torch.equal(net(image, index=torch.tensor([2, 0]))[1], net(image)[0])
    with pytest.raises(InputError, match=r"codes of 3 pair\(s\) and got 4: set pairs higher"):
        net(pair(16, 16, batch=4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spatial_dims": 4}, "spatial_dims is 4"),
        ({"size": (16, 16)}, "give 3 numbers, or one for all axes"),
        ({"size": 0}, "size 0 is 0"),
        ({"channels": (2, 0)}, "channels 1 is 0"),
        ({"hidden": 0}, "hidden is 0"),
        ({"pairs": 0}, "pairs is 0"),
        ({"local_level": 2}, "local_level is 2; there are levels 0 to 1"),
        ({"size": 4, "channels": (2, 2)}, "leave one voxel of .4, 4, 4., of which batch normalisation"),
        ({"spatial_dims": 2, "size": (3, 4), "channels": (2, 2)}, "leave one voxel of .3, 4., of which batch"),
    ],
)
def test_impossible_networks_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        NePhi(**{**SMALL, **arguments})


@pytest.mark.parametrize("spatial", [(5, 4), (5, 4, 4)])
def test_two_voxels_are_enough_for_a_batch_of_one_and_codes_without_an_encoder_need_none(
    spatial: tuple[int, ...],
) -> None:
    image, loss = pair(*spatial), nephi_loss()
    targets = {"moving": image[:, :1], "fixed": image[:, 1:], "draw": torch.tensor([[0, 1, 2]])}
    for size, pairs in ((spatial, None), ([4] * len(spatial), 1)):
        net = network(len(spatial), size=size, channels=(2, 2), pairs=pairs).train()
        loss(net(image, details=loss.details), targets).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_weights_for_images_of_another_size_are_refused_with_what_to_give(tmp_path: Path) -> None:
    save_atomically(network(2).state_dict(), tmp_path / "model.pt")
    with pytest.raises(
        InputError, match=r"codes\.hidden\.weight is .*another size: give the network the size of those"
    ):
        load_weights(network(2, size=(16, 24)), tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"and 22 more\.$"):
        load_weights(network(2, size=(16, 24), hidden=9), tmp_path / "model.pt")


def test_published_network_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        net = NePhi()
    assert sum(p.numel() for p in net.parameters()) == 3_266_974
    assert sum(p.numel() for p in net.codes.parameters()) == 2_986_136
