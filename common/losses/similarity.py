# SPDX-License-Identifier: Apache-2.0
"""Similarities by their names, with the settings for optimisation on a pair."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import nn

from common.checks import InputError
from common.losses.correlation import LocalAndGlobalLoss
from common.losses.lncc import LNCCLoss
from common.losses.mind import MINDSSCLoss
from common.losses.mse import MSELoss
from common.losses.mutual_information import MutualInformationLoss
from common.losses.ngf import NGFLoss


class Similarity(NamedTuple):
    """What belongs to a name.

    Attributes:
        make: makes the loss of images (B, C, *spatial) from about 0 to 1 and, if given, of weights of their voxels.
        smoothness: weight of the diffusion penalty of a field that goes with it, found on pairs of
            brains, or by the scale of its values (mind, nmi).
    """

    make: Callable[[], nn.Module]
    smoothness: float


SIMILARITIES = {
    "lncc": Similarity(LNCCLoss, 1.0),
    "lncc_ncc": Similarity(LocalAndGlobalLoss, 1.0),
    "mse": Similarity(MSELoss, 0.05),
    # Half the work of Gaussian bins.
    "mi": Similarity(partial(MutualInformationLoss, window="bspline"), 2.0),
    "nmi": Similarity(partial(MutualInformationLoss, window="bspline", normalised=True), 0.5),
    "mind": Similarity(MINDSSCLoss, 0.05),
    "ngf": Similarity(NGFLoss, 0.15),
}


def similarity(name: str) -> nn.Module:
    """The loss of that name: ``loss(pred, target, weight=None)``.

    Args:
        name: one of :data:`SIMILARITIES`; docs/conventions.md says which is for what.

    Raises:
        InputError: for another name.
    """
    return _named(name).make()


def smoothness_weight(similarity: str, factor: float = 1.0) -> float:
    """Weight of the diffusion penalty, :class:`common.losses.GradientLoss`, beside a similarity.

    Similarities differ in what they win when images come to lie on each other, by a factor of forty between the mean
    squared difference and mutual information: a weight that is right for one is nothing or everything for another one.

    Args:
        similarity: one of :data:`SIMILARITIES`.
        factor: 1 is the weight that suits brains; 0 leaves the penalty out, more makes fields smoother.

    Raises:
        InputError: for another name.
    """
    return factor * _named(similarity).smoothness


def _named(name: str) -> Similarity:
    if name not in SIMILARITIES:
        raise InputError(f"There is no similarity {name!r}; choose one of {', '.join(SIMILARITIES)}.")
    return SIMILARITIES[name]
