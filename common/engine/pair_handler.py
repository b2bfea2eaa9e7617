# SPDX-License-Identifier: Apache-2.0
"""Handlers of an evaluator that are given each registered pair."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys

from common.data.label_groups import Lookup, MapLabelsd
from common.engine.batch import registered
from common.engine.clock import NetworkClock
from common.engine.registration import Registration
from common.io.dicom_seg import read_label_names
from common.io.map_files import maps_of
from common.io.provenance import peak_memory


class PairHandler:
    """What becomes of registered pairs: a handler that says it overrides :meth:`take`.

    Args:
        labels: label values that the Dice is the mean of, where both scans have label maps; None for all that both
            have.
        lookup: group of each label value of the files, see :func:`common.data.read_label_groups`; None takes them as
            they are. Warped label maps keep the values of the files.
        label_names: JSON file with names of labels for outputs that have room for them, see
            :func:`common.io.dicom_seg.read_label_names`; None for no names.

    Raises:
        InputError: for a faulty file of names.
    """

    def __init__(
        self,
        labels: Sequence[int] | None = None,
        lookup: Lookup | None = None,
        label_names: str | Path | None = None,
    ) -> None:
        self._clock = NetworkClock()
        self.labels = labels
        self.group = MapLabelsd("label", lookup)
        self.label_names = read_label_names(label_names)
        self._functions: dict[str, Any] = {}

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        self._clock.attach(engine)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._keep_functions)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._completed)

    def _keep_functions(self, engine: Engine) -> None:
        """Takes the functions out of the outputs, which could not be taken apart with them."""
        outputs = engine.state.output[CommonKeys.PRED]
        self._functions = {name: outputs.pop(name) for name in [*outputs] if callable(outputs[name])}

    def _completed(self, engine: Engine) -> None:
        pairs = registered(engine.state.output)
        maps, self._functions = maps_of(self._functions), {}
        for number, pair in enumerate(pairs):
            result = Registration(pair, None if maps is None else (maps, number))
            result.label_names = self.label_names
            self.take(result, round(self._clock.seconds / len(pairs), 3), engine.state.device)

    def take(self, result: Registration, seconds: float, device: torch.device) -> None:
        """Do what is to be done with a pair.

        Args:
            result: the pair.
            seconds: that its network took.
            device: where.
        """
        raise NotImplementedError

    def entry(self, result: Registration, seconds: float, device: torch.device) -> dict[str, Any]:
        """What a record says of a pair, but for its files and its inverse; arguments as those of :meth:`take`."""
        names = {"moving": "path_moving", "fixed": "path_fixed", "moving_id": "moving_id", "fixed_id": "fixed_id"}
        told = {name: result.pair[key] for name, key in names.items()}
        record = result.record(self.labels, self.group)
        return {**told, "network_seconds": seconds, **record, **peak_memory(device)}


class PairKeeper(PairHandler):
    """Keeps the last pair in memory; the arguments are those of :class:`PairHandler`.

    Attributes:
        kept: the arguments of :meth:`take`; None before there is a pair.
    """

    kept: tuple[Registration, float, torch.device] | None = None

    def take(self, result: Registration, seconds: float, device: torch.device) -> None:
        """Keep the pair in place of the one before."""
        self.kept = result, seconds, device
