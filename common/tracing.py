# SPDX-License-Identifier: Apache-2.0
"""Networks that are recorded, to be used without this code: by TorchScript, for ONNX, or by ``torch.export``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def is_traced() -> bool:
    """Whether operations are recorded, so that nothing may depend on values, addresses or the size of the example."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Context in which operations on the device of a tensor keep the types that they are given.

    What is exported without autocast has no such context: as a graph of its own, it could not be saved with the sizes
    that it takes.

    Args:
        x: any tensor.
    """
    device = x.device.type
    if torch.compiler.is_compiling() and not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def same_size(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two sizes are equal; where they are symbols, whether they are for images of any size.

    To compare symbols by themselves would bind what is recorded to images for which it comes out the same way.

    Args:
        one: numbers of voxels, or symbols of them.
        other: as many.
    """
    return all(_surely(m == n) for m, n in zip(one, other, strict=True))


def _surely(condition: bool | torch.SymBool) -> bool:
    if isinstance(condition, torch.SymBool):
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        return statically_known_true(condition)
    return bool(condition)
