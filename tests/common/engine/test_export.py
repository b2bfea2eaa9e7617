# SPDX-License-Identifier: Apache-2.0
"""Files of a network that need none of the project's code give the field of the network for any size."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.checks import InputError
from common.engine.export import RECORDED, export_network, exported
from common.networks import LKUNet, NePhi, VoxelMorph
from tests.common.networks.test_tracing import NETWORKS, with_displacements

QUICK: dict[str, tuple[Any, dict[str, Any]]] = {
    "voxelmorph": (VoxelMorph, {"int_steps": 1, "sees": "edges"}),
    "nephi": (NePhi, {}),
    "lku-net in two dimensions": (LKUNet, {"spatial_dims": 2, "half_res": True}),
}
# Others take up to a minute, with graphs of thousands of operations whose sizes are symbols: EXPORT_ALL=1 pytest FILE.
ALL = {**QUICK, **NETWORKS} if os.environ.get("EXPORT_ALL") else QUICK
SIZES = ((33, 20, 48), (20, 50, 18))


@pytest.mark.parametrize("name", ALL)
def test_an_exported_network_serves_any_size(name: str, tmp_path: Path) -> None:
    kind, arguments = ALL[name]
    network, dims = with_displacements(kind, arguments), arguments.get("spatial_dims", 3)
    torch.export.save(exported(network, torch.rand(1, 2, *RECORDED[:dims])), tmp_path / "model.pt2")
    module = torch.export.load(tmp_path / "model.pt2").module()
    for size in SIZES:
        image = F.interpolate(
            torch.rand(1, 2, *[5] * dims), size=size[:dims], mode="trilinear" if dims == 3 else "bilinear"
        )
        with torch.no_grad():
            expected, found = network(image), module(image)
        assert expected.abs().max() > 0.05
        # Voxels: other operations than those of the network outside of a trace round otherwise.
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


class _Shift(nn.Module):
    """A displacement that is larger where the images differ; of one form for odd sizes where ``fixed`` is set."""

    def __init__(self, fixed: bool) -> None:
        super().__init__()
        self.fixed, self.factor = fixed, nn.Parameter(torch.tensor(2.0))

    def forward(self, image: Tensor) -> Tensor:
        difference = (image[:, :1] - image[:, 1:]) * self.factor
        if self.fixed and image.shape[3] % 2:
            difference = difference + 1
        return torch.cat([difference] * (image.ndim - 2), 1)


_READ = """
import sys, torch
image = torch.load("image.pt", weights_only=True)
fields = [torch.jit.load("model.ts")(image), torch.export.load("model.pt2").module()(image)]
torch.save([field.detach() for field in fields], "fields.pt")
assert not [name for name in sys.modules if name.partition(".")[0] in ("common", "monai")]
"""


@pytest.mark.parametrize("dims", [2, 3])
def test_files_are_written_that_need_no_code(dims: int, tmp_path: Path) -> None:
    network = _Shift(fixed=False)
    found = export_network(network, tmp_path / "models", dims)
    assert {path.name: difference for path, difference in found.items()} == {"model.ts": 0, "model.pt2": 0}
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["model.pt2", "model.ts"]
    image = torch.rand(1, 2, *(9, 11, 10)[:dims])
    if dims == 2:
        module = torch.export.load(tmp_path / "models" / "model.pt2").module()
        assert torch.equal(module(image), network(image))
        return
    torch.save(image, tmp_path / "models" / "image.pt")
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-W", "ignore", "-c", _READ]
    subprocess.run(command, cwd=tmp_path / "models", env=kept, check=True, timeout=300)
    for field in torch.load(tmp_path / "models" / "fields.pt", weights_only=True):
        assert torch.equal(field, network(image))


def test_a_network_that_was_recorded_for_one_size_alone_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 voxel from the network itself for images of 33 x 48 x 20 voxels"):
        export_network(_Shift(fixed=True), tmp_path, 3, ["ts"])
    assert list(tmp_path.iterdir()) == []
