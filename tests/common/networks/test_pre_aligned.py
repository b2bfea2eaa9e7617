# SPDX-License-Identifier: Apache-2.0
"""Two networks in a row: each alone, both together, gradients, what training changes, one interpolation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.checks import InputError
from common.engine import RegistrationInferer, load_weights, save_atomically
from common.losses import JacobianConsistencyLoss, NCCLoss, SampledLoss
from common.networks import EOIR, GradICON, NePhi, PreAligned
from common.optimisation import LatentCode, NetworkWeights, OptimisingInferer
from common.spatial import compose, identity_grid, resize_ddf, warp

from .conftest import nephi_loss, pair

CHAIN: dict[str, Any] = {"channels": (4, 6), "up_channels": (4, 5), "halvings": (1, 0)}
FIELD: dict[str, Any] = {"size": 16, "channels": (2, 4), "local_level": 0, "latent": 3, "hidden": 8, "frequencies": 4}


class Identity(nn.Module):
    """A network that finds the images registered."""

    def __init__(self, spatial_dims: int) -> None:
        super().__init__()
        self.spatial_dims, self.arguments = spatial_dims, dict[str, Any]()

    def forward(self, image: Tensor, details: Any = False) -> Any:
        nothing = image.new_zeros(len(image), self.spatial_dims, *image.shape[2:])
        return {name: nothing for name in ("ddf", "inverse_ddf")} if details else nothing


def chain(spatial_dims: int, std: float = 0.3) -> GradICON:
    """A small network that moves by voxels."""
    torch.manual_seed(0)
    net = GradICON(spatial_dims, **CHAIN)
    for name, parameter in net.named_parameters():
        if ".last." in name:
            parameter.data.normal_(std=std)
    return net


def field(spatial_dims: int, std: float = 0.1) -> NePhi:
    """A small network whose maps are smooth and move by voxels."""
    torch.manual_seed(0)
    net = NePhi(spatial_dims, **FIELD)
    for part in (net.field, net.inverse_field):
        part.frequencies.mul_(0.1)
        nn.init.normal_(part.head.weight, std=std)
    return net


def still(spatial_dims: int) -> NePhi:
    return field(spatial_dims, std=0)


@pytest.mark.parametrize("halvings", [0, 1])
@pytest.mark.parametrize("spatial", [(17, 13), (16, 9, 12)])
def test_where_one_network_finds_nothing_the_other_is_left(spatial: tuple[int, ...], halvings: int) -> None:
    dims, image = len(spatial), pair(*spatial, batch=2)
    points = torch.randint(8, (2, 7, dims)).float()
    second, first = field(dims).eval(), chain(dims).eval()
    with torch.no_grad():
        for total, alone in (
            (PreAligned(Identity(dims), second, halvings), second),
            (PreAligned(first, still(dims)), first),
        ):
            found, expected = total.eval()(image, details=True), alone(image, details=True)
            assert expected.keys() <= found.keys() and expected["ddf"].abs().max() > 1
            for name, value in expected.items():
                values = (found[name](points), value(points)) if name.endswith("map") else (found[name], value)
                torch.testing.assert_close(*values, atol=1e-4, rtol=0, msg=name)


@pytest.mark.parametrize("halvings", [0, 1])
@pytest.mark.parametrize("spatial", [(17, 13), (17, 9, 13)])
def test_maps_are_those_of_both_networks_one_after_the_other(spatial: tuple[int, ...], halvings: int) -> None:
    dims, image = len(spatial), pair(*spatial, batch=2)
    first, second = chain(dims).eval(), field(dims).eval()
    with torch.no_grad():
        coarse = image if halvings == 0 else (F.avg_pool2d if dims == 2 else F.avg_pool3d)(image, 2, ceil_mode=True)
        found = first(coarse, details=True)
        pre, pre_back = (resize_ddf(found[name], spatial) for name in ("ddf", "inverse_ddf"))
        own = second(torch.cat([warp(image[:, :1], pre), image[:, 1:]], dim=1), details=True)
        out = PreAligned(first, second, halvings)(image, details=True)
        grid = identity_grid(spatial)
        middle = (grid + pre_back).flatten(2).mT
        dense = {"ddf": compose(pre, own["ddf"]), "inverse_ddf": own["inverse_map"](middle).mT.view_as(pre) - grid}
        for name, function in (("ddf", "map"), ("inverse_ddf", "inverse_map")):
            assert dense[name].abs().max() > 1
            torch.testing.assert_close(out[name], dense[name], atol=1e-5, rtol=0)
            nodes = grid.flatten(2).mT.expand(2, -1, -1)
            at_nodes = (out[function](nodes) - nodes).mT.view_as(pre)
            # The size is odd, so that a field of half of it is linear between the voxels here.
            torch.testing.assert_close(at_nodes, out[name], atol=1e-4, rtol=0)


class Unsure(Identity):
    """Says how far off it may be."""

    def forward(self, image: Tensor, details: Any = False) -> Any:
        found = super().forward(image, details)
        return {**found, "deviation": found["ddf"] + 1, "weight_map": image[:, 1:]} if details else found


def test_deviation_of_the_second_network_alone_is_not_taken_for_that_of_both() -> None:
    found = PreAligned(chain(2), Unsure(2)).eval()(pair(12, 9), details=["deviation", "*_map"])
    assert {*found} == {"ddf", "weight_map"}


def test_far_outside_the_way_goes_on_as_at_the_border() -> None:
    first, image = chain(2).eval(), pair(12, 9, batch=1)
    with torch.no_grad():
        shift = first(image)[0, :, -1, -1]
        place = torch.tensor([[[40.0, 30.0]]])
        moved = PreAligned(first, still(2)).eval()(image, details=["map"])["map"](place)
    torch.testing.assert_close(moved[0, 0], place[0, 0] + shift)


@pytest.mark.parametrize("dims", [2, 3])
def test_derivative_of_the_whole_map_is_that_of_differences(dims: int) -> None:
    net = PreAligned(chain(dims), field(dims), 1).double().eval()
    image, step = pair(*(12, 11, 9)[:dims], batch=2).double(), 1e-6
    with torch.no_grad():
        out = net(image, details=["map", "inverse_map"])
    points = 1 + 7 * torch.rand(2, 9, dims, dtype=torch.float64)
    for name in ("map", "inverse_map"):
        with torch.no_grad():
            values, derivative = out[name].with_derivative(points)
            torch.testing.assert_close(values, out[name](points))
            for axis, along in enumerate(step * torch.eye(dims, dtype=torch.float64)):
                difference = (out[name](points + along) - out[name](points - along)) / (2 * step)
                torch.testing.assert_close(derivative[..., axis], difference, atol=1e-6, rtol=1e-6)


def test_gradient_of_the_whole_loss_is_that_of_differences() -> None:
    net, image = PreAligned(chain(2), field(2), 1).double().eval(), pair(12, 11, batch=2).double()
    points = 1 + 8 * torch.rand(1, 20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def value() -> Tensor:
        there, back = (net(image, details=["map", "inverse_map"])[name] for name in ("map", "inverse_map"))
        similarity = SampledLoss(NCCLoss()).at(there, image[:, :1], image[:, 1:], points)
        return similarity + sum(
            JacobianConsistencyLoss().at(*both, image, points) for both in ((there, back), (back, there))
        )

    value().backward()
    generator = torch.Generator().manual_seed(1)
    parameters = [*net.second.parameters()]
    directions = [torch.randn(part.shape, generator=generator, dtype=torch.float64) for part in parameters]
    slope = sum((part.grad * along).sum() for part, along in zip(parameters, directions, strict=True))
    with torch.no_grad():
        torch._foreach_add_(parameters, directions, alpha=1e-7)
        ahead = value()
        torch._foreach_add_(parameters, directions, alpha=-2e-7)
        torch.testing.assert_close(slope, (ahead - value()) / 2e-7, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dims", [2, 3])
def test_training_changes_all_of_the_second_network_and_nothing_of_the_first(dims: int) -> None:
    net, image, objective = (
        PreAligned(chain(dims), field(dims)).train(),
        pair(*(16, 12, 9)[:dims], batch=2),
        nephi_loss(),
    )
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    outputs = RegistrationInferer(objective.details)(image, net)
    assert set(outputs) == {"map", "inverse_map", "latent", "local_latent"}
    objective(
        outputs, {"moving": image[:, :1], "fixed": image[:, 1:], "draw": torch.tensor([[0, 1, 2]] * 2)}
    ).backward()
    optimiser.step()
    after = net.state_dict()
    assert net.second.training and not any(part.training for part in net.first.modules())
    assert not any(parameter.requires_grad for parameter in net.first.parameters())
    for name, value in before.items():
        fixed = name.startswith("first.") or name.endswith("frequencies")
        assert torch.equal(after[name], value) == fixed, name


def test_a_first_network_without_a_way_back_is_asked_the_other_way_round() -> None:
    torch.manual_seed(0)
    first, image = EOIR(2, start_channel=2).eval(), pair(32, 32, batch=2)
    for name, parameter in first.named_parameters():
        parameter.data.mul_(50 if "flow" in name else 1)
    with torch.no_grad():
        out = PreAligned(first, still(2)).eval()(image, details=["inverse_ddf"])
        torch.testing.assert_close(out["inverse_ddf"], first(image.flip(1)), atol=1e-4, rtol=0)
        assert out["inverse_ddf"].abs().max() > 0.1


def test_a_second_network_without_maps_can_be_trained_with_both_directions() -> None:
    torch.manual_seed(0)
    net, image = PreAligned(chain(2), EOIR(2, start_channel=2)).train(), pair(32, 32, batch=2)
    outputs = RegistrationInferer(["ddf", "inverse_ddf"])(image, net)
    torch.testing.assert_close(outputs["inverse_ddf"], net(image.flip(1)))
    outputs["inverse_ddf"].sum().backward()


def test_weights_travel_with_the_whole_and_are_read_by_one_that_was_made_alike(tmp_path: Path) -> None:
    net, image = PreAligned(chain(2), field(2), 1).eval(), pair(12, 9, batch=2)
    save_atomically(net.state_dict(), tmp_path / "model.pt")
    arguments = {key: net.arguments[key] for key in ("first", "second")}
    assert [part.pop("class") for part in arguments.values()] == ["GradICON", "NePhi"]
    again = PreAligned(GradICON(**arguments["first"]), NePhi(**arguments["second"]), net.arguments["halvings"])
    with torch.no_grad():
        assert torch.equal(load_weights(again.eval(), tmp_path / "model.pt")(image), net(image))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("halvings", [0, 1])
def test_traced_it_serves_any_size(halvings: int) -> None:
    net = PreAligned(chain(3, 0.1), field(3), halvings).eval()
    with torch.no_grad():
        traced = torch.jit.trace(net, torch.rand(1, 2, 20, 18, 17), check_trace=False)
        for size in ((20, 18, 17), (9, 24, 12), (5, 16, 12)):
            image = pair(*size, batch=1)
            expected = net(image)
            assert expected.abs().max() > 0.5
            torch.testing.assert_close(traced(image), expected, rtol=0, atol=1e-3)


def test_networks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="One network is 3D and the other 2D: give both the same"):
        PreAligned(chain(3), field(2))
    with pytest.raises(InputError, match="halvings is -1"):
        PreAligned(chain(2), field(2), -1)


@pytest.mark.parametrize("dims", [2, 3])
def test_codes_of_the_second_network_are_optimised_behind_what_the_first_one_has_found(dims: int) -> None:
    net, image = PreAligned(chain(dims), field(dims), 1).eval(), pair(*(16, 12, 9)[:dims], batch=2)
    own = net.auto_decoder(image)
    assert {name.partition(".")[0] for name, part in own.named_parameters() if part.requires_grad} == {"second"}
    assert {*own.codes.parameters()} <= {*own.parameters()} and own.training
    # Other images change nothing.
    points, other = torch.randint(8, (2, 7, dims)).float(), torch.zeros_like(image)
    expected, found = net(image, details=True), own.eval()(other, details=True)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        values = (found[name](points), value(points)) if name.endswith("map") else (found[name], value)
        torch.testing.assert_close(*values, msg=name)
    with pytest.raises(InputError, match="EOIR has no code of a pair that could be optimised"):
        PreAligned(chain(2), EOIR(2, start_channel=2)).auto_decoder(image)


def test_optimisation_on_a_pair_improves_the_whole_and_leaves_the_network_alone() -> None:
    net, image, objective = PreAligned(chain(2, 0.1), still(2)).eval(), pair(20, 18, batch=2), nephi_loss()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    inferer = OptimisingInferer(objective, 10, LatentCode(), 1e-3, ["inverse_ddf"])
    with torch.no_grad():
        outputs, plain = inferer(image, net), net(image)
    assert (outputs["optimisation"]["after"] < outputs["optimisation"]["before"]).all()
    assert not torch.equal(outputs["ddf"], plain)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("unknown", [LatentCode(), NetworkWeights()])
def test_optimisation_on_constant_images_ends_with_finite_fields(unknown: Any) -> None:
    net, image, objective = PreAligned(chain(2, 0.1), field(2)).eval(), torch.full((1, 2, 20, 18), 0.7), nephi_loss()
    outputs = OptimisingInferer(objective, 3, unknown, 1e-3, ["inverse_ddf"])(image, net)
    assert all(outputs[name].isfinite().all() for name in ("ddf", "inverse_ddf"))
    assert outputs["optimisation"]["steps"] == 3
