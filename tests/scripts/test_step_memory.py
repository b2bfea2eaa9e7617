# SPDX-License-Identifier: Apache-2.0
"""One training step measured against the size of the volume."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from common.networks import NePhi
from scripts import step_memory
from scripts.step_memory import Figures, measure_all


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What was measured; a volume needs a GB per million voxels."""
    seen: list[tuple[str, int]] = []

    def measure(name: str, edge: int) -> dict[str, Any]:
        seen.append((name, edge))
        return {"peak_gb": edge**3 / 1e6, "step_cpu_seconds": 1.0, "parameters": 7}

    monkeypatch.setattr(step_memory, "_measured_apart", measure)
    monkeypatch.setattr(step_memory, "free_gb", lambda: 3.0)
    return seen


def test_what_is_known_is_not_measured_again_and_small_volumes_come_first(measured: list[tuple[str, int]]) -> None:
    known: Figures = {"B": {64: {"peak_gb": 0.1}}, "C": {64: {"peak_gb": 0.2}}}
    kept: list[int] = []
    found = measure_all(["A", "B"], [100, 64], known, lambda figures: kept.append(sum(map(len, figures.values()))))
    assert measured == [("A", 64), ("A", 100), ("B", 100)] and kept == [3, 4, 5]
    assert found["C"] == known["C"] and found["B"] == {64: {"peak_gb": 0.1}, 100: found["A"][100]}


def test_volumes_that_do_not_fit_are_left_out_with_a_word(
    measured: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    known: Figures = {"B": {100: {"peak_gb": 0.25}}}
    measure_all(["A", "B"], [100, 200, 220], known, lambda figures: None)
    assert measured == [("A", 100), ("B", 200)]
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "A: 200 and more are left out, 8 GB are needed and 3 are free.",
        "B: 220 and more are left out, 11 GB are needed and 3 are free.",
    ]


@pytest.mark.parametrize(("edge", "blocks", "level"), [(64, 5, 1), (72, 6, 1), (128, 6, 2), (175, 6, 2), (256, 7, 3)])
def test_the_encoder_grows_with_the_volume_as_published(edge: int, blocks: int, level: int) -> None:
    with torch.device("meta"):
        network, _ = step_memory._nephi(edge, 1, 1)
    assert isinstance(network, NePhi)
    assert len(network.arguments["channels"]) == blocks and network.arguments["local_level"] == level


def test_a_step_of_a_small_volume_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    # It would change the allocator of the process.
    monkeypatch.setattr(step_memory, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(step_memory, "resident", {"VmRSS": 1e9, "VmHWM": 3.5e9}.__getitem__)
    figures = step_memory.measure("NePhi on a pair, 100000 and 500 points", 32)
    fields = 2 * (140_803 - 384)
    assert figures["peak_gb"] == 2.5 and figures["step_cpu_seconds"] > 0
    assert figures["parameters"] == fields + 32 + 32 * 16**3
