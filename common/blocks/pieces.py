# SPDX-License-Identifier: Apache-2.0
"""Feature volumes as matrices over their own memory, cut into pieces that stay in the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

# Elements per piece and thread on the CPU: the handful of temporaries of one piece stay in the cache of its core, and
# threads wait for each other as seldom as that allows.
PIECE = 2**18


class Matrix(NamedTuple):
    """How the samples of (B, C, *spatial) are looked at: each as a matrix (voxels, C) or (C, voxels).

    Args:
        voxel_axis: 0 or 1.
    """

    voxel_axis: int

    @classmethod
    def of(cls, x: Tensor) -> Matrix:
        """(voxels, C) where the channels of (B, C, *spatial) are last in memory, else (C, voxels)."""
        return cls(0 if x[0].movedim(0, -1).is_contiguous() else 1)

    def sample(self, b: int) -> Callable[[Tensor], Tensor]:
        """What makes the matrix of sample ``b`` of (B, C, *spatial), a view if that is :func:`in_order`."""

        def view(x: Tensor) -> Tensor:
            channels = x.shape[1]
            return x[b].movedim(0, -1).reshape(-1, channels) if self.voxel_axis == 0 else x[b].reshape(channels, -1)

        return view

    def pieces(self, matrix: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
        """What cuts a piece out of ``matrix`` and of all of its size, piece after piece."""
        voxels, channels = matrix.shape[self.voxel_axis], matrix.shape[1 - self.voxel_axis]
        step = max(PIECE * torch.get_num_threads() // channels, 1) if matrix.device.type == "cpu" else voxels
        for start in range(0, voxels, step):
            yield partial(torch.narrow, dim=self.voxel_axis, start=start, length=min(step, voxels - start))

    def sum(self, values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Per channel, over voxels."""
        return values.sum(self.voxel_axis, keepdim=True, dtype=dtype)


def in_order(x: Tensor) -> Tensor:
    """(B, C, *spatial) itself if it is contiguous or channels-last, else a copy that is."""
    if x.is_contiguous() or x.movedim(1, -1).is_contiguous():
        return x
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if x.stride(1) == 1 else x.contiguous()
