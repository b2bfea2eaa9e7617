# SPDX-License-Identifier: Apache-2.0
"""Optimisation on the pair itself, without any trained network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import monai.bundle
import pytest

from .conftest import BUNDLES, phantom_options, tiny

UNTRAINED = [
    (bundle, overlay)
    for bundle in BUNDLES
    for overlay in ("auto_decoder", "untrained_gradicon")
    if (bundle / "configs" / f"{overlay}.json").is_file()
]
SMALL_GRADICON = {"network_def#channels": [2, 4], "network_def#up_channels": [2, 4], "network_def#halvings": [1, 0]}


@pytest.mark.parametrize(("bundle", "overlay"), UNTRAINED, ids=lambda part: getattr(part, "name", part))
def test_two_files_are_registered_without_a_trained_network(
    bundle: Path, overlay: str, phantoms: Path, tmp_path: Path
) -> None:
    moving, fixed = (phantoms / "imagesTr" / f"SHAPES_{number}_0000.nii.gz" for number in ("0002", "0001"))
    options: dict[str, Any] = {**phantom_options(bundle, phantoms, "infer"), "io_steps": 4}
    options |= SMALL_GRADICON if overlay == "untrained_gradicon" else tiny(bundle)
    options |= {"moving": str(moving), "fixed": str(fixed), "ckpt_path": str(tmp_path / "none.pt")}
    options |= {"spatial_size": [20, 20, 20], "spacing": [2, 2, 2]}
    # Codes lie on the grid of the images.
    options.pop("network_def#size", None)
    found, no_logging = [], cast(Any, False)
    for name in ("once", "again"):
        monai.bundle.run(
            config_file=[str(bundle / "configs" / f"{file}.json") for file in ("inference", overlay)],
            meta_file=str(bundle / "configs" / "metadata.json"),
            logging_file=no_logging,
            bundle_root=str(bundle),
            output_dir=str(tmp_path / name),
            **options,
        )
        (pair,) = json.loads((tmp_path / name / "provenance.json").read_text())["pairs"].values()
        found.append(pair["optimisation"])
        assert (tmp_path / name / "SHAPES_0002_0000_to_SHAPES_0001_0000_ddf.nii.gz").is_file()
    assert found[0]["steps"] == 4 and found[0]["after"] != found[0]["before"]
    # It begins at the same random numbers each time.
    assert [found[0][name] for name in ("before", "after")] == [found[1][name] for name in ("before", "after")]
