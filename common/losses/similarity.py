# SPDX-License-Identifier: Apache-2.0
"""Similarities by their names, with the settings for optimisation on a pair."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from common.checks import InputError
from common.losses.lncc import LNCCLoss
from common.losses.mind import MINDSSCLoss
from common.losses.mse import MSELoss
from common.losses.mutual_information import MutualInformationLoss
from common.losses.ngf import NGFLoss

SIMILARITIES: dict[str, Callable[[], nn.Module]] = {
    "lncc": LNCCLoss,
    "mse": MSELoss,
    # Half the work of Gaussian bins.
    "mi": partial(MutualInformationLoss, window="bspline"),
    "nmi": partial(MutualInformationLoss, window="bspline", normalised=True),
    "mind": MINDSSCLoss,
    "ngf": NGFLoss,
}
"""Name to what makes the loss. Each takes images (B, C, *spatial) from about 0 to 1, and weights of their voxels."""


def similarity(name: str) -> nn.Module:
    """The loss of that name: ``loss(pred, target, weight=None)``.

    Args:
        name: one of :data:`SIMILARITIES`; docs/conventions.md says which is for what.

    Raises:
        InputError: for another name.
    """
    if name not in SIMILARITIES:
        raise InputError(f"There is no similarity {name!r}; choose one of {', '.join(SIMILARITIES)}.")
    return SIMILARITIES[name]()
