# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor

from common.networks import VoxelMorph
from scripts import contrast

CONFIG = contrast.ROOT / "bundles" / "synthmorph_shapes3d" / "configs" / "inference.json"
SYNTHMORPH = {k: v for k, v in json.loads(CONFIG.read_text(encoding="utf-8"))["network_def"].items() if k[0] != "_"}


def test_background_stays_and_curves_stay_between_0_and_1() -> None:
    image = torch.linspace(0, 1, 101)
    for curve in contrast.CURVES.values():
        found = contrast.through(curve, image)
        assert found[0] == 0 and found.min() >= 0 and found.max() <= 1
    # Of the last curve equal values come from two places; of the one before it the slope changes its sign.
    assert contrast.CURVES["tent"](torch.tensor(0.3)) == pytest.approx(
        float(contrast.CURVES["tent"](torch.tensor(0.7)))
    )
    early, bright, late = contrast.CURVES["like T2"](torch.tensor([0.05, 0.15, 0.6]))
    assert early < bright and late < bright


def test_each_curve_has_its_dice_and_the_fixed_scan_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    label = torch.zeros(1, 6, 6, 6, dtype=torch.uint8)
    label[:, 2:4] = 1
    scan: dict[str, Any] = {"id": "a", "image": MetaTensor(torch.rand(1, 6, 6, 6) + 0.01), "label": MetaTensor(label)}
    asked: list[str] = []

    def inferer(pair: Tensor, network: object) -> dict[str, Tensor]:
        assert torch.equal(pair[0, 1], scan["image"].as_tensor()[0])
        return {"ddf": torch.zeros(1, 3, 6, 6, 6)}

    def optimiser(similarity: str) -> tuple[Any, None]:
        asked.append(similarity)
        return inferer, None

    monkeypatch.setattr(contrast, "optimiser", optimiser)
    row = contrast.measure(scan, scan, "mi", [1])
    assert asked == ["mi"] and all(row[f"{name}_dice"] == 1 for name in contrast.CURVES)
    assert contrast.summary([row, row]).splitlines()[-1].startswith("| mi | 1.0000 | 1.0000 | 1.0000 | 1.0000 | ")


def test_settings_are_those_of_the_bundle() -> None:
    inferer, network = contrast.optimiser("mse")
    assert inferer.steps == [50] and type(network).__name__ == "ZeroField"
    assert "MSELoss" in repr(inferer.loss) and "LNCCLoss" not in repr(inferer.loss)


def test_the_network_of_a_bundle_registers_images_from_0_to_1(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = VoxelMorph(**SYNTHMORPH).eval()
    torch.nn.init.normal_(network.flow.weight, std=0.1)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    inferer, loaded = contrast.trained("synthmorph_shapes3d", str(tmp_path / "model.pt"))
    pair = torch.rand(1, 2, 16, 16, 16)
    pair[..., 0, 0, 0], pair[..., 1, 1, 1] = 0, 1
    with torch.no_grad():
        expected = network(pair)
    assert expected.abs().max() > 0.1
    # One more scaling of intensities in float32.
    torch.testing.assert_close(inferer(3 + 7 * pair, loaded)["ddf"], expected, rtol=0, atol=1e-3)
