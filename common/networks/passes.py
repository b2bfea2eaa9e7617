# SPDX-License-Identifier: Apache-2.0
"""A network that registers again what it has left, and the displacements of its passes become one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from common.networks.contract import Details, wants
from common.spatial import compose, warp


def in_passes(
    image: Tensor, passes: int, register: Callable[[Tensor], tuple[Tensor, Tensor]], details: Details = False
) -> Tensor | dict[str, Any]:
    """Register a pair several times, each time with the moving image as the passes before have warped it.

    The moving image itself is sampled, once in each pass, by the composition of what has been found.

    Args:
        image: (B, 2, *spatial), channel 0 moving, channel 1 fixed.
        passes: 1 or more.
        register: of such a pair it says the displacement (B, d, *spatial), voxels, and that of the way back.
        details: further outputs that are wanted, by name, or True for all.

    Returns:
        The ``ddf`` (B, d, *spatial) of all passes; with ``details`` a dict of it and, where asked for, ``inverse_ddf``.
    """
    there, back = register(image)
    for _ in range(passes - 1):
        warped = warp(image[:, :1], there).to(image.dtype)
        further, returning = register(torch.cat([warped, image[:, 1:]], dim=1))
        there, back = compose(there, further), compose(returning, back)
    if not details:
        return there
    return {"ddf": there, "inverse_ddf": back} if wants(details, "inverse_ddf") else {"ddf": there}
