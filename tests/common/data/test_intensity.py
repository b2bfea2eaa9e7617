# SPDX-License-Identifier: Apache-2.0
"""The scale of images: left where published recipes have it, made where files have another."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandGaussianNoised, ScaleIntensityRange

from common.checks import InputError
from common.data import LoadSubjectd, PairDataset, ScanPairDataset
from common.data.intensity import fit_intensity
from common.losses import LNCCLoss


def scan(seed: int = 0) -> np.ndarray:
    """Zeros around a textured box, up to 1; float64."""
    image = np.zeros((24, 22, 20))
    image[4:-4, 4:-4, 4:-4] = 0.1 + 0.9 * np.random.default_rng(seed).random((16, 14, 12))
    return image


def tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))[None]


@pytest.mark.parametrize(
    ("scale", "what"),
    [(0.48, "OASIS"), (1.0, "[0, 1]"), (255.0, "LUMIR"), (4095.0, "12 bits"), (65535.0, "16 bits")],
)
def test_scales_of_published_recipes_stay_as_they_are(scale: float, what: str) -> None:
    image = tensor(scan() * scale)
    assert fit_intensity(image, what) is image
    # Undershoot of a resampled scan, and what was brought to mean 0 inside a mask.
    image = tensor(np.where(scan() > 0, scan() - 0.3, 0) * scale)
    assert fit_intensity(image, what) is image


@pytest.mark.parametrize(
    ("scale", "offset"),
    [(1e-2, 0), (1e-3, 0), (1e-6, 0), (1e-20, 0), (1e6, 0), (2000, -1000), (3, -1.5), (1, -40), (1, 1000), (1, 30000)],
)
def test_every_other_scale_gives_the_same_image(scale: float, offset: float) -> None:
    values = scan()
    bright = np.sort(values, axis=None)[round(0.999 * values.size) - 1]
    fitted = fit_intensity(tensor(values * scale + offset), "x")
    # A file in single precision holds a contrast of 1 on 30000 in steps of 1 / 512.
    rounding = 2 * np.spacing(np.float32(abs(offset) + scale)) / scale
    np.testing.assert_allclose(fitted[0].numpy(), values / bright, rtol=1e-5, atol=rounding)


def test_lncc_has_no_scale_then() -> None:
    images = [scan(), 0.4 * scan() + 0.6 * scan(1)]
    # In double precision, and an epsilon that plays no part.
    expected = float(LNCCLoss(kernel_size=3, eps=1e-30)(*[torch.from_numpy(image)[None, None] for image in images]))
    assert 0.05 < expected < 0.95
    for scale, offset in ((1e-6, 0.0), (1e-3, 0.0), (1e3, 0.0), (1e4, -5e3), (1.0, 1e3)):
        given = [tensor(image * scale + offset)[None] for image in images]
        fitted = [fit_intensity(image[0], "x")[None] for image in given]
        assert float(LNCCLoss(kernel_size=3)(*fitted)) == pytest.approx(expected, abs=2e-3)
    # What it is without: flat, or of another image as rounding has it.
    flat = float(LNCCLoss(kernel_size=3)(*[tensor(image * 1e-3)[None] for image in images]))
    assert flat > 0.99


def test_one_bright_voxel_does_not_make_the_rest_flat() -> None:
    values = scan() * 1e-3
    values[0, 0, 0] = 1.0
    fitted = fit_intensity(tensor(values), "x")
    assert 0.9 < float(fitted.flatten().sort().values[-2]) < 1.1 and float(fitted.max()) > 900


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda v: v * 0 + 3, r"x.nii.gz is constant \(3\) after the preprocessing"),
        (lambda v: np.where(v > 0.999, 1e30, v), "has values from 0 to 1e.30, but 99.9 % lie below"),
    ],
)
def test_what_no_scale_mends_is_refused(spoil: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit_intensity(tensor(spoil(scan())), "x.nii.gz")


@pytest.fixture
def files(tmp_path: Path) -> list[dict[str, str]]:
    """Mean diffusivity in mm2/s, CT as int16, z-scores."""
    stated = {"md": (scan() * 3e-3).astype(np.float32), "ct": (scan(1) * 1800 - 1000).astype(np.int16)}
    stated["z"] = ((scan(2) - scan(2).mean()) / scan(2).std()).astype(np.float32)
    for name, values in stated.items():
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / f"{name}.nii.gz")
    return [{"id": name, "image": str(tmp_path / f"{name}.nii.gz")} for name in stated]


def test_training_evaluation_and_inference_see_the_same(
    files: list[dict[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    load = Compose([LoadSubjectd("image")])
    with caplog.at_level(logging.INFO):
        trained = PairDataset(files, load, progress=False)
    assert "md.nii.gz has values from 0 to 0.00299" in caplog.text and "stretched" in caplog.text
    inferred = ScanPairDataset(files, load)
    for index, (moving, fixed) in enumerate([(0, 1), (1, 2), (2, 0)]):
        one, other = trained[moving, fixed], inferred[moving, fixed]
        for side in ("moving", "fixed"):
            torch.testing.assert_close(one[side], other[side], rtol=0, atol=1e-5)
            assert float(one[side].amin()) == 0 and 1 <= float(one[side].amax()) < 1.1
        # What is written is the scan as it is.
        raw = nibabel.load(files[index]["image"]).get_fdata(dtype=np.float32)
        assert np.array_equal(other["moving_scan"][0].numpy(), raw)


def test_random_steps_stay_random_and_all_else_is_cached(files: list[dict[str, str]]) -> None:
    noisy = Compose([LoadSubjectd("image"), RandGaussianNoised("image", prob=1.0, std=1e-4)])
    dataset = PairDataset(files[:2], noisy, progress=False)
    assert not torch.equal(dataset[0, 1]["moving"], dataset[0, 1]["moving"])
    assert len(dataset.subjects.transform.transforms) == 3


def test_window_that_a_scan_does_not_meet_is_mended_or_refused(files: list[dict[str, str]]) -> None:
    load = Compose([LoadSubjectd("image")])
    window: Any = ScaleIntensityRange(-500, 800, 0, 1, clip=True)
    # A scan of small numbers in the middle of a window of Hounsfield units: a contrast of 0.000002.
    seen = ScanPairDataset(files[:2], load, intensity=window)[0, 1]["moving"]
    assert 0.9 < float(seen.amax()) < 1.1 and float(seen.amin()) == 0
    low: Any = ScaleIntensityRange(5000, 8000, 0, 1, clip=True)
    with pytest.raises(InputError, match=r"md.nii.gz is constant \(0\) after the preprocessing of this bundle"):
        ScanPairDataset(files[:2], load, intensity=low)[0, 1]
