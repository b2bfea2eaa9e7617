# SPDX-License-Identifier: Apache-2.0
"""How trainer and evaluator call a registration network."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from monai.inferers.inferer import Inferer
from torch import Tensor


class RegistrationInferer(Inferer):
    """Calls the network on a pair, in bfloat16 autocast if asked, on any device.

    MONAI's own ``amp`` switch is for CUDA alone; this one also serves the CPU. Only the network's convolutions run in
    bfloat16: fields, warps and losses stay in float32, and no gradient scaling is needed.

    Args:
        details: what is wanted beside the displacement: names of outputs, or patterns such as "*_map", of which the
            network gives those that it has; True for all. The names stand in docs/conventions.md.
        amp: whether to use bfloat16 autocast.
    """

    def __init__(self, details: bool | Collection[str] = False, amp: bool = False) -> None:
        super().__init__()
        self.details = details if isinstance(details, bool) else tuple(details)
        self.amp = amp

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The network's outputs as a dict with at least ``ddf`` (B, d, *spatial)."""
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=self.amp):
            if not self.details:
                return {"ddf": network(inputs)}
            outputs: dict[str, Any] = network(inputs, details=self.details)
        return outputs
