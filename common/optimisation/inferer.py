# SPDX-License-Identifier: Apache-2.0
"""An inferer that, asked for steps, optimises on each pair before it says how it is registered."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from common.checks import InputError
from common.engine.inferer import RegistrationInferer, as_volumes, slice_axis
from common.losses import RegistrationLoss
from common.optimisation.descent import descend
from common.optimisation.unknowns import Unknown

_logger = logging.getLogger(__name__)


COMPARED = 0
"""The draw that start and end are compared at: no step sees it."""


class Figures(NamedTuple):
    """What came of an optimisation.

    Attributes:
        steps: that were made, of all levels.
        before: the loss at the start.
        after: at the end, at the same points.
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


class OptimisingInferer(RegistrationInferer):
    """Calls the network on a pair, and with ``steps`` above 0 optimises on the pair first, each pair of a batch alone.

    The loss is that of training or another one, at new random points in each step. It is compared at the same points
    before and after: where it has not become smaller, the result is that of the network as it is. The network itself is
    not touched, so the result depends neither on the pairs before it nor on an interruption. Optimisation is in
    float32.

    Beside what :class:`common.engine.RegistrationInferer` returns there is "optimisation", a dict of (B,): the
    ``steps`` that were made, the loss ``before`` and ``after`` them, and ``seconds``.

    Args:
        loss: looks at what the network returns, at "moving" and "fixed" (B, 1, *spatial), at what else is known of the
            pair, and at "draw" (B, 3), which are ``seed``, step and the position in the batch.
        steps: to be made on each pair, a number for all levels alike or one for each level of the unknown; with 0 this
            is the plain inferer.
        unknown: what is optimised.
        learning_rate: of the unknown.
        details: as those of the plain inferer.
        amp: as that of the plain inferer, without optimisation.
        seed: of the random points.

    Raises:
        InputError: for steps below 0 or a learning rate that is not above 0, and what the unknown raises.
    """

    def __init__(
        self,
        loss: RegistrationLoss,
        steps: int | Sequence[int],
        unknown: Unknown[Any],
        learning_rate: float,
        details: bool | Collection[str] = False,
        amp: bool = False,
        seed: int = 0,
    ) -> None:
        counts = [steps] if isinstance(steps, int) else list(steps)
        if not counts or any(not isinstance(count, int) or count < 0 for count in counts) or not learning_rate > 0:
            raise InputError(
                f"OptimisingInferer got {steps} steps and learning_rate {learning_rate}; give 0 or more, and a number "
                "above 0."
            )
        super().__init__(details, amp and not any(counts))
        self.loss, self.steps, self.unknown = loss, counts, unknown
        self.learning_rate, self.seed = learning_rate, seed

    def __call__(
        self,
        inputs: Tensor,
        network: Callable[..., Any],
        *args: Any,
        targets: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The network's outputs as those of :class:`common.engine.RegistrationInferer`.

        Args:
            inputs: (B, 2, *spatial), channel 0 moving, channel 1 fixed.
            network: registers them; with steps it has to be a module of torch.
            args: none is looked at.
            targets: what is known of the pairs beside their images, tensors (B, ...), under the names of the loss.
            kwargs: none is looked at.

        Raises:
            InputError: when the network is none of torch, and what loss and unknown raise.
        """
        if not any(self.steps):
            return super().__call__(inputs, network, *args, **kwargs)
        if not isinstance(network, nn.Module):
            raise InputError("Only networks of torch can be optimised on a pair: set io_steps to 0.")
        known = dict(targets or {})
        left_out = slice_axis(inputs, network)
        if left_out is not None:
            flat = {name: _without(value, left_out, inputs.ndim) for name, value in known.items()}
            return as_volumes(self(inputs.squeeze(left_out), network, targets=flat), left_out)
        with torch.inference_mode(False):
            # What is made in inference mode cannot be saved for a backward pass, and in training a network's statistics
            # would change.
            network = copy.deepcopy(network).eval() if network.training else network
            pairs = [
                self._optimised(pair[None].clone(), network, {name: value[[k]] for name, value in known.items()})
                for k, pair in enumerate(inputs)
            ]
            return _joined(pairs)

    def _optimised(self, image: Tensor, network: nn.Module, known: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs of one pair, (1, 2, *spatial)."""
        began = time.perf_counter()
        plain = RegistrationInferer(self.loss.details)
        whole = {**known, "moving": image[:, :1], "fixed": image[:, 1:]}
        own = self.unknown.start(network, image)

        def value(targets: Mapping[str, Any], number: int) -> Tensor:
            draw = torch.tensor([[self.seed, number, 0]], device=image.device)
            pair = torch.cat([targets["moving"], targets["fixed"]], dim=1)
            return self.loss(plain(pair, own), {**targets, "draw": draw})

        def objective(targets: Mapping[str, Any], first: int) -> Callable[[int], Tensor]:
            return lambda step: value(targets, first + step)

        def compared() -> float:
            with torch.no_grad():
                return value(whole, COMPARED).item()

        before, done = compared(), 0
        if math.isfinite(before):
            with torch.enable_grad():
                for stage in self.unknown.stages(own, whole, self.steps, self.learning_rate):
                    done += descend(objective(stage.targets, done), stage.optimiser, stage.steps, stage.tolerance)
        found = Figures(done, before, compared(), time.perf_counter() - began)
        _say(found)
        with torch.no_grad():
            outputs = super().__call__(image, own.eval() if found.better else network)
        return outputs | {"optimisation": _figures(found, image.device)}


def _without(value: Any, axis: int, ndim: int) -> Any:
    """An image of a slice without the axis of its one voxel, anything else as it is."""
    return value.squeeze(axis) if isinstance(value, Tensor) and value.ndim == ndim else value


def _figures(found: Figures, device: torch.device) -> dict[str, Tensor]:
    return {name: torch.tensor([value], device=device) for name, value in found._asdict().items()}


def _say(found: Figures) -> None:
    _logger.log(
        logging.INFO if found.better else logging.WARNING,
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
