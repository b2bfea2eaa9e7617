# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np

from common.data import found_labels


def test_all_labels_of_all_maps_are_found_but_background(tmp_path: Path) -> None:
    subjects = [{"id": "none", "image": "x.nii"}]
    for name, values in (("a", [0, 3, 1]), ("b", [-7, 600, 3])):
        nibabel.save(
            nibabel.Nifti1Image(np.array(values, np.int16).reshape(3, 1, 1), np.eye(4)), tmp_path / f"{name}.nii"
        )
        subjects.append({"id": name, "label": str(tmp_path / f"{name}.nii")})
    assert found_labels(subjects) == [-7, 1, 3, 600]
    assert found_labels(subjects[:1]) == []
