# SPDX-License-Identifier: Apache-2.0
"""Where published code samples that takes its coordinates for those of outer edges.

TransMorph for OASIS and LUMIR divides voxel coordinates by size - 1, as is right where -1 and 1 are the centres of the
outermost voxels, and samples as if these were their outer edges (``align_corners=False``). So voxel 0 looks half a
voxel outside and the last one as far beyond the other end: trained weights make up for it, and fields mean what they
should only together with it. Here it is a displacement like any other, that every function takes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.spatial.coordinates import check_ddf
from common.spatial.warp import warp


def sampled_at_edges(flow: Tensor, stretched: bool = True) -> Tensor:
    r"""The displacement to where such code looks.

    Along an axis of n voxels, place x has the coordinate :math:`2 x / (n - 1) - 1`, at which there is the value of

    .. math:: \frac{n}{n - 1} (x + u(x)) - \frac12, \qquad \text{or} \qquad \frac{n}{n - 1} x + u(x) - \frac12

    where a displacement counts as 2 u / n.

    Args:
        flow: (B, d, *spatial), u, as the published network returns it, in voxels.
        stretched: whether u is divided by n - 1 as x is, else by n.

    Returns:
        (B, d, *spatial), displacement in voxels whose centres are at whole numbers: ``warp`` by it gives the published
        warp by ``flow``. An axis of one voxel stays as it is.
    """
    check_ddf(flow)
    components = []
    for k, n in enumerate(flow.shape[2:]):
        # Arithmetic alone: an exported network works it out for any size.
        between = 1 - 1 // n
        part = between / (n - 1 + 1 // n)
        place = torch.arange(n, device=flow.device, dtype=flow.dtype) * part - 0.5 * between
        component = flow[:, k] * (1 + part) if stretched else flow[:, k]
        components.append(component + place.view([-1 if axis == k else 1 for axis in range(flow.shape[1])]))
    return torch.stack(components, dim=1)


def integrate_at_edges(velocity: Tensor, steps: int = 7, stretched: bool = True) -> Tensor:
    """:func:`common.spatial.integrate` of such code: fields are 0 outside, and so at the border half of what they are.

    Args:
        velocity: (B, d, *spatial), in voxels per unit time.
        steps: number of squarings.
        stretched: see :func:`sampled_at_edges`.

    Returns:
        (B, d, *spatial), as the published network returns it.
    """
    flow = velocity.to(torch.promote_types(velocity.dtype, torch.float32)) * 2.0**-steps
    for _ in range(steps):
        flow = flow + warp(flow, sampled_at_edges(flow, stretched), padding_mode="zeros")
    return flow
