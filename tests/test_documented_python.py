# SPDX-License-Identifier: Apache-2.0
"""The page on Python, run block after block as it is written there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.api import Result
from common.io.nifti import read_image

PAGE = Path(__file__).parents[1] / "docs" / "python.md"


def test_page_on_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    made: dict[str, Any] = {}
    said = []
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, PAGE.name, "exec"), made)
        said.append(capsys.readouterr().out)
    result = made["result"]
    assert isinstance(result, Result) and result.warped_label is not None
    dice = result.figures["dice"]
    assert dice["registered"] > dice["header"] + 0.1
    assert said[2] == "True\n", "an image in memory is registered otherwise than its file"
    np.testing.assert_array_equal(read_image("warped.nii.gz")[0], result.warped.array)
    assert result.warped_label is not None
    np.testing.assert_array_equal(made["labels_there"].array, result.warped_label.array)
    # The whole map and its parts are rounded otherwise.
    np.testing.assert_allclose(made["warped"].array, result.warped.array, atol=1e-5)
    # Between voxels, which the inverse field is solved at, it is linear and not exact.
    moved, missed = (np.abs(made[name] - made["points"]).max() for name in ("there", "back"))
    assert missed < 0.2 < 0.5 < moved
    assert {path.name for path in Path("out").iterdir()} == {
        f"{result.name}_{name}" for name in ("warped.nii.gz", "transform.h5", "ddf.nii.gz")
    }
    refused = next(text for text in said if "affin" in text)
    assert refused.count("\n") == 3 and "--io_steps is -1" in refused
    assert any("give trust=True" in text for text in said) and made["mine"].name == "mine"
    assert said[-1] == "ZeroField\n"
