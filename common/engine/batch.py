# SPDX-License-Identifier: Apache-2.0
"""From a batch of pairs to what trainer, evaluator and metrics want."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.engines.utils import PrepareBatch
from torch import Tensor

NETWORK_TARGETS = ("moving", "fixed", "moving_label", "fixed_label")


class PrepareRegistrationBatch(PrepareBatch):
    """MONAI ``prepare_batch`` for pairs.

    The network's input is (B, 2, *spatial), channel 0 moving, channel 1 fixed. The targets are everything a loss, a
    metric or a writer may ask for: both images, both label maps where there are any, and the ids.
    """

    def __call__(
        self,
        batchdata: dict[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """(inputs, targets) of a batch that holds ``moving`` and ``fixed`` (B, 1, *spatial)."""
        targets = {
            key: value.to(device, non_blocking=non_blocking) if key in NETWORK_TARGETS else value
            for key, value in batchdata.items()
        }
        return torch.cat([targets["moving"], targets["fixed"]], dim=1), targets


def registered(output: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Output transform for metrics and writers: one flat dict per pair.

    Args:
        output: ``engine.state.output`` of an evaluator after decollation.

    Returns:
        Per pair: ``ddf`` (d, *spatial) and the targets of :class:`PrepareRegistrationBatch` without batch axis.
    """
    return [{**item["label"], **item["pred"]} for item in output]
