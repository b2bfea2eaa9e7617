# SPDX-License-Identifier: Apache-2.0
"""One rule of what is background, for scans as they come."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from common.spatial.foreground import background, foreground, mask_or_everywhere


def brain() -> np.ndarray:
    """A ball of values between 20 and 90 in a box of zeros."""
    grid = np.stack(np.meshgrid(*[np.arange(n) - n / 2 for n in (20, 18, 16)], indexing="ij"))
    inside = (grid**2).sum(0) < 49
    return np.where(inside, 20 + 70 * np.random.default_rng(0).random(inside.shape), 0).astype(np.float32)


SCAN = brain()
INSIDE = SCAN > 0
# From one scan; in all of them the same voxels are the object.
FORMS = {
    "as published": (SCAN, 0.0),
    "small numbers": (SCAN * 1e-5, 0.0),
    "16 bits": ((SCAN * 300).astype(np.int16), 0),
    "Hounsfield units": (SCAN * 12 - 1000, -1000.0),
    "negative throughout": (SCAN - 200, -200.0),
    "z-scores of the whole scan": ((SCAN - SCAN.mean()) / SCAN.std(), None),
    "z-scores inside the mask": (np.where(INSIDE, (SCAN - SCAN[INSIDE].mean()) / SCAN[INSIDE].std(), 0), 0.0),
    "far from 0": (SCAN + 1000, 1000.0),
}


@pytest.mark.parametrize("form", FORMS)
def test_object_is_found_however_its_values_are_stated(form: str) -> None:
    values, dark = FORMS[form]
    image = torch.from_numpy(np.ascontiguousarray(values))[None]
    assert torch.equal(foreground(image)[0], torch.from_numpy(INSIDE))
    assert float(background(image)) == pytest.approx(float(values.min()) if dark is None else dark)


def test_water_is_no_background() -> None:
    # 0 HU is a value like others; air is the smallest.
    scan = torch.linspace(-1000, 1000, 2001).round().view(1, 3, 23, 29)
    assert float(background(scan)) == -1000 and int(foreground(scan).sum()) == 2000


def test_undershoot_of_interpolation_is_no_background() -> None:
    scan = torch.from_numpy(SCAN.copy())[None]
    scan[0, 5, 5, 5] = -0.3
    assert float(background(scan)) == 0
    assert int(foreground(scan).sum()) == int(INSIDE.sum()) + int(not INSIDE[5, 5, 5])


def test_mask_without_a_voxel_counts_everywhere_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    some = torch.zeros(1, 4, 4, dtype=torch.bool)
    some[0, 1, 1] = True
    assert mask_or_everywhere(some, "x") is some and not caplog.records
    with caplog.at_level(logging.WARNING):
        assert mask_or_everywhere(torch.zeros(1, 4, 4, dtype=torch.bool), "labels.nii.gz") is None
    assert "no foreground in labels.nii.gz: the figures of folding count all voxels" in caplog.text
