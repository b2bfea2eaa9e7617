# SPDX-License-Identifier: Apache-2.0
"""What the processor can do."""

from __future__ import annotations

import torch


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 itself, rather than by detours that take longer than float32.

    A GPU from Ampere on, an x86 processor with AVX512-BF16 and an ARM processor with the same extension do. Where there
    is only AVX-512, oneDNN converts back and forth, and a convolution takes five times as long as in float32; without
    it, torch falls back on a form that takes up to eighty times as long and sums in bfloat16. ``ONEDNN_MAX_CPU_ISA``
    below AVX-512 counts as a processor without it. Other kinds of devices are taken at their word.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return True
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    # Of ARM the line above has asked this already.
    able = torch.cpu.get_capabilities()
    return not able["architecture"].startswith("x86") or able.get("avx512_bf16", False)
