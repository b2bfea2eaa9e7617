# SPDX-License-Identifier: Apache-2.0
"""Training that stops in the step in which it fails."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from torch import Tensor
from torch.nn.utils import get_total_norm

from common.checks import InputError
from common.losses import RegistrationLoss

_NAMED = 3


class StopWhenNotFinite:
    """Stops a training whose loss, gradient or weights become NaN or infinite, in the step in which they do.

    Ignite's ``TerminateOnNan`` ends such a run as if all was well; here it ends in an error, before anything of the
    step is saved. What is looked at comes with the loss's terms, which are fetched at the end of each step anyway. With
    a ``GradScaler`` gradients do not count: it leaves out steps whose gradient overflows, and mends its scale. Of
    several processes all stop in the same step, whichever fails.

    Attach it before all that keeps something of a step.

    Args:
        loss: of the training.
    """

    def __init__(self, loss: RegistrationLoss) -> None:
        self.loss = loss

    def attach(self, engine: SupervisedTrainer) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: SupervisedTrainer) -> None:
        """Look at the step that was made.

        Raises:
            InputError: naming epoch, iteration, pairs, and what is not finite.
        """
        parameters = [parameter.detach() for parameter in engine.network.parameters()]
        gradients = [parameter.grad for parameter in engine.network.parameters() if parameter.grad is not None]
        scales = engine.scaler is not None and engine.scaler.is_enabled()
        # The total of all processes is not finite where one of them is not: each must know it, or it waits for ever.
        everywhere = self.loss.total
        if idist.get_world_size() > 1:
            everywhere = idist.all_reduce(everywhere.clone())
        total, all_totals, gradient, weights = self.loss.fetch(
            everywhere,
            _largest([] if scales else gradients, everywhere),
            _largest(parameters, everywhere),
        )
        problem = self._problem(total, all_totals, gradient, weights)
        if problem is not None:
            state, rate = engine.state, engine.optimizer.param_groups[0]["lr"]
            pairs = _listed([f"{moving} to {fixed}" for moving, fixed in _pairs(state.batch)])
            raise InputError(
                f"Training stops in epoch {state.epoch}, iteration {state.iteration}{pairs and f', at {pairs}'}: "
                f"{problem}; what was saved before stays as it is: look at these scans, or start anew with a lower "
                f"learning rate (it is {rate:g})."
            )

    def _problem(self, total: float, all_totals: float, gradient: float, weights: float) -> str | None:
        terms = self.loss.terms_of_last_call()
        broken = [f"{name} {value}" for name, value in terms.items() if not math.isfinite(value)]
        if broken or not math.isfinite(total):
            return f"the loss is not finite ({_listed(broken or [f'total {total}'])})"
        if not math.isfinite(all_totals):
            return "the loss is not finite in another process, which names its pair"
        if not math.isfinite(gradient):
            return f"the gradient of the loss is not finite, although the loss is ({total:.4g})"
        if not math.isfinite(weights):
            return f"the update has made weights that are not finite, although loss ({total:.4g}) and gradient are"
        return None


def _largest(tensors: list[Tensor], like: Tensor) -> Tensor:
    """The largest absolute value; NaN where there is one."""
    return get_total_norm(tensors, math.inf).to(like) if tensors else torch.zeros_like(like)


def _pairs(batch: Any) -> Iterator[tuple[Any, Any]]:
    """Ids of moving and fixed image of each pair, where the batch (or a list of its items) has them."""
    for part in [batch] if isinstance(batch, Mapping) else batch:
        ids = [part.get(f"{side}_id", []) if isinstance(part, Mapping) else [] for side in ("moving", "fixed")]
        yield from zip(*[[side] if isinstance(side, str) else side for side in ids], strict=True)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
