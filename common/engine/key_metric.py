# SPDX-License-Identifier: Apache-2.0
"""The figure that the best weights of a training are chosen by."""

from __future__ import annotations

import logging
import operator

from monai.engines import Evaluator

from common.data.dataset import PairDataset
from common.data.pair_sampler import PairSampler
from common.data.readers.listing import LANDMARKS

_logger = logging.getLogger(__name__)
ERROR = "tre"


def choose_key_metric(evaluator: Evaluator) -> None:
    """The error of landmarks, the smaller the better, where validation pairs have them; else Dice, as it is configured.

    Pairs without landmarks then have no part in the choice. Where there are neither landmarks nor labels a warning says
    so: the last weights are kept.

    Args:
        evaluator: that validates, changed in place.
    """
    loader = evaluator.data_loader
    data, sampler = getattr(loader, "dataset", None), getattr(loader, "sampler", None)
    if not isinstance(data, PairDataset):
        return
    if isinstance(sampler, PairSampler) and _gives_landmarks(data, sampler):
        evaluator.state.key_metric_name = ERROR
        evaluator.metric_cmp_fn = operator.lt
        _logger.info("The weights with the smallest error of landmarks (TRE) are kept.")
    elif not any("label" in subject for subject in data.data):
        _logger.warning("No validation image has labels: there is no Dice to choose by, the last weights are kept.")


def _gives_landmarks(data: PairDataset, sampler: PairSampler) -> bool:
    """Whether a pair has landmarks on both sides, and the preprocessing of the data set reads them."""
    pairs = sampler.epoch_pairs()
    marked = next((pair for pair in pairs if all(LANDMARKS in data.data[place] for place in pair)), None)
    return marked is not None and f"moving_{LANDMARKS}" in data[marked]
