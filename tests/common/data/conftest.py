# SPDX-License-Identifier: Apache-2.0
"""Tiny data sets on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

SHAPE = (5, 6, 7)


def save_nifti(path: Path, array: np.ndarray) -> None:
    """Write an array with its own dtype."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)


def save_subject(folder: Path, name: str, seed: int = 0) -> None:
    """An image and a label map of random values under Learn2Reg names."""
    rng = np.random.default_rng(seed)
    save_nifti(folder / "imagesTr" / f"{name}_0000.nii.gz", rng.random(SHAPE, np.float32))
    save_nifti(folder / "labelsTr" / f"{name}_0000.nii.gz", rng.integers(0, 4, SHAPE).astype(np.uint8))


def entry(name: str) -> dict[str, str]:
    """Entry of a data list."""
    return {"image": f"./imagesTr/{name}_0000.nii.gz", "label": f"./labelsTr/{name}_0000.nii.gz"}


def write_json(folder: Path, content: dict[str, Any]) -> None:
    """Write a data list."""
    (folder / "dataset.json").write_text(json.dumps(content))


@pytest.fixture
def datalist(tmp_path: Path) -> Path:
    """Three training and three validation subjects, of which two pairs are listed."""
    names = [f"P_{i:04d}" for i in range(6)]
    for seed, name in enumerate(names):
        save_subject(tmp_path, name, seed)
    image = "./imagesTr/{}_0000.nii.gz".format
    pairs = [{"fixed": image(names[fixed]), "moving": image(names[moving])} for fixed, moving in ((3, 4), (5, 3))]
    write_json(
        tmp_path,
        {
            "training": [entry(n) for n in names[:3]],
            "validation": [entry(n) for n in names[3:]],
            "test": [],
            "registration_val": pairs,
        },
    )
    return tmp_path


@pytest.fixture
def edit_datalist(datalist: Path) -> Callable[..., Path]:
    """Change keys of the data list of the fixture ``datalist``."""

    def edit(**changes: Any) -> Path:
        path = datalist / "dataset.json"
        write_json(datalist, {**json.loads(path.read_text()), **changes})
        return datalist

    return edit
