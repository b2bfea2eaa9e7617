# SPDX-License-Identifier: Apache-2.0
"""From a stationary velocity field to the displacement at time one."""

from __future__ import annotations

from torch import Tensor

from common.spatial.warp import compose


def integrate(velocity: Tensor, steps: int = 7, padding_mode: str = "zeros") -> Tensor:
    """Exponential of a stationary velocity field by scaling and squaring.

    The field is divided by 2^steps and composed with itself ``steps`` times (Arsigny et al. 2006, MICCAI). With
    ``padding_mode="zeros"``, as the published registration networks have it, motion that leaves the image stops there.

    Args:
        velocity: (B, d, *spatial), in voxels per unit time.
        steps: number of squarings; 0 returns the velocity as it is.
        padding_mode: value of the field outside the image, see :func:`common.spatial.warp`.

    Returns:
        (B, d, *spatial), displacement in voxels.

    Raises:
        ValueError: when ``steps`` is negative.
    """
    if steps < 0:
        raise ValueError(f"steps is {steps}; expected 0 or more.")
    ddf = velocity.float() * 2.0**-steps if steps and velocity.dtype.itemsize < 4 else velocity * 2.0**-steps
    for _ in range(steps):
        ddf = compose(ddf, ddf, padding_mode=padding_mode)
    return ddf
