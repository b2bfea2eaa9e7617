# SPDX-License-Identifier: Apache-2.0
"""Whether all values of a field are finite, and fields that a network has failed to make."""

from __future__ import annotations

import torch
from torch import Tensor

from common.checks import InputError


def all_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite; no second volume is made to find out.

    Args:
        values: any shape, floating point.
    """
    return values.numel() == 0 or bool(torch.isfinite(torch.stack(torch.aminmax(values))).all())


def check_network_field(field: Tensor, moving: object, fixed: object) -> None:
    """Refuse a field of a network with values that are NaN or infinite; to be asked before it is measured or written.

    Args:
        field: (d, *spatial) or (B, d, *spatial).
        moving: id of the moving image, for the message.
        fixed: id of the fixed image.

    Raises:
        InputError: naming the pair.
    """
    if not all_finite(field):
        wrong = int((~torch.isfinite(field)).sum())
        raise InputError(
            f"The network gives {wrong} values that are NaN or infinite for {moving} to {fixed}: the weights are "
            "damaged, or not for these images; nothing is written of this pair."
        )
