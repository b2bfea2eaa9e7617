# SPDX-License-Identifier: Apache-2.0
"""Both forms of each operation that is benchmarked do the same, where they are said to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from scripts import operations

# MONAI's regularisers take other differences, and its mutual information has other bins.
OTHER_FUNCTIONS = (
    "diffusion regulariser",
    "bending energy",
    "mutual information, 32 bins, gradient of the warped image",
)


def test_forms_of_an_operation_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "SIZE", (32, 32, 48))
    monkeypatch.setattr(operations, "CHANNELS", 3)
    monkeypatch.setattr(operations, "BRAINS", Path("absent"))
    for name, operation in operations.operations().items():
        plain, *others = (_tensors(form()) for form in operation.forms.values())
        for a, b in [pair for other in others for pair in zip(plain, other, strict=True)]:
            assert a.shape == b.shape and a.any(), name
            # Not largest difference: at a border between cells a gradient depends on how a coordinate was rounded.
            assert name in OTHER_FUNCTIONS or (a - b).norm() <= 1e-3 * a.norm(), name


def _tensors(result: Any) -> list[torch.Tensor]:
    return [result] if isinstance(result, torch.Tensor) else [*result]
