# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.evaluation import diagnosis
from common.evaluation.diagnosis import Sides, diagnose, plausible_readings
from common.spatial import Grid, warp, warp_labels

SHAPE = (40, 36, 44)
ORIGIN = [[2.0, 0, 0, -40], [0, 2, 0, -30], [0, 0, 2, -50], [0, 0, 0, 1]]
GRID = Grid(SHAPE, torch.tensor(ORIGIN, dtype=torch.float64))
EYE = torch.eye(4, dtype=torch.float64)


def smooth(seed: int, channels: int, knots: int) -> Tensor:
    noise = torch.randn(1, channels, knots, knots, knots, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, size=SHAPE, mode="trilinear", align_corners=True)


MOVING = smooth(0, 1, 12) + 4
FIELD = 2.5 * smooth(1, 3, 5)
FIXED = warp(MOVING, FIELD)
LABEL = (MOVING * 2).round().clamp(0, 15).to(torch.uint8)
IMAGES = Sides(MOVING[0], FIXED[0])
LABELS = Sides(LABEL[0], warp_labels(LABEL, FIELD)[0], is_label=True)


@pytest.fixture(autouse=True)
def _few_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "POINTS", 1500)


def judged(
    field: Tensor, convention: str = "voxels", sides: Sides = IMAGES, guessed: bool = False, grid: Grid = GRID
) -> str | None:
    return diagnose("some_file", field, [sides], grid, EYE, convention, guessed=guessed)


@pytest.mark.parametrize("sides", [IMAGES, LABELS])
def test_right_reading_passes_and_every_other_one_is_named(sides: Sides) -> None:
    assert judged(FIELD, sides=sides) is None
    for reading in plausible_readings(GRID, halved=False):
        misread = torch.einsum("rc,bcijk->brijk", torch.linalg.inv(reading.matrix).float(), FIELD)
        if (misread - FIELD).abs().max() < 1e-3:
            continue
        sentence = judged(misread, sides=sides)
        assert sentence is not None, reading.name
        # Two millimetres a voxel: a grid of twice the size has the same numbers.
        same = [r.name for r in plausible_readings(GRID) if torch.allclose(r.matrix, reading.matrix)]
        assert any(f"its values were {name}, which is" in sentence for name in same), (reading.name, sentence)


@pytest.mark.parametrize("scale", [0, 0.02, 0.1, 0.3, 0.5, 0.8, 1.3])
def test_weak_registration_passes(scale: float) -> None:
    assert judged(scale * FIELD) is None
    assert judged(scale * FIELD, guessed=True) is None


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("amplitude", [0.5, 3, 10])
def test_noise_passes(seed: int, amplitude: float) -> None:
    noise = amplitude * smooth(10 + seed, 3, 6)
    for guessed in (False, True):
        assert judged(noise, guessed=guessed) is None
        assert judged(noise + 0.5 * FIELD, guessed=guessed) is None


@pytest.mark.parametrize("spacing", [(1.5, 1.2, 2.0), (0.8, 0.8, 0.8), (1.0, 1.0, 1.25)])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1)])
def test_millimetres_that_were_taken_for_voxels(spacing: tuple[float, ...], signs: tuple[int, ...]) -> None:
    grid = Grid(SHAPE, torch.diag(torch.tensor([*spacing, 1.0])))
    factors = torch.tensor(spacing) * torch.tensor(signs)
    sentence = judged(FIELD * factors.view(1, 3, 1, 1, 1), guessed=True, grid=grid)
    expected = "ras_mm" if signs[0] > 0 else "lps_mm"
    assert sentence is not None and f"state --convention {expected}" in sentence
    # Voxels of the same grid are no millimetres.
    assert judged(FIELD, guessed=True, grid=grid) is None


def test_advice_names_the_option_or_the_exchange() -> None:
    signs = torch.tensor([-1.0, -1, 1]).view(1, 3, 1, 1, 1)
    sentence = judged(FIELD * signs, "ras_mm")
    assert sentence is not None and "LPS millimetres" in sentence and "--convention lps_mm" in sentence
    sentence = judged(-FIELD, "lps_mm")
    assert sentence is not None and "opposite direction" in sentence and "exchange moving and fixed" in sentence
    assert "some_file" in sentence and "--trust" in sentence and "\n" not in sentence


def test_half_resolution_with_values_of_the_half_grid_is_seen() -> None:
    sentence = judged(0.5 * FIELD, "learn2reg_half")
    assert sentence is not None and "grid of half the size" in sentence


def test_labels_can_overrule_the_images() -> None:
    # A picture in which the opposite field looks better, and labels that know.
    misleading = Sides(MOVING[0], warp(MOVING, -FIELD)[0])
    assert diagnose("f", FIELD, [misleading], GRID, EYE, "voxels") is not None
    assert diagnose("f", FIELD, [misleading, LABELS], GRID, EYE, "voxels") is None


def test_moving_image_on_another_grid() -> None:
    coarse = torch.diag(torch.tensor([2.0, 2, 2, 1], dtype=torch.float64))
    fine = F.interpolate(MOVING, scale_factor=2, mode="trilinear", align_corners=False)
    between = coarse.clone()
    between[:3, 3] = 0.5
    sides = Sides(fine[0], FIXED[0])
    assert diagnose("f", FIELD, [sides], GRID, between, "voxels") is None
    assert diagnose("f", -FIELD, [sides], GRID, between, "voxels") is not None


def test_tiny_foreground_says_nothing() -> None:
    foreground = torch.zeros(1, *SHAPE)
    foreground[0, :10, :10, :10] = 1
    assert diagnose("f", -FIELD, [IMAGES], GRID, EYE, "voxels", foreground) is not None
    small = Grid((4, 4, 4), EYE)
    side = Sides(MOVING[0, :, :4, :4, :4], FIXED[0, :, :4, :4, :4])
    assert diagnose("f", -FIELD[:, :, :4, :4, :4], [side], small, EYE, "voxels") is None


def test_a_single_large_slice_is_judged_too() -> None:
    shape = (300, 280, 1)
    plane = F.interpolate(
        torch.rand(1, 3, 20, 19, generator=torch.Generator().manual_seed(1)), shape[:2], mode="bicubic"
    )
    moving = plane[:, :1, :, :, None]
    ddf = 12 * (plane - plane.mean(dim=(2, 3), keepdim=True))[..., None]
    ddf[:, 2] = 0
    side = Sides(moving[0], warp(moving, ddf)[0])
    assert diagnose("f", ddf, [side], Grid(shape, EYE), EYE, "voxels") is None
    assert diagnose("f", -ddf, [side], Grid(shape, EYE), EYE, "voxels") is not None
