# SPDX-License-Identifier: Apache-2.0
"""The table of all families whose official checkpoints are known."""

from __future__ import annotations

from pydoc import locate

from common.checks import InputError
from common.weights import (
    dual_pyramid,
    eoir,
    gradicon,
    lku_net,
    nephi,
    sitreg,
    transmorph,
    transmorph_bspline,
    transmorph_diff,
    transmorph_tvf,
    vfa,
    voxelmorph,
)
from common.weights.family import Family

MODULES = (
    eoir,
    vfa,
    sitreg,
    dual_pyramid,
    gradicon,
    nephi,
    voxelmorph,
    lku_net,
    transmorph,
    transmorph_tvf,
    transmorph_diff,
    transmorph_bspline,
)
FAMILIES: tuple[Family, ...] = tuple(module.FAMILY for module in MODULES)


def family_of(target: str) -> Family:
    """The family of a network.

    Args:
        target: dotted name of the class, the ``_target_`` of a configuration.

    Raises:
        InputError: when no family has it.
    """
    network = locate(target)
    for family in FAMILIES:
        if family.network is network:
            return family
    known = ", ".join(family.network.__name__ for family in FAMILIES)
    raise InputError(f"No official weights are known for the network {target}; they are for {known}.")
