# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from common.io.apply import _labels


def opened(folder: Path, array: np.ndarray) -> Any:
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4), dtype=array.dtype), folder / "a.nii.gz")
    return nibabel.load(folder / "a.nii.gz")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64, np.float32])
def test_labels_are_read_as_they_are(tmp_path: Path, dtype: Any) -> None:
    array = np.arange(-20 if np.dtype(dtype).kind == "i" else 0, 100).reshape(-1, 2, 5).astype(dtype)
    labels, kind = _labels(opened(tmp_path, array), "a.nii.gz")
    np.testing.assert_array_equal(labels.numpy(), array)
    assert kind == (np.int32 if dtype == np.float32 else np.dtype(dtype))


def test_plain_labels_take_no_double_precision(tmp_path: Path) -> None:
    file = opened(tmp_path, np.ones((64, 64, 64), np.uint8))
    tracemalloc.start()
    _labels(file, "a.nii.gz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The bytes of the file, read whole, and int32.
    assert peak < 8 * 64**3
