# SPDX-License-Identifier: Apache-2.0
"""Examples in Python that a page says can be run, run as they are written there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

PAGE = Path(__file__).parents[1] / "docs" / "instance_optimisation.md"


def test_register_instanced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    section = PAGE.read_text(encoding="utf-8").partition("RegisterInstanced\n")[2].partition("\n## ")[0]
    (example,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    made: dict[str, Any] = {}
    exec(compile(example, PAGE.name, "exec"), made)
    said = capsys.readouterr().out
    assert float(re.findall(r"carried labels: (\S+)", said)[0]) > 0.85
    labels = torch.from_numpy(np.asarray(nibabel.load("label.nii.gz").dataobj))[None]
    assert made["dice"](made["pair"]["segmentation"], MetaTensor(labels)) > 0.8
