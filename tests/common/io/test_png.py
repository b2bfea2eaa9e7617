# SPDX-License-Identifier: Apache-2.0
"""PNG files lie where ITK reads them, and hold what was written."""

from __future__ import annotations

from pathlib import Path

import itk
import numpy as np
import pytest
import torch
from PIL import Image

from common.checks import InputError
from common.io.nifti import read_grid, read_image, read_labels
from common.io.png import write_png


def pixels(dtype: type[np.unsignedinteger], size: tuple[int, int] = (5, 7)) -> np.ndarray:
    """(rows, columns) over the whole range of a type."""
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, size, dtype, endpoint=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pixels_lie_where_itk_reads_them(dtype: type[np.unsignedinteger], tmp_path: Path) -> None:
    rows = pixels(dtype)
    Image.fromarray(rows).save(tmp_path / "a.png", dpi=(72, 72))
    image, affine = read_image(tmp_path / "a.png")
    assert image.dtype == torch.float32 and read_grid(tmp_path / "a.png").flat
    theirs = itk.imread(str(tmp_path / "a.png"))
    for column, row in ((0, 0), (6, 2), (3, 4)):
        assert image[column, row] == theirs.GetPixel([column, row]) == rows[row, column]
        lps = theirs.TransformIndexToPhysicalPoint([column, row])
        place = affine @ torch.tensor([column, row, 0, 1], dtype=torch.float64)
        assert (-place[:2]).tolist() == list(lps) and place[2] == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_is_written_is_read_again(dtype: type[np.unsignedinteger], tmp_path: Path) -> None:
    rows = pixels(dtype)
    rows[0, 0] = np.iinfo(dtype).max
    write_png(tmp_path / "a.png", torch.from_numpy(rows.T.astype(np.float32)) + 0.3)
    theirs = itk.array_from_image(itk.imread(str(tmp_path / "a.png")))
    assert theirs.dtype == dtype
    np.testing.assert_array_equal(theirs, rows)
    write_png(tmp_path / "b.png", torch.tensor([[-3.0, 2.5, 80000.0]]))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "b.png")), [[0], [2], [65535]])


def test_labels_may_be_bits_or_entries_of_a_palette(tmp_path: Path) -> None:
    rows = pixels(np.uint8) % 3
    Image.fromarray(rows > 0).save(tmp_path / "bits.png")
    palette = Image.fromarray(rows).convert("P")
    palette.putdata(rows.flatten().tolist())
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    palette.save(tmp_path / "palette.png")
    assert Image.open(tmp_path / "palette.png").mode == "P"
    np.testing.assert_array_equal(read_labels(tmp_path / "bits.png")[0].numpy().T, rows > 0)
    np.testing.assert_array_equal(read_labels(tmp_path / "palette.png")[0].numpy().T, rows)
    with pytest.raises(InputError, match="palette.png holds colours"):
        read_image(tmp_path / "palette.png")


def test_colours_that_are_grey_are_read_and_others_refused(tmp_path: Path) -> None:
    rows = pixels(np.uint8)
    grey = np.stack([rows] * 3, axis=-1)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png")[0].numpy().T, rows)
    grey[2, 3, 1] ^= 1
    Image.fromarray(grey).save(tmp_path / "colour.png")
    Image.fromarray(np.stack([rows, np.full_like(rows, 200)], axis=-1), "LA").save(tmp_path / "alpha.png")
    (tmp_path / "damaged.png").write_bytes((tmp_path / "grey.png").read_bytes()[:60])
    Image.fromarray(rows).save(tmp_path / "photo.jpg")
    (tmp_path / "photo.jpg").rename(tmp_path / "photo.png")
    for name, message in (
        ("colour", "holds colours"), ("alpha", "has transparent parts"), ("damaged", "cannot be read as PNG"),
        ("photo", "cannot be read as PNG"), ("none", "does not exist"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"{name}.png {message}"):
            read_image(tmp_path / f"{name}.png")
