# SPDX-License-Identifier: Apache-2.0
"""The network that is not trained, before one that is (:class:`common.networks.PreAligned`), has weights."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from common.checks import InputError
from common.io.checkpoints import load_weights

PART = "first"
"""Its name in the network of both."""


def load_pre_alignment(network: nn.Module, path: str | Path | None, ckpt_path: str | Path) -> nn.Module:
    """Give the first network of two its weights.

    Args:
        network: the first one.
        path: weights of its own, from which the training of the second one begins; None where they are part of those
            of both, as after this training.
        ckpt_path: weights of both.

    Returns:
        The network itself.

    Raises:
        InputError: when there are neither, and as :func:`common.io.checkpoints.load_weights`.
    """
    if path is not None:
        return load_weights(network, path)
    if not Path(ckpt_path).is_file():
        raise InputError(
            f"There are no weights at {ckpt_path}, those of the pre-alignment among them: to train, give its own with "
            "--pre_ckpt_path FILE; to use what was trained, give it with --ckpt_path FILE."
        )
    return load_weights(network, ckpt_path, PART)
