# SPDX-License-Identifier: Apache-2.0
"""How the weights of a network lie in memory."""

from __future__ import annotations

import torch
from torch import nn


def channels_last(network: nn.Module, spatial_dims: int) -> None:
    """Lay the weights of a network so that its convolutions run up to twice as fast; the state dict does not see it.

    Args:
        network: whose weights are laid anew, in place.
        spatial_dims: 2 or 3.
    """
    layout = torch.channels_last_3d if spatial_dims == 3 else torch.channels_last
    # torch documents this form of `to`, its annotations lack it.
    network.to(memory_format=layout)  # type: ignore[call-overload]
