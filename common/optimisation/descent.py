# SPDX-License-Identifier: Apache-2.0
"""The loop: Adam on an objective of which each step sees other random points."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

_logger = logging.getLogger(__name__)
Objective = Callable[[int], Tensor]
"""From the number of a draw to a scalar."""
COMPARED = 0
"""The draw that start and end are compared at: no step sees it."""


class Descent(NamedTuple):
    """What came of an optimisation.

    Attributes:
        steps: that were made.
        before: value of the objective at the start.
        after: value at the end, at the same points.
        seconds: it took.
    """

    steps: int
    before: float
    after: float
    seconds: float

    @property
    def better(self) -> bool:
        """Whether the end is better than the start; not a number is not."""
        return self.after < self.before


def descend(objective: Objective, groups: Sequence[dict[str, Any]], steps: int) -> Descent:
    """Minimise.

    Where a value is not finite, this goes back to the parameters of the last finite one, ends and says so.

    Args:
        objective: value at a draw: number 1 in the first step, :data:`COMPARED` before and after.
        groups: parameters with their learning rates, as Adam takes them; changed in place.
        steps: to be made.
    """
    began = time.perf_counter()
    before = _value(objective)
    parameters = [parameter for group in groups for parameter in group["params"]]
    kept = [parameter.detach().clone() for parameter in parameters]
    done = _steps(objective, groups, steps, parameters, kept) if math.isfinite(before) else 0
    after = _value(objective)
    if done < steps or not math.isfinite(after):
        done = max(done - 1, 0)
        _copy(kept, parameters)
        after = _value(objective)
        _logger.warning("The loss is not finite after %d steps of optimisation, which ends there.", done)
    return Descent(done, before, after, time.perf_counter() - began)


def _steps(
    objective: Objective,
    groups: Sequence[dict[str, Any]],
    steps: int,
    parameters: Sequence[Tensor],
    kept: Sequence[Tensor],
) -> int:
    """Step until the end, or until a value is not finite; ``kept`` then holds what the one before it was of.

    Returns:
        How many steps were made.
    """
    optimiser = torch.optim.Adam(groups)
    with tqdm(total=steps, desc="optimisation", leave=False, mininterval=1.0) as bar:
        for step in range(steps):
            total = objective(step + 1)
            value = total.item()
            if not math.isfinite(value):
                return step
            bar.set_postfix_str(f"loss {value:.4f}", refresh=False)
            _copy(parameters, kept)
            optimiser.zero_grad()
            total.backward()
            optimiser.step()
            bar.update()
    return steps


def _copy(source: Sequence[Tensor], target: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for old, new in zip(target, source, strict=True):
            old.copy_(new)


def _value(objective: Objective) -> float:
    with torch.no_grad():
        return objective(COMPARED).item()
