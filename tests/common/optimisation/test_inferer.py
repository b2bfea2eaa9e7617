# SPDX-License-Identifier: Apache-2.0
"""The inferer: results that are better and depend on the pair alone, and a network that stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.checks import InputError
from common.engine import RegistrationInferer
from common.losses import (
    GradientInverseConsistencyLoss,
    JacobianConsistencyLoss,
    LatentLoss,
    NCCLoss,
    RegistrationLoss,
    SampledLoss,
    Term,
)
from common.networks import GradICON, NePhi
from common.optimisation import LatentCode, NetworkWeights, OptimisingInferer, Unknown
from common.spatial import warp


def blobs(*size: int, batch: int = 1) -> Tensor:
    """Pairs (batch, 2, *size) of a soft ball and one shifted and stretched."""
    axes = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in size], indexing="ij")
    places = torch.stack(axes)
    moving = [(places + 0.1 * (k + 1)).square().sum(0) for k in range(batch)]
    fixed = [(places - 0.1).square().sum(0) * 1.3 for _ in range(batch)]
    distance = torch.stack([torch.stack(moving), torch.stack(fixed)], dim=1)
    return torch.sigmoid(20 * (0.4 - distance))


def nephi(spatial_dims: int = 2, **arguments: Any) -> NePhi:
    torch.manual_seed(0)
    small = {"size": 16, "channels": (2, 4), "local_level": 1, "latent": 4, "hidden": 16, "frequencies": 8}
    return NePhi(spatial_dims, **{**small, **arguments}).eval()


def nephi_loss() -> RegistrationLoss:
    similarity, consistency = SampledLoss(NCCLoss(), 0.5), JacobianConsistencyLoss(0.05)
    terms = {
        "there": Term(similarity, ["map", "moving", "fixed", "draw"], 0.5),
        "back": Term(similarity, ["inverse_map", "fixed", "moving", "draw"], 0.5),
        "consistency": Term(consistency, ["map", "inverse_map", "fixed", "draw"], 0.1),
        "prior": Term(LatentLoss(), ["latent", "local_latent"], 0.01),
    }
    return RegistrationLoss(terms)


def gradicon(spatial_dims: int = 2) -> GradICON:
    torch.manual_seed(0)
    return GradICON(spatial_dims, channels=(8, 8), up_channels=(8, 8), halvings=(1, 0)).eval()


def gradicon_loss() -> RegistrationLoss:
    terms = {
        "there": Term(NCCLoss(), ["warped", "fixed"]),
        "back": Term(NCCLoss(), ["warped_back", "moving"]),
        "consistency": Term(GradientInverseConsistencyLoss(), ["map", "inverse_map", "fixed", "draw"], 0.1),
    }
    return RegistrationLoss(terms)


KINDS: dict[str, tuple[Any, Any, Unknown[Any], float]] = {
    "code and fields": (nephi, nephi_loss, LatentCode(), 1e-3),
    "table": (lambda dims: nephi(dims, pairs=1), nephi_loss, LatentCode(), 1e-3),
    "weights": (gradicon, gradicon_loss, NetworkWeights(), 1e-3),
}


def inferer(kind: str, steps: int = 30, **options: Any) -> OptimisingInferer:
    _, loss, unknown, rate = KINDS[kind]
    return OptimisingInferer(loss(), steps, unknown, options.pop("learning_rate", rate), **options)


@pytest.fixture(params=[*KINDS])
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


@pytest.mark.parametrize("size", [(16, 18), (16, 12, 14)])
def test_optimised_pairs_resemble_each_other_more(kind: str, size: tuple[int, ...]) -> None:
    network, image = KINDS[kind][0](len(size)), blobs(*size)
    before, after = (inferer(kind, steps)(image, network) for steps in (0, 40))
    distance = [(warp(image[:, :1], outputs["ddf"]) - image[:, 1:]).square().mean() for outputs in (before, after)]
    assert distance[1] < 0.6 * distance[0]
    told = after["optimisation"]
    assert told["steps"].tolist() == [40] and told["after"] < told["before"] and told["seconds"] > 0
    assert "optimisation" not in before and not after["ddf"].requires_grad


def test_a_slice_is_optimised_as_the_image_that_it_is() -> None:
    network, image = nephi(), blobs(16, 18)
    flat, volume = (inferer("code and fields", 2)(pair, network) for pair in (image, image[:, :, :, None]))
    assert torch.equal(volume["ddf"][:, [0, 2]], flat["ddf"][:, :, :, None]) and volume["ddf"][:, 1].eq(0).all()
    assert volume["optimisation"]["after"] == flat["optimisation"]["after"]


@pytest.mark.parametrize("training", [False, True])
def test_the_network_stays_as_it_is_also_when_interrupted(
    kind: str, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, image = KINDS[kind][0](2).train(training), blobs(16, 16)
    state, random = copy.deepcopy(network.state_dict()), torch.get_rng_state()

    def untouched() -> None:
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
        assert all(module.training == training for module in network.modules())
        assert all(p.requires_grad and p.grad is None for p in network.parameters())
        assert torch.equal(random, torch.get_rng_state())

    inferer(kind, 3)(image, network)
    untouched()
    calls = iter([torch.optim.Adam.step, None])

    def interrupted(self: torch.optim.Adam) -> None:
        step = next(calls)
        if step is None:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(torch.optim.Adam, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        inferer(kind, 3)(image, network)
    untouched()


def test_a_pair_has_one_result_whatever_came_before_and_beside_it(kind: str) -> None:
    network, images = KINDS[kind][0](2), blobs(16, 16, batch=2)
    again = inferer(kind, 5, details=["inverse_ddf", "map"])
    both = again(images, network)
    alone = [again(image[None], network) for image in images]
    for name in ("ddf", "inverse_ddf"):
        assert torch.equal(both[name], torch.cat([outputs[name] for outputs in alone]))
    for name in ("steps", "before", "after"):
        assert torch.equal(both["optimisation"][name], torch.cat([each["optimisation"][name] for each in alone]))
    points = torch.rand(2, 7, 2) * 15
    expected = torch.cat([each["map"](part[None]) for each, part in zip(alone, points, strict=True)])
    assert torch.equal(both["map"](points), expected) and not torch.equal(both["ddf"][0], both["ddf"][1])
    same = both["map"](points[:1])
    assert torch.equal(same[1:], alone[1]["map"](points[:1]))


def test_the_map_that_comes_back_is_the_optimised_one(kind: str) -> None:
    network, image = KINDS[kind][0](2), blobs(16, 16)
    outputs = inferer(kind, 20, details=["map"])(image, network)
    nodes = torch.tensor([[[3.0, 4.0], [8.0, 7.0], [12.0, 5.0]]])
    moved = outputs["ddf"][0][:, [3, 8, 12], [4, 7, 5]].T
    assert moved.abs().max() > 0.05
    torch.testing.assert_close(outputs["map"](nodes)[0] - nodes[0], moved, atol=1e-4, rtol=0)


def test_no_result_is_worse_than_the_network_s_own(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    network, image = KINDS[kind][0](2), blobs(16, 16)
    caplog.set_level("INFO")
    outputs = inferer(kind, 2, learning_rate=30.0)(image, network)
    told = outputs["optimisation"]
    assert not told["after"] < told["before"] and "own result is kept" in caplog.text
    assert torch.equal(outputs["ddf"], inferer(kind, 0)(image, network)["ddf"])


def test_images_without_contrast_end_with_the_network_s_own_result() -> None:
    network, image = gradicon(), torch.ones(1, 2, 16, 16)

    class Undefined(nn.Module):
        def forward(self, warped: Tensor, fixed: Tensor) -> Tensor:
            return ((warped - warped.mean()) / (warped - warped.mean()).norm()).sum()

    loss = RegistrationLoss({"there": Term(Undefined(), ["warped", "fixed"])})
    outputs = OptimisingInferer(loss, 3, NetworkWeights(), 1e-3)(image, network)
    assert outputs["ddf"].isfinite().all() and outputs["optimisation"]["steps"].item() == 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_that_are_switched_off_hinder_nothing(kind: str, mode: type[AbstractContextManager[None]]) -> None:
    network, image = KINDS[kind][0](2), blobs(16, 16)
    expected = inferer(kind, 3)(image, network)["ddf"]
    with mode():
        found = inferer(kind, 3)(blobs(16, 16), network)["ddf"]
    assert torch.equal(found, expected)


def test_other_points_for_another_seed() -> None:
    network, image = nephi(), blobs(16, 16)
    fields = [inferer("code and fields", 3, seed=seed)(image, network)["ddf"] for seed in (0, 0, 1)]
    assert torch.equal(fields[0], fields[1]) and not torch.equal(fields[0], fields[2])


def test_without_steps_it_is_the_plain_inferer() -> None:
    network, image = nephi(), blobs(16, 16)
    found = inferer("code and fields", 0, details=["inverse_ddf"], amp=True)(image, network)
    plain = RegistrationInferer(["inverse_ddf"], amp=True)(image, network)
    assert found.keys() == plain.keys() and all(torch.equal(found[name], plain[name]) for name in plain)


def test_what_cannot_be_used_is_refused() -> None:
    for steps, rate in ((-1, 0.1), (1, 0.0)):
        with pytest.raises(InputError, match="steps and learning_rate"):
            OptimisingInferer(nephi_loss(), steps, LatentCode(), rate)
    with pytest.raises(InputError, match="io_steps"):
        inferer("weights", 1)(blobs(16, 16), lambda image, **_: {"ddf": image})
