# SPDX-License-Identifier: Apache-2.0
"""Networks that move both images towards each other: there and back on real brains, and what cannot be solved."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from torch import Tensor

from common.metrics import inverse_consistency_error
from common.networks import DualPyramid, SITReg
from common.spatial.fixed_point import Solver

BRAINS = Path(__file__).parents[4] / "shared" / "data" / "brain" / "aligned_2mm" / "imagesTr"
CHANNELS = (4, 8, 8, 8)
# Published depths with few channels; the last layer of an update, and how much larger it is made than it begins.
NETWORKS: dict[str, tuple[Any, dict[str, Any], str, float]] = {
    "sitreg": (
        SITReg,
        {"channels": CHANNELS, "update_channels": CHANNELS, "groups": 2, "update_groups": None},
        "head",
        3,
    ),
    "convic_c": (DualPyramid, {"variant": "convic_c", "channels": (*CHANNELS, 8)}, "flow", 500),
}


def untrained(name: str) -> Any:
    """A network whose fields are of a voxel or two."""
    torch.manual_seed(0)
    network, arguments, layer, factor = NETWORKS[name]
    made = network(**arguments).eval()
    with torch.no_grad():
        for found, module in made.named_modules():
            if found.endswith(layer):
                module.weight.mul_(factor)
    return made


@pytest.fixture(scope="module")
def brains() -> Tensor:
    """(1, 2, 64, 80, 64), the middle of two people's scans of 2 mm."""
    scans = [nibabel.load(path).get_fdata(dtype=np.float32) for path in sorted(BRAINS.glob("*.nii.gz"))[:2]]
    middle = [torch.from_numpy(scan)[8:72, 16:96, 16:80] for scan in scans]
    return torch.stack([scan / scan.max() for scan in middle])[None]


@pytest.mark.skipif(not BRAINS.is_dir(), reason="the real brains (../shared/data/brain/aligned_2mm) are absent")
@pytest.mark.parametrize("name", NETWORKS)
def test_there_and_back_is_where_one_started_and_exchanged_brains_exchange_the_fields(
    name: str, brains: Tensor
) -> None:
    network = untrained(name)
    with torch.no_grad():
        one, other = (network(pair, details=["inverse_ddf"]) for pair in (brains, brains.flip(1)))
    # It is no consistency of fields that do nothing.
    assert 1 < one["ddf"].norm(dim=1).max() < 3
    for there, back in (("ddf", "inverse_ddf"), ("inverse_ddf", "ddf")):
        assert inverse_consistency_error(one[there], one[back]).mean.item() < 0.05
        assert (one[there] - other[back]).abs().max() < 1e-3


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 5), (1, 9, 8)])
def test_images_smaller_than_the_coarsest_level_have_fields(name: str, size: tuple[int, ...]) -> None:
    outputs = untrained(name).train()(torch.rand(2, 2, *size, generator=torch.Generator().manual_seed(0)), details=True)
    fields = [outputs["ddf"], outputs["inverse_ddf"], *outputs["pyramid"]]
    assert outputs["ddf"].shape == (2, 3, *size) and all(bool(torch.isfinite(field).all()) for field in fields)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_solver_that_does_not_converge_says_so_and_ends(name: str, caplog: pytest.LogCaptureFixture) -> None:
    network = untrained(name)
    image = torch.rand(1, 2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    network.solver = Solver(1e-12, 3)
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        assert torch.isfinite(network(image)).all()
        assert "did not converge in 3 steps, the last of which moved by" in caplog.text and "nan" not in caplog.text
        # Where values are no numbers, further steps are of no use.
        network.solver = Solver(1e-5, 10**9)
        image[0, 0, 3, 3, 3] = torch.nan
        network(image)
    assert "did not converge in 2 steps, the last of which moved by nan voxels" in caplog.text
