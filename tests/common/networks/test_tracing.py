# SPDX-License-Identifier: Apache-2.0
"""A network that was traced for one size gives the field of the network itself for any other."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.networks import (
    EOIR,
    VFA,
    DualPyramid,
    GradICON,
    LKUNet,
    NePhi,
    SITReg,
    TransMorph,
    TransMorphBSpline,
    TransMorphDiff,
    TransMorphTVF,
    VoxelMorph,
)
from common.networks.contract import padded

NETWORKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "eoir": (EOIR, {}),
    "eoir of acdc": (EOIR, {"variant": "acdc"}),
    "eoir of oasis": (EOIR, {"variant": "oasis"}),
    "eoir in two dimensions": (EOIR, {"spatial_dims": 2}),
    "nephi": (NePhi, {}),
    "vfa": (VFA, {}),
    "sitreg": (SITReg, {}),
    "dual pyramid": (DualPyramid, {"variant": "conv_mfc"}),
    "dual pyramid of attention": (DualPyramid, {"variant": "vfa"}),
    "inverse-consistent dual pyramid": (DualPyramid, {"variant": "convic_c", "spatial_dims": 2}),
    "gradicon": (GradICON, {}),
    "gradicon in two dimensions": (GradICON, {"spatial_dims": 2}),
    "voxelmorph": (VoxelMorph, {"int_steps": 7}),
    "voxelmorph that sees edges": (VoxelMorph, {"svf_resolution": 2, "sees": "edges"}),
    "voxelmorph in two passes": (VoxelMorph, {"int_steps": 2, "initialisation": "he", "passes": 2}),
    "lku-net": (LKUNet, {"int_steps": 2}),
    "lku-net of half resolution in two dimensions": (LKUNet, {"spatial_dims": 2, "half_res": True}),
    "transmorph": (TransMorph, {}),
    "transmorph of splines": (TransMorphBSpline, {"int_steps": 2}),
    "transmorph of random velocities": (TransMorphDiff, {"output_resolution": "half"}),
    "transmorph in time": (TransMorphTVF, {"int_steps": 1}),
    "transmorph in time, of lumir, in two dimensions": (TransMorphTVF, {"variant": "lumir", "spatial_dims": 2}),
    "transmorph of oasis in two dimensions": (
        TransMorph,
        {"spatial_dims": 2, "output_resolution": "half", "align_corners": False},
    ),
}
# Long axes, whose working size is a multiple of 16 by itself, and short ones, which need more; a single slice.
TRACED = ((32, 20, 33), (16, 18, 9))
OTHERS = ((8, 18, 32), (33, 16, 12), (17, 32, 1))


def with_displacements(kind: Any, arguments: dict[str, Any]) -> nn.Module:
    """A small network whose displacements are some tenths of a voxel or more."""
    torch.manual_seed(0)
    network: nn.Module = kind(**sys.modules[kind.__module__].CONFIGURATIONS["tiny"], **arguments).eval()
    for parameter_name, parameter in network.named_parameters():
        if "flow" in parameter_name:  # displacements of voxels, which those of a fresh network are not
            parameter.data *= {DualPyramid: 2e3, VoxelMorph: 1e5}.get(kind, 2)
        if ".last." in parameter_name:  # nor are there any
            parameter.data.normal_(std=0.1)
        if "head" in parameter_name and parameter.abs().max() < 1e-3:
            parameter.data.normal_(std=0.05)
    return network


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "size"), [*((name, TRACED[0]) for name in NETWORKS), ("eoir of acdc", TRACED[1]), ("vfa", TRACED[1])]
)
def test_a_traced_network_serves_any_size(name: str, size: tuple[int, ...]) -> None:
    kind, arguments = NETWORKS[name]
    network = with_displacements(kind, arguments)
    dims = arguments.get("spatial_dims", 3)
    with torch.no_grad():
        traced = torch.jit.trace(network, torch.rand(1, 2, *size[:dims]), check_trace=False)
        for other in (size, *OTHERS):
            coarse = torch.rand(1, 2, *(5, 6, 5)[:dims])
            image = F.interpolate(coarse, size=other[:dims], mode="trilinear" if dims == 3 else "bilinear")
            expected = network(image)
            assert expected.abs().max() > 0.05
            # Voxels: other operations than those of the network outside of a trace round otherwise.
            torch.testing.assert_close(traced(image), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("unit", [8, 16])
def test_padded_is_the_least_multiple_of_two_units_or_more(unit: int) -> None:
    assert [padded(n, unit) for n in range(1, 100)] == [
        next(m for m in range(2 * unit, 200, unit) if m >= n) for n in range(1, 100)
    ]
