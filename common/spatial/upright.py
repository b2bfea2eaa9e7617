# SPDX-License-Identifier: Apache-2.0
"""Arrays stored along right, anterior, superior: what is computed then does not hang on how a file stores a scan."""

from __future__ import annotations

from itertools import permutations

from torch import Tensor


def upright(image: Tensor, affine: Tensor) -> tuple[Tensor, Tensor]:
    """The same scan with its axes reordered and flipped to be nearest to RAS+; its obliqueness stays.

    Args:
        image: (..., I, J, K); the result is a view where nothing is flipped.
        affine: (4, 4) float64, voxels to millimetres RAS+.

    Returns:
        Image and affine.
    """
    linear = affine[:3, :3]
    order = closest_axes(linear)
    first = image.ndim - 3
    backwards = [row for row, axis in enumerate(order) if linear[row, axis] < 0]
    turned = image.permute(*range(first), *(first + axis for axis in order))
    matrix = affine.clone()
    matrix[:3, :3] = linear[:, list(order)]
    for row in backwards:
        matrix[:3, 3] += matrix[:3, row] * (turned.shape[first + row] - 1)
        matrix[:3, row] *= -1
    return turned.flip([first + row for row in backwards]) if backwards else turned, matrix


def closest_axes(linear: Tensor) -> tuple[int, ...]:
    """Array axis that runs most nearly along right-left, posterior-anterior and inferior-superior.

    Args:
        linear: (3, 3), of an affine.
    """
    directions = linear / linear.norm(dim=0)
    return max(permutations(range(3)), key=lambda order: sum(abs(float(directions[r, a])) for r, a in enumerate(order)))
