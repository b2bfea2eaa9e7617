# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.checks import InputError
from common.losses import MSELoss, RegistrationLoss, Term, WeightedLoss
from common.spatial import warp


def case(dims: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(dims)
    size = (6, 5, 7)[:dims]
    data = {name: torch.rand((2, 1, *size), generator=generator) for name in ("moving", "fixed")}
    for name in ("fixed_mask", "moving_mask"):
        weight = torch.rand((2, 1, *size), generator=generator)
        data[name] = weight * (weight > 0.1)
    return data | {"ddf": torch.randn((2, dims, *size), generator=generator)}


class Seen(nn.Module):
    """Keeps the weight that it gets."""

    def forward(self, warped: Tensor, fixed: Tensor, weight: Tensor | None = None) -> Tensor:
        self.weight = weight
        return (warped - fixed).sum()


def weight_of(data: dict[str, Tensor], *names: str) -> Tensor | None:
    seen = Seen()
    masks = {name: data[name] for name in names}
    WeightedLoss(seen)(warp(data["moving"], data["ddf"]), data["fixed"], data["ddf"], **masks)
    return seen.weight


@pytest.mark.parametrize("dims", [2, 3])
def test_weight_is_the_product_and_0_where_nothing_of_the_interior_is_interpolated_from(dims: int) -> None:
    data = case(dims)
    size = data["ddf"].shape[2:]
    found, kinds = weight_of(data, "fixed_mask", "moving_mask"), set()
    assert found is not None
    for b in range(2):
        mask = F.pad(data["moving_mask"][b, 0], [1] * (2 * dims), value=1.0)
        for place in torch.cartesian_prod(*[torch.arange(n) for n in size]).tolist():
            expected, interior = 0.0, False
            target = torch.tensor(place) + data["ddf"][(b, slice(None), *place)]
            for corner in torch.cartesian_prod(*[torch.arange(2)] * dims):
                voxel = target.floor().long() + corner
                if all(0 <= x < n for x, n in zip(voxel.tolist(), size, strict=True)):
                    expected += (1 - (target - voxel).abs()).prod().item() * data["moving_mask"][(b, 0, *voxel)].item()
                    interior |= bool((mask[tuple(slice(x, x + 3) for x in voxel.tolist())] > 0).all())
            kinds.add((interior, expected > 0))
            expected *= data["fixed_mask"][(b, 0, *place)].item() * interior
            # Sums of eight float32 below 1.
            assert found[(b, 0, *place)].item() == pytest.approx(expected, abs=1e-6)
    assert kinds == {(True, True), (False, True), (False, False)}


def test_one_mask_is_enough_and_none_leaves_the_loss_alone() -> None:
    data = case(3)
    assert weight_of(data) is None
    found = weight_of(data, "fixed_mask")
    assert found is not None and torch.equal(found, data["fixed_mask"])
    data["ddf"].zero_()
    data["moving_mask"] = torch.ones_like(data["moving_mask"])
    # Interpolation at voxels is exact but for rounding.
    torch.testing.assert_close(weight_of(data, "moving_mask"), data["moving_mask"])
    data["fixed_mask"] = data["fixed_mask"] > 0
    found = weight_of(data, "fixed_mask")
    assert found is not None and torch.equal(found, data["fixed_mask"].float())


def test_what_the_moving_mask_leaves_out_has_no_influence() -> None:
    data = case(3)
    loss = RegistrationLoss(
        {"mse": Term(WeightedLoss(MSELoss()), ["warped", "fixed", "ddf", "fixed_mask", "moving_mask"])}
    )
    results = []
    for outside in (0.0, 1e6):
        moving = data["moving"].where(data["moving_mask"] > 0, outside)
        ddf = data["ddf"].clone().requires_grad_()
        targets = {name: value for name, value in data.items() if name != "ddf"}
        value = loss({"ddf": ddf}, targets | {"moving": moving})
        results.append((value.detach(), *torch.autograd.grad(value, ddf)))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert results[0][1].any()


def test_bad_masks_are_refused() -> None:
    data = case(2)
    empty = torch.zeros_like(data["fixed_mask"])
    for name in ("fixed_mask", "moving_mask"):
        with pytest.raises(InputError, match="No voxel of a pair has a weight"):
            weight_of(data | {name: torch.cat([data[name][:1], empty[:1]])}, name)
    with pytest.raises(InputError, match=r"images of shape \(2, 1, 6, 5\) and a weight of shape \(2, 1, 6, 4\)"):
        weight_of(data | {"fixed_mask": torch.ones(2, 1, 6, 4)}, "fixed_mask")
    with pytest.raises(InputError, match=r"a moving mask of shape \(1, 1, 6, 5\)"):
        weight_of(data | {"moving_mask": torch.ones(1, 1, 6, 5)}, "moving_mask")
