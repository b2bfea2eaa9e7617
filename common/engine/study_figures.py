# SPDX-License-Identifier: Apache-2.0
"""What a comparison of methods wants to know of each pair beyond an ordinary evaluation."""

from __future__ import annotations

import torch
from ignite.engine import Engine, Events
from monai.networks.utils import eval_mode

from common.engine.batch import registered
from common.metrics.consistency import inverse_consistency_error
from common.metrics.handlers import RegistrationMetrics


class StudyFigures:
    """Adds figures to the table of an evaluation: how symmetric an inverse-consistent network is.

    * ``inverse_error_voxels``: mean over all voxels of what the inverse field leaves of the field;
    * ``swap_error_voxels``: largest component of the inverse field minus the field of the exchanged images.

    Both for networks that give the ``inverse_ddf``; they register each pair a second time.

    Args:
        metrics: whose ``cases`` get the figures, attached to the same evaluator; the handler comes after it.
    """

    def __init__(self, metrics: RegistrationMetrics) -> None:
        self.metrics = metrics

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator, before what writes the table."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)

    @torch.no_grad()
    def _add(self, engine: Engine) -> None:
        pairs = registered(engine.state.output)
        for case, pair in zip(self.metrics.cases[-len(pairs) :], pairs, strict=True):
            if "inverse_ddf" in pair:
                ddf, inverse = pair["ddf"][None].float(), pair["inverse_ddf"][None].float()
                exchanged = torch.cat([pair["fixed"], pair["moving"]])[None].to(ddf.device)
                # Between pairs the evaluator leaves the network as it was made: in training.
                with eval_mode(engine.network):
                    swapped = engine.inferer(exchanged, engine.network)["ddf"]
                case["inverse_error_voxels"] = float(inverse_consistency_error(ddf, inverse).mean)
                case["swap_error_voxels"] = float((swapped - inverse).abs().max())
