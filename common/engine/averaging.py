# SPDX-License-Identifier: Apache-2.0
"""Weights averaged over the steps of a training, which are validated and kept in place of those of the last step."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from common.checks import InputError


class AveragedWeights:
    """Exponential moving average of a network's weights, ``average = decay * average + (1 - decay) * weights``.

    With a constant learning rate the weights wander about where the loss is low; their average lies nearer to it
    (B. Polyak and A. Juditsky, SIAM J. Control Optim. 30, 1992). Steps are made with the weights themselves. While the
    evaluator runs, the network has the averaged ones, which handlers of the evaluator measure and save. The average
    begins with the weights of the first step. It is torch's ``AveragedModel`` without a second network beside the
    first one.

    Args:
        network: plain module, on its device.
        decay: share of the average that a step leaves, from 0 to below 1; 0.99 averages about a hundred steps.

    Raises:
        InputError: for another decay.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise InputError(
                f"--ema_decay is {decay:g}; give the share of the average that a step leaves, 0 to 0.9999."
            )
        self.network = network
        self.decay = decay
        self._average: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}

    def attach(self, engine: Engine, evaluator: Engine) -> None:
        """Register with a trainer, before what saves, and with the evaluator that runs between its steps."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._update)
        evaluator.add_event_handler(Events.STARTED, self._show)
        evaluator.add_event_handler(Events.COMPLETED, self._hide)

    def state_dict(self) -> dict[str, Any]:
        """The average, and its decay."""
        return {"decay": self.decay, "average": dict(self._average)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the average of a checkpoint; its decay was compared with the settings of the run."""
        own = self.network.state_dict()
        self._average = {name: value.to(own[name].device) for name, value in state["average"].items()}

    @torch.no_grad()
    def _update(self) -> None:
        weights = self.network.state_dict()
        if not self._average:
            self._average = {name: value.clone() for name, value in weights.items()}
            return
        floating = [name for name, value in weights.items() if value.is_floating_point()]
        average = get_ema_multi_avg_fn(self.decay)
        average([self._average[name] for name in floating], [weights[name] for name in floating], None)
        for name in weights.keys() - set(floating):
            self._average[name].copy_(weights[name])

    def _show(self) -> None:
        if self._average:
            self._weights = {name: value.clone() for name, value in self.network.state_dict().items()}
            self.network.load_state_dict(self._average)

    def _hide(self) -> None:
        if self._weights:
            self.network.load_state_dict(self._weights)
            self._weights = {}
