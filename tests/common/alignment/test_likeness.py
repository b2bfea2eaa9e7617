# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from common.alignment.likeness import likeness, look
from common.alignment.mutual_information import BlockScan
from common.spatial import Grid


def _scan(seed: int, shape: tuple[int, ...] = (40, 40, 40), shift: int = 0, power: float = 1.0) -> BlockScan:
    """A blob with a pattern of its own on background 0, moved along the first axis."""
    inside = np.zeros(shape, bool)
    inside[tuple(slice(n // 4, 3 * n // 4) for n in shape)] = True
    pattern = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 4)
    values = np.where(inside, np.maximum(5 + pattern / pattern.std(), 1) ** power, 0).astype(np.float32)
    image = torch.from_numpy(np.roll(values, shift, 0))
    return look(image.view(1, *shape, *[1] * (3 - len(shape))), Grid.of(shape, torch.eye(4)), "a scan")


def test_a_scan_is_most_like_itself_wherever_it_lies_and_whatever_its_contrast() -> None:
    fixed = _scan(0)
    found = {seed: likeness(_scan(seed, shift=6, power=0.5), fixed) for seed in (0, 1, 2)}
    assert max(found, key=lambda seed: found[seed]) == 0
    assert found[0] > max(found[1], found[2]) + 0.02
    assert all(0 <= value <= 1 for value in found.values())


def test_images_of_two_dimensions_are_compared_and_are_like_no_volume() -> None:
    flat = _scan(0, (60, 60))
    assert likeness(_scan(0, (60, 60), shift=5), flat) > likeness(_scan(1, (60, 60)), flat)
    assert likeness(_scan(0), flat) == 0 == likeness(flat, _scan(0))
