# SPDX-License-Identifier: Apache-2.0
"""What is optimised on a pair: always of a copy, so that the network itself stays as it is, whatever happens."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from common.checks import InputError


class Start(NamedTuple):
    """Where the optimisation on a pair begins.

    Attributes:
        network: that registers this pair, to be called as any other.
        groups: of its parameters, as optimisers take them, each with its learning rate.
    """

    network: nn.Module
    groups: list[dict[str, Any]]


class Unknown(Protocol):
    """What is unknown of a pair."""

    def start(self, network: nn.Module, image: Tensor, learning_rate: float) -> Start:
        """Begin with a pair.

        Args:
            network: in evaluation; it is left as it is.
            image: (B, 2, *spatial), channel 0 moving, channel 1 fixed.
            learning_rate: of the optimisation.

        Raises:
            InputError: when the network has nothing of the kind.
        """
        ...


class NetworkWeights:
    """All weights of a network that are trained; its batch normalisation keeps its statistics.

    Source: Tian et al., "uniGradICON", MICCAI 2024 (arXiv 2403.05780): 50 steps, learning rate 2e-5.
    """

    def start(self, network: nn.Module, image: Tensor, learning_rate: float) -> Start:
        """Begin with a copy of the network; arguments and errors as those of :class:`Unknown`."""
        own = copy.deepcopy(network).eval()
        return Start(own, _groups((_trained(own), learning_rate)))


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

    def start(self, network: nn.Module, image: Tensor, learning_rate: float) -> Start:
        """Begin with the code of the pair; arguments and errors as those of :class:`Unknown`.

        Of the network this asks for ``auto_decoder(image)``, a copy with codes of its own, ``codes``, for the pairs.
        """
        auto_decoder: Callable[[Tensor], nn.Module] | None = getattr(network, "auto_decoder", None)
        if auto_decoder is None:
            raise InputError(
                f"{type(network).__name__} has no code of a pair that could be optimised: take "
                "common.optimisation.NetworkWeights as the unknown."
            )
        own = auto_decoder(image)
        codes = _trained(own.codes)
        known = {id(code) for code in codes}
        fields = [] if self.codes_only else [weight for weight in _trained(own) if id(weight) not in known]
        return Start(own, _groups((codes, self.code_rate * learning_rate), (fields, learning_rate)))


def _trained(module: Any) -> list[nn.Parameter]:
    return [weight for weight in module.parameters() if weight.requires_grad]


def _groups(*parts: tuple[list[nn.Parameter], float]) -> list[dict[str, Any]]:
    groups = [{"params": weights, "lr": rate} for weights, rate in parts if weights]
    if not groups:
        raise InputError("All weights of the network are frozen: there is nothing to optimise.")
    return groups
