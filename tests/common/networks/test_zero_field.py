# SPDX-License-Identifier: Apache-2.0
"""The network of a bundle without one keeps to the contract of networks."""

from __future__ import annotations

import pytest
import torch

from common.checks import InputError
from common.networks import ZeroField

from .conftest import pair


@pytest.mark.parametrize("spatial", [(7, 6), (5, 6, 7)])
@pytest.mark.parametrize("batch", [1, 2])
def test_nothing_moves_in_images_of_any_kind(spatial: tuple[int, ...], batch: int) -> None:
    image = pair(*spatial, batch=batch).to(torch.bfloat16)
    network = ZeroField()
    ddf = network(image)
    assert ddf.dtype == torch.float32 and ddf.shape == (batch, len(spatial), *spatial) and not ddf.any()
    everything = network(image, details=True)
    assert set(everything) == {"ddf", "inverse_ddf"} and torch.equal(everything["inverse_ddf"], ddf)
    assert set(network(image, details=["*_map"])) == {"ddf"}
    assert torch.equal(ZeroField(**ZeroField(len(spatial)).arguments)(image), ddf)


def test_it_has_no_weights_and_lies_where_the_images_do() -> None:
    network = ZeroField()
    assert not network.state_dict() and network.arguments == {"spatial_dims": None}
    assert network(torch.empty(1, 2, 4, 4, device="meta")).device.type == "meta"


def test_what_is_no_pair_is_refused() -> None:
    for shape in ((1, 3, 4, 4), (1, 2, 4), (1, 2, 4, 4, 4, 4)):
        with pytest.raises(ValueError, match="expected .B, 2"):
            ZeroField()(torch.zeros(shape))
    with pytest.raises(InputError, match="add --network_def#spatial_dims 3"):
        ZeroField(2)(torch.zeros(1, 2, 4, 4, 4))
    with pytest.raises(InputError, match="spatial_dims is 4; give 2, 3 or None"):
        ZeroField(4)
