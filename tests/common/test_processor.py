# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.processor import has_bfloat16

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("supported", "able", "expected"),
    [
        (True, {"architecture": "x86_64", "avx512_bf16": True}, True),
        (True, {"architecture": "x86_64", "avx512_bf16": False}, False),
        (False, {"architecture": "x86_64", "avx512_bf16": True}, False),
        (True, {"architecture": "ARM64"}, True),
        (False, {"architecture": "ARM64"}, False),
    ],
)
def test_bfloat16_needs_the_processor_and_the_library(
    supported: bool, able: dict[str, object], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert has_bfloat16(torch.device("cpu")) is expected


def test_bfloat16_on_a_gpu_is_not_the_emulated_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not has_bfloat16(torch.device("cuda"))


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the variable is for x86 processors")
def test_a_library_that_is_kept_from_bfloat16_counts_as_a_processor_without() -> None:
    code = "import torch; from common.processor import has_bfloat16; print(has_bfloat16(torch.device('cpu')))"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.stdout == "False\n", run.stderr
