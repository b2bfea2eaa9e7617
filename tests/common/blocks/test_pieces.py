# SPDX-License-Identifier: Apache-2.0
"""Volumes as matrices: views of the memory, and pieces that cover every voxel once."""

from __future__ import annotations

import pytest
import torch

from common.blocks.pieces import Matrix, in_order


@pytest.mark.parametrize("shape", [(2, 3, 6, 5), (2, 3, 4, 5, 3)])
@pytest.mark.parametrize("last", [False, True])
def test_matrix_of_a_sample_is_a_view_over_its_memory(shape: tuple[int, ...], last: bool) -> None:
    x = torch.arange(torch.Size(shape).numel()).view(shape).clone()
    x = x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d) if last else x
    form = Matrix.of(x)
    matrix = form.sample(1)(x)
    assert form.voxel_axis == (0 if last else 1)
    assert matrix.is_contiguous() and matrix.data_ptr() == x[1].data_ptr()
    assert torch.equal(matrix.T if last else matrix, x[1].flatten(1))
    assert torch.equal(form.sum(matrix).flatten(), x[1].flatten(1).sum(1))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("size", [1, 7, 12, 2**18])
def test_pieces_cover_the_voxels_once_and_in_order(axis: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.blocks.pieces.PIECE", size)
    matrix = torch.arange(3 * 10).view((10, 3) if axis == 0 else (3, 10))
    pieces = [cut(matrix) for cut in Matrix(axis).pieces(matrix)]
    assert torch.equal(torch.cat(pieces, axis), matrix)
    assert all(piece.numel() <= max(size, 3) for piece in pieces)


def test_what_is_neither_contiguous_nor_channels_last_is_copied() -> None:
    x = torch.rand(2, 3, 4, 5, 6)
    last = x.contiguous(memory_format=torch.channels_last_3d)
    assert in_order(x) is x and in_order(last) is last
    for other in (x.transpose(2, 4), x[..., 1:], last[..., 1:], last.transpose(2, 4)):
        ordered = in_order(other)
        assert torch.equal(ordered, other) and ordered.data_ptr() != other.data_ptr()
        assert Matrix.of(ordered).voxel_axis == (0 if other.stride(1) == 1 else 1)
