# SPDX-License-Identifier: Apache-2.0
"""From a batch of pairs to what trainer, evaluator and metrics want."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from monai.engines.utils import PrepareBatch
from torch import Tensor


class PrepareRegistrationBatch(PrepareBatch):
    """MONAI ``prepare_batch`` for pairs.

    The network's input is (B, 2, *spatial), channel 0 moving, channel 1 fixed. The targets are everything a loss, a
    metric or a writer may ask for: all that the data set gives, its tensors on the device. Where some pairs of the data
    set lack labels, "labelled" says so of the pairs of this batch, as a list, and labels that no pair has are left out.

    Args:
        synthesis: makes further entries of those of the batch, on the device: for instance images of label maps. A
            pure function: its random numbers come from ``draw`` (B, 3), seed, epoch and index of each item, so that a
            run that is resumed sees the same.
        known: names of targets that the inferer gets, too, those of them that there are, as its argument ``targets``:
            what an optimisation on the pair may look at (:class:`common.optimisation.OptimisingInferer`). What is
            measured afterwards must not be among them.
    """

    def __init__(
        self,
        synthesis: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None,
        known: Collection[str] = (),
    ) -> None:
        self.synthesis = synthesis
        self.known = tuple(known)

    def __call__(
        self,
        batchdata: dict[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> Any:
        """(inputs, targets) of a batch, which, or the synthesis, has ``moving`` and ``fixed`` (B, 1, *spatial).

        With ``known`` these two, no arguments by position and those by name for the inferer, as MONAI's engines hand
        them on.
        """
        targets = {
            key: value.to(device, non_blocking=non_blocking) if isinstance(value, Tensor) else value
            for key, value in batchdata.items()
        }
        if "labelled" in batchdata:
            # From the batch, which is on the CPU: a GPU is not waited for.
            targets["labelled"] = [bool(flag) for flag in batchdata["labelled"]]
            if not any(targets["labelled"]):
                targets = {key: value for key, value in targets.items() if not key.endswith("_label")}
        if self.synthesis is not None:
            targets |= self.synthesis(targets)
        inputs = torch.cat([targets["moving"], targets["fixed"]], dim=1)
        if not self.known:
            return inputs, targets
        return inputs, targets, (), {"targets": {name: targets[name] for name in self.known if name in targets}}


def registered(output: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Output transform for metrics and writers: one flat dict per pair.

    Args:
        output: ``engine.state.output`` of an evaluator after decollation.

    Returns:
        Per pair: ``ddf`` (d, *spatial) and the targets of :class:`PrepareRegistrationBatch` without batch axis; without
        labels where "labelled" says that they are none.
    """
    return [{**_without_made_up_labels(item["label"]), **item["pred"]} for item in output]


def optimisation_of(pair: Mapping[str, Any]) -> dict[str, float]:
    """What came of the optimisation on a pair, as JSON has it; empty where there was none.

    Args:
        pair: an entry of :func:`registered`.

    Returns:
        ``steps``, loss ``before`` and ``after``, ``seconds``.
    """
    found = pair.get("optimisation") or {}
    return {name: int(value) if name == "steps" else float(f"{float(value):.6g}") for name, value in found.items()}


def _without_made_up_labels(pair: Mapping[str, Any]) -> dict[str, Any]:
    labelled = pair.get("labelled", True)
    return {k: v for k, v in pair.items() if k != "labelled" and (labelled or not k.endswith("_label"))}
