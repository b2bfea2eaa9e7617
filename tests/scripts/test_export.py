# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common.checks import InputError
from common.engine import save_atomically
from common.networks import VoxelMorph
from scripts.export import network_of
from scripts.package import BUNDLES

SMALL = ["--network_def#encoder", "[2,2,2]", "--network_def#decoder", "[2,2,2,2]"]


def test_the_network_has_the_weights_and_options_that_are_named(tmp_path: Path) -> None:
    made = VoxelMorph(3, backbone="pool", encoder=[2, 2, 2], decoder=[2, 2, 2, 2], int_steps=0)
    save_atomically(made.state_dict(), tmp_path / "model.pt")
    options = ["--ckpt_path", str(tmp_path / "model.pt"), *SMALL]
    network, dims = network_of(BUNDLES / "voxelmorph_oasis", options)
    assert dims == 3 and isinstance(network, VoxelMorph)
    for name, value in made.state_dict().items():
        assert torch.equal(network.state_dict()[name], value)


@pytest.mark.parametrize(
    ("bundle", "options", "sentence"),
    [
        ("voxelmorph_oasis", ["--ckpt", "x"], "--ckpt is no option of voxelmorph_oasis."),
        ("voxelmorph_oasis", ["--device"], "'--device' is not understood"),
        ("voxelmorph_oasis", ["--ckpt_path", "none.pt"], "There are no weights at none.pt"),
        ("instance_any", [], "instance_any has no network with weights: there is nothing to export."),
    ],
)
def test_what_cannot_be_exported_is_refused(bundle: str, options: list[str], sentence: str) -> None:
    with pytest.raises(InputError) as error:
        try:
            network_of(BUNDLES / bundle, options)
        except RuntimeError as failed:  # MONAI's, of the expression that failed
            raise failed.__cause__ or failed from None
    assert sentence in str(error.value)
