# SPDX-License-Identifier: Apache-2.0
"""Room for the volumes of a training step."""

from __future__ import annotations

import torch
from torch import Tensor

from common.memory import give_back_freed_memory


def make_room(x: Tensor) -> None:
    """Let go of the gaps that freed volumes have left, before a training step on the CPU needs the most.

    Coarse volumes leave gaps too small for the finest ones, and so do those of the encoder for the decoder, and those
    of the way there for the way back: without this they are up to a third of a training step's memory.

    Args:
        x: any tensor on the device of the step.
    """
    if x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        give_back_freed_memory()
