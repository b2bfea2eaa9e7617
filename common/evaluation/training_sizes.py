# SPDX-License-Identifier: Apache-2.0
"""How much a network gains from more people to learn from: the sizes of the study, and what was published.

Source: H. Liu et al., "Unsupervised deformable image registration revisited", MIDL 2025 short paper (OpenReview
DGvFgbX0EG): DP-ConvIC-C trained on subsets of LUMIR's 3384 brains, validation pairs. The authors drew their subsets
at random and did not publish which; here a subset is the beginning of the list, and contains all smaller ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.checks import InputError

PUBLISHED_TITLE = "published: DP-ConvIC-C on LUMIR"
PUBLISHED: dict[int, dict[str, float]] = {
    size: dict(zip(("dice", "hd95", "tre", "ndv"), figures, strict=True))
    for size, figures in {
        10: (0.7642, 3.5216, 2.3771, 0.0361),
        20: (0.7674, 3.4521, 2.4053, 0.0358),
        30: (0.7690, 3.4576, 2.3723, 0.0328),
        50: (0.7705, 3.4162, 2.3479, 0.0304),
        100: (0.7717, 3.3966, 2.3305, 0.0319),
        300: (0.7725, 3.3756, 2.3208, 0.0303),
        1000: (0.7726, 3.3772, 2.3088, 0.0332),
        3384: (0.7724, 3.3873, 2.3357, 0.0309),
    }.items()
}
"""Number of training images to mean Dice, HD95 in voxels, TRE in mm, NDV in percent."""


def possible_sizes(wanted: Sequence[int], available: int) -> tuple[list[int], list[int]]:
    """Sizes that a data set has, ascending and once each, and those that it has not.

    Raises:
        InputError: where none is left, or one is below 2, which makes no pair.
    """
    sizes = sorted({*wanted})
    kept, left_out = [size for size in sizes if size <= available], [size for size in sizes if size > available]
    if not kept or kept[0] < 2:
        raise InputError(f"--sizes are {', '.join(map(str, sizes))}; give some from 2 to {available}, the data set's.")
    return kept, left_out
