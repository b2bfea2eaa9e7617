# SPDX-License-Identifier: Apache-2.0
"""The field as what is unknown: known displacements are found, from nothing and from a network's field."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.checks import InputError
from common.losses import LNCCLoss, RegistrationLoss, Term
from common.optimisation import Field, OptimisingInferer
from common.spatial import compose, gaussian_filter, jacobian_determinant, warp


class Fixed(nn.Module):
    """A network that says one field."""

    def __init__(self, ddf: Tensor) -> None:
        super().__init__()
        self.ddf = nn.Parameter(ddf)

    def forward(self, image: Tensor, details: Any = False) -> Any:
        return {"ddf": self.ddf, "velocity": self.ddf} if details else self.ddf


def known(*size: int) -> tuple[Tensor, Tensor]:
    """A pair (1, 2, *size) and the field between them."""
    torch.manual_seed(1)
    moving = gaussian_filter(torch.rand(1, 1, *size), 1.0) * 4
    ddf = gaussian_filter(torch.randn(1, len(size), *size), 3.0)
    ddf *= 2 / ddf.abs().max()
    return torch.cat([moving, warp(moving, ddf)], dim=1), ddf


def inferer(steps: Any = 20, levels: tuple[int, ...] = (2, 1), **options: Any) -> OptimisingInferer:
    loss = RegistrationLoss({"lncc": Term(LNCCLoss(kernel_size=5), ["warped", "fixed"])})
    return OptimisingInferer(loss, steps, Field(levels), 0.5, **options)


@pytest.mark.parametrize("size", [(40, 36), (24, 26, 22)])
def test_a_known_field_is_found_without_folding(size: tuple[int, ...]) -> None:
    image, ddf = known(*size)
    outputs = inferer(30)(image, Fixed(torch.zeros_like(ddf)))
    inside = (slice(None), slice(None), *[slice(4, -4)] * len(size))
    error = (outputs["ddf"] - ddf)[inside].norm(dim=1)
    assert error.mean() < 0.35 * ddf[inside].norm(dim=1).mean()
    assert jacobian_determinant(outputs["ddf"]).min() > 0
    told = outputs["optimisation"]
    assert told["steps"].tolist() == [60] and told["after"] < 0.5 * told["before"]


def test_it_begins_with_the_network_s_field_and_keeps_it_where_nothing_is_better() -> None:
    image, ddf = known(24, 20)
    near = inferer(10, (1,), details=["velocity"])(image, Fixed(0.6 * ddf))
    far = inferer(10, (1,))(image, Fixed(torch.zeros_like(ddf)))
    assert near["optimisation"]["before"] < 0.5 * far["optimisation"]["before"]
    assert near.keys() == {"ddf", "optimisation"} and not near["ddf"].requires_grad
    same = inferer(3, (1,))(image[:, :1].expand(-1, 2, -1, -1), Fixed(torch.zeros_like(ddf)))
    assert same["ddf"].eq(0).all() and not same["optimisation"]["after"] < same["optimisation"]["before"]


def test_each_pair_of_a_batch_is_alone_and_the_network_stays() -> None:
    (one, ddf), (other, _) = known(20, 18), known(18, 20)
    images, network = torch.cat([one, other.mT]), Fixed(torch.zeros_like(ddf))
    with torch.inference_mode():
        both = inferer(3)(images, network)
    alone = [inferer(3)(image[None], network) for image in images]
    assert torch.equal(both["ddf"], torch.cat([outputs["ddf"] for outputs in alone]))
    assert not torch.equal(both["ddf"][0], both["ddf"][1])
    assert network.ddf.eq(0).all() and network.ddf.grad is None


def test_both_directions_together_treat_both_images_alike() -> None:
    image, ddf = known(32, 30)
    alike = LNCCLoss(kernel_size=5)
    back = Term(alike, ["warped_back", "moving"])
    loss = RegistrationLoss({"there": Term(alike, ["warped", "fixed"]), "back": back})
    both = OptimisingInferer(loss, 15, Field((2, 1)), 0.5, ["inverse_ddf"])
    there, again = (both(pair, Fixed(torch.zeros_like(ddf))) for pair in (image, image.flip(1)))
    one_way = [inferer(15)(pair, Fixed(torch.zeros_like(ddf)))["ddf"] for pair in (image, image.flip(1))]
    assert compose(there["ddf"], there["inverse_ddf"]).abs().max() < 0.01
    left = compose(there["ddf"], again["ddf"])[..., 4:-4, 4:-4].norm(dim=1).mean()
    assert left < 0.7 * compose(*one_way)[..., 4:-4, 4:-4].norm(dim=1).mean()


def test_it_ends_early_where_nothing_is_won_any_more() -> None:
    image, ddf = known(24, 20)
    outputs = inferer(400, (1,))(image, Fixed(torch.zeros_like(ddf)))
    assert 20 <= outputs["optimisation"]["steps"].item() < 300
    again = OptimisingInferer(inferer().loss, 60, Field((1,), tolerance=0), 0.5)(image, Fixed(torch.zeros_like(ddf)))
    assert again["optimisation"]["steps"].item() == 60


def test_levels_have_their_own_numbers_of_steps_and_thin_axes_stay() -> None:
    image, ddf = known(24, 20, 5)
    outputs = inferer([3, 2], (4, 1))(image, Fixed(torch.zeros_like(ddf)))
    assert outputs["optimisation"]["steps"].item() == 5 and outputs["ddf"].shape == ddf.shape
    stages = Field((4, 1)).stages(Field((4, 1)).start(Fixed(ddf), image), {"moving": image, "fixed": image}, [1], 0.5)
    assert [tuple(stage.targets["fixed"].shape[2:]) for stage in stages] == [(8, 8, 5), (24, 20, 5)]


@pytest.mark.parametrize("levels", [(), (0, 1), (1.5,)])
def test_levels_that_are_none_are_refused(levels: Any) -> None:
    with pytest.raises(InputError, match="levels"):
        Field(levels)


def test_steps_that_do_not_fit_the_levels_are_refused() -> None:
    image, ddf = known(16, 16)
    with pytest.raises(InputError, match=r"io_steps is \[1, 2, 3\] for the levels \[2, 1\]"):
        inferer([1, 2, 3])(image, Fixed(ddf))
