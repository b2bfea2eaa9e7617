# SPDX-License-Identifier: Apache-2.0
"""An inferer that, asked for steps, optimises on each pair before it says how it is registered."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from common.checks import InputError
from common.engine.inferer import RegistrationInferer, as_volumes, slice_axis
from common.losses import RegistrationLoss
from common.optimisation.descent import Descent, descend
from common.optimisation.unknowns import Unknown

_logger = logging.getLogger(__name__)


class OptimisingInferer(RegistrationInferer):
    """Calls the network on a pair, and with ``steps`` above 0 optimises on the pair first, each pair of a batch alone.

    The loss is that of training, at new random points in each step. It is compared at the same points before and
    after: where it has not become smaller, the result is that of the network as it is. The network itself is not
    touched, so the result depends neither on the pairs before it nor on an interruption. Optimisation is in float32.

    Beside what :class:`common.engine.RegistrationInferer` returns there is "optimisation", a dict of (B,): the
    ``steps`` that were made, the loss ``before`` and ``after`` them, and ``seconds``.

    Args:
        loss: looks at what the network returns, at "moving" and "fixed" (B, 1, *spatial) and at "draw" (B, 3), which
            are ``seed``, step and the position in the batch.
        steps: of Adam on each pair; with 0 this is the plain inferer.
        unknown: what is optimised.
        learning_rate: of Adam.
        details: as those of the plain inferer.
        amp: as that of the plain inferer, without optimisation.
        seed: of the random points.

    Raises:
        InputError: for steps below 0 or a learning rate that is not above 0, and what the unknown raises.
    """

    def __init__(
        self,
        loss: RegistrationLoss,
        steps: int,
        unknown: Unknown,
        learning_rate: float,
        details: bool | Collection[str] = False,
        amp: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(details, amp and steps == 0)
        if steps < 0 or not learning_rate > 0:
            raise InputError(
                f"OptimisingInferer got {steps} steps and learning_rate {learning_rate}; give 0 or more, and a number "
                "above 0."
            )
        self.loss, self.steps, self.unknown = loss, steps, unknown
        self.learning_rate, self.seed = learning_rate, seed

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The network's outputs as those of :class:`common.engine.RegistrationInferer`."""
        if self.steps == 0:
            return super().__call__(inputs, network, *args, **kwargs)
        if not isinstance(network, nn.Module):
            raise InputError("Only networks of torch can be optimised on a pair: set io_steps to 0.")
        left_out = slice_axis(inputs, network)
        if left_out is not None:
            return as_volumes(self(inputs.squeeze(left_out), network), left_out)
        # In training a network's statistics would change.
        network = copy.deepcopy(network).eval() if network.training else network
        with torch.inference_mode(False):
            # What is made in inference mode cannot be saved for a backward pass.
            return _joined([self._optimised(pair[None].clone(), network) for pair in inputs])

    def _optimised(self, image: Tensor, network: nn.Module) -> dict[str, Any]:
        """Outputs of one pair, (1, 2, *spatial)."""
        call, plain = super().__call__, RegistrationInferer(self.loss.details)
        targets = {"moving": image[:, :1], "fixed": image[:, 1:]}

        def objective(number: int) -> Tensor:
            draw = torch.tensor([[self.seed, number, 0]], device=image.device)
            return self.loss(plain(image, start.network), targets | {"draw": draw})

        with torch.enable_grad():
            start = self.unknown.start(network, image, self.learning_rate)
            found = descend(objective, start.groups, self.steps)
        _say(found)
        with torch.no_grad():
            outputs = call(image, start.network.eval() if found.better else network)
        return outputs | {"optimisation": _figures(found, image.device)}


def _figures(found: Descent, device: torch.device) -> dict[str, Tensor]:
    return {name: torch.tensor([value], device=device) for name, value in found._asdict().items()}


def _say(found: Descent) -> None:
    _logger.info(
        "Optimised on the pair: loss %.5f, after %d steps %.5f, %.1f s%s",
        *(found.before, found.steps, found.after, found.seconds),
        "" if found.better else "; no better, so the network's own result is kept",
    )


def _joined(pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Outputs of a batch of those of its pairs."""
    if len(pairs) == 1:
        return pairs[0]
    return {name: _batch([pair[name] for pair in pairs]) for name in pairs[0]}


def _batch(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat([*values])
    if isinstance(first, dict):
        return _joined(values)
    if isinstance(first, list | tuple):
        return [_batch(level) for level in zip(*values, strict=True)]

    def of_each(points: Tensor) -> Tensor:
        """A map of points (B, N, d), or (1, N, d), of which each pair has its own."""
        parts = points.expand(len(values), -1, -1).split(1)
        return torch.cat([function(part) for function, part in zip(values, parts, strict=True)])

    return of_each
