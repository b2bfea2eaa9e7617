# SPDX-License-Identifier: Apache-2.0
"""What is optimised on a pair: always of a copy, so that the network itself stays as it is, whatever happens."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from common.checks import InputError

Own = TypeVar("Own", bound=nn.Module)


class Stage(NamedTuple):
    """A part of the optimisation.

    Attributes:
        optimiser: of what is unknown, in place.
        targets: the pair as this stage sees it: "moving" and "fixed" (B, 1, *spatial) and what else is known of it.
        steps: to be made, at most.
        tolerance: it ends early where ten steps win less than this part of what has been won; 0 never does.
    """

    optimiser: torch.optim.Optimizer
    targets: Mapping[str, Any]
    steps: int
    tolerance: float = 0.0


class Unknown(Protocol[Own]):
    """What is unknown of a pair."""

    def start(self, network: nn.Module, image: Tensor) -> Own:
        """What registers this pair as the network does, to be called as any network, and can be optimised.

        Args:
            network: in evaluation; it is left as it is.
            image: (B, 2, *spatial), channel 0 moving, channel 1 fixed.

        Raises:
            InputError: when the network has nothing of the kind.
        """
        ...

    def stages(
        self, own: Own, targets: Mapping[str, Any], steps: Sequence[int], learning_rate: float
    ) -> Iterator[Stage]:
        """How to optimise it, one stage after the other; each has been gone through when the next one is asked for.

        Args:
            own: what :meth:`start` returned.
            targets: "moving" and "fixed" (B, 1, *spatial) and what else is known of the pair.
            steps: one number of steps, or as many as there are levels.
            learning_rate: of the optimisation.
        """
        ...


class NetworkWeights:
    """All weights of a network that are trained; its batch normalisation keeps its statistics.

    Source: Tian et al., "uniGradICON", MICCAI 2024 (arXiv 2403.05780): 50 steps, learning rate 2e-5.
    """

    def start(self, network: nn.Module, image: Tensor) -> nn.Module:
        """A copy of the network; arguments and errors as those of :class:`Unknown`."""
        return copy.deepcopy(network).eval()

    def stages(
        self, own: nn.Module, targets: Mapping[str, Any], steps: Sequence[int], learning_rate: float
    ) -> Iterator[Stage]:
        """One stage, of Adam; arguments as those of :class:`Unknown`."""
        yield _adam(targets, steps, (_trained(own), learning_rate))


class LatentCode:
    """The code of a network whose fields are functions of it, and these fields, but not its encoder.

    The code begins with what the encoder says of the pair, or with the table of codes of a network without encoder.
    Source: Tian et al., "NePhi", ECCV 2024 (arXiv 2309.07322), whose code for this is not public; rates are ours.

    Args:
        codes_only: leaves the fields as they are.
        code_rate: learning rate of the code, in those of the fields.

    Raises:
        InputError: for a rate that is not above 0.
    """

    def __init__(self, codes_only: bool = False, code_rate: float = 10.0) -> None:
        if not code_rate > 0:
            raise InputError(f"LatentCode got code_rate {code_rate}; give a number above 0.")
        self.codes_only, self.code_rate = codes_only, code_rate

    def start(self, network: nn.Module, image: Tensor) -> nn.Module:
        """A network with the code of the pair; arguments and errors as those of :class:`Unknown`.

        Of the network this asks for ``auto_decoder(image)``, a copy with codes of its own, ``codes``, for the pairs.
        """
        auto_decoder: Callable[[Tensor], nn.Module] | None = getattr(network, "auto_decoder", None)
        if auto_decoder is None:
            raise InputError(
                f"{type(network).__name__} has no code of a pair that could be optimised: take "
                "common.optimisation.NetworkWeights as the unknown."
            )
        return auto_decoder(image)

    def stages(
        self, own: nn.Module, targets: Mapping[str, Any], steps: Sequence[int], learning_rate: float
    ) -> Iterator[Stage]:
        """One stage, of Adam; arguments as those of :class:`Unknown`."""
        codes = _trained(own.codes)
        known = {id(code) for code in codes}
        fields = [] if self.codes_only else [weight for weight in _trained(own) if id(weight) not in known]
        yield _adam(targets, steps, (codes, self.code_rate * learning_rate), (fields, learning_rate))


def _trained(module: Any) -> list[nn.Parameter]:
    return [weight for weight in module.parameters() if weight.requires_grad]


def _adam(targets: Mapping[str, Any], steps: Sequence[int], *parts: tuple[list[nn.Parameter], float]) -> Stage:
    """All of the steps on these weights, with their learning rates."""
    if len(steps) != 1:
        raise InputError(f"io_steps is {list(steps)}, but weights have no levels: give one number.")
    groups = [{"params": weights, "lr": rate} for weights, rate in parts if weights]
    if not groups:
        raise InputError("All weights of the network are frozen: there is nothing to optimise.")
    return Stage(torch.optim.Adam(groups), targets, steps[0])
