# SPDX-License-Identifier: Apache-2.0
"""A pair on a coarser grid: what lies at one place stays there, and what a mask leaves out is not seen."""

from __future__ import annotations

import torch

from common.optimisation.reduced import reduced_pair
from common.spatial import identity_grid


def pair(*size: int) -> dict[str, torch.Tensor]:
    """Images whose value is the place along the first axis."""
    image = identity_grid(size, torch.device("cpu"), torch.float32)[:, :1]
    return {"moving": image, "fixed": 2 * image}


def test_places_stay_where_they_are() -> None:
    known = {
        "fixed_label": (pair(21, 16)["fixed"] > 20).to(torch.uint8),
        "moving_landmarks": torch.tensor([[[20.0, 15.0], [10.0, 0.0]]]),
        "spacing": torch.tensor([[1.0, 2.0]]),
        "draw": torch.tensor([[1, 2, 3]]),
    }
    found = reduced_pair({**pair(21, 16), **known}, (11, 8))
    middle = found["moving"][0, 0, 2:-2, 3]
    # Every second voxel; a blur leaves a slope as it is, away from its ends.
    torch.testing.assert_close(middle, 2.0 * torch.arange(2, 9))
    torch.testing.assert_close(found["fixed"], 2 * found["moving"])
    assert torch.equal(found["fixed_label"][0, 0, :, 0], (torch.arange(11) > 5).to(torch.uint8))
    torch.testing.assert_close(found["moving_landmarks"], torch.tensor([[[10.0, 7.0], [5.0, 0.0]]]))
    torch.testing.assert_close(found["spacing"], torch.tensor([[2.0, 2.0 * 15 / 7]]))
    assert torch.equal(found["draw"], known["draw"])


def test_what_a_mask_leaves_out_has_no_influence() -> None:
    clean = pair(24, 20)
    mask = torch.ones_like(clean["moving"])
    mask[:, :, 8:16, 5:12] = 0
    spoilt = clean | {"moving": torch.where(mask > 0, clean["moving"], 1e6)}
    one, other = (reduced_pair({**images, "moving_mask": mask}, (12, 10)) for images in (clean, spoilt))
    assert torch.equal(one["moving"], other["moving"]) and torch.equal(one["moving_mask"], other["moving_mask"])
    weight = one["moving_mask"]
    assert weight.min() == 0 and weight.max() == 1 and ((weight > 0.1) & (weight < 0.9)).any()
    assert "fixed_mask" not in one


def test_a_grid_of_the_same_size_changes_nothing() -> None:
    images = pair(8, 9)
    found = reduced_pair(images, (8, 9))
    assert all(found[name] is images[name] for name in images)
