# SPDX-License-Identifier: Apache-2.0
"""A training that begins where an earlier one, with other settings, has come to."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.checks import InputError
from common.engine.settings import brief, differences, optimizer_settings
from common.io.checkpoints import load_checkpoint, load_weights

logger = logging.getLogger(__name__)


def start_from(path: str | Path, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Take the weights of an earlier training and, where the file is its checkpoint, the moments of its optimiser.

    The learning rate stays that of the optimiser, as it was made.

    Args:
        path: ``checkpoint.pt`` of a training, or weights such as ``models/model.pt``.
        network: plain module, on its device.
        optimizer: of its parameters, of the class and options that the earlier one had.

    Raises:
        InputError: when the file cannot be read, is of another network, or its moments are of another optimiser.
    """
    load_weights(network, path)
    content = load_checkpoint(path)
    rates = ", ".join(f"{group['lr']:g}" for group in optimizer.param_groups)
    if not isinstance(content, Mapping) or "optimizer" not in content:
        logger.info("Starting with the weights of %s, new moments, and learning rate %s.", path, rates)
        return
    _check_optimizer(path, content, optimizer)
    own = optimizer.state_dict()
    optimizer.load_state_dict({"state": content["optimizer"]["state"], "param_groups": own["param_groups"]})
    logger.info("Starting with weights and moments of %s, and learning rate %s.", path, rates)


def _check_optimizer(path: str | Path, content: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    began = content.get("settings", {}).get("optimizer")
    changed = list(differences(began, optimizer_settings(optimizer)))
    if changed:
        name, old, new = changed[0]
        raise InputError(
            f"{path} has the moments of another optimiser ({name} {brief(old)}, not {brief(new)}): to begin with new "
            "moments, give the weights alone, such as models/model.pt."
        )
