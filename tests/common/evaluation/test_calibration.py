# SPDX-License-Identifier: Apache-2.0
"""Uncertainties of phantoms: what is compared with what, against numbers put in by hand."""

from __future__ import annotations

import io
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from common.checks import InputError
from common.data.known_fields import make_known_fields
from common.data.shapes3d import generate_shapes3d
from common.evaluation import calibration
from common.evaluation.calibration import BINS, measure_calibration
from common.io.nifti import read_grid, write_ddf, write_image
from common.report.calibration import draw_calibration
from common.spatial import warp_labels

AFFINE = torch.eye(4, dtype=torch.float64)
BOTH = ("SHAPES_0004_to_SHAPES_0003", "SHAPES_0003_to_SHAPES_0004")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes") / "data"
    return generate_shapes3d(folder, num_subjects=4, size=(20, 24, 18), validation=0, test=2, progress=False)


def volume(path: Path) -> Tensor:
    return torch.from_numpy(np.asarray(nibabel.load(path).dataobj, dtype=np.float32))


def save(folder: Path, name: str, ddf: Tensor, uncertainty: Tensor) -> None:
    folder.mkdir(exist_ok=True)
    write_ddf(folder / f"{name}_ddf.nii.gz", ddf, AFFINE)
    write_image(folder / f"{name}_uncertainty.nii.gz", uncertainty[None], AFFINE)


def subject(shapes: Path, number: int, what: str) -> Tensor:
    name = {"image": "imagesTr/SHAPES_{}_0000.nii.gz", "label": "labelsTr/SHAPES_{}_0000.nii.gz"}[what]
    return volume(shapes / name.format(f"{number:04d}"))


def test_errors_are_those_of_the_field_from_one_subject_to_the_other(shapes: Path, tmp_path: Path) -> None:
    nothing, unsure = torch.zeros(3, 20, 24, 18), torch.rand(20, 24, 18)
    for name in BOTH:
        save(tmp_path / "out", name, nothing, unsure)
    found = measure_calibration(shapes, tmp_path / "out")
    assert [row["pair"] for row in found.pairs] == [*BOTH, "pooled"]
    labels = [int((subject(shapes, n, "label") > 0).sum()) for n in (3, 4)]
    assert [row["voxels"] for row in found.pairs] == [*labels, sum(labels)]
    for row in found.pairs:
        assert row["error"] == row["error_before"] and float(row["error"]) > 0.5 and abs(float(row["spearman"])) < 0.1
    # The field that is compared with takes the one subject's labels to the other's.
    grid = read_grid(shapes / "labelsTr" / "SHAPES_0004_0000.nii.gz")
    true = calibration._true_field(shapes, "SHAPES_0003", "SHAPES_0004", grid)
    moving, fixed = (subject(shapes, n, "label").long()[None, None] for n in (3, 4))
    # Labels of both are sampled at the nearest voxel of one original.
    unlike = (moving != fixed).float().mean()
    assert (warp_labels(moving, true) != fixed).float().mean() < 0.5 * unlike


def test_known_uncertainties_are_recovered(tmp_path: Path) -> None:
    """Where the error is as large as it is said to be, parts lie on the line and ranks agree."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 16, 18, 20, generator=generator)
    label = torch.zeros(1, 16, 18, 20, dtype=torch.uint8)
    label[:, 3:-3, 3:-3, 3:-3] = 1
    write_image(tmp_path / "scan.nii.gz", image, AFFINE)
    write_image(tmp_path / "label.nii.gz", label, AFFINE)
    data = make_known_fields(tmp_path / "data", tmp_path / "scan.nii.gz", tmp_path / "label.nii.gz", 1, 0, 2)
    for n in (2, 3):
        true = volume(data / "fields" / f"COPY_{n:04d}_ddf.nii.gz").movedim(-1, 0)
        sigma = torch.rand(16, 18, 20, generator=generator) + 0.1
        wrong = sigma / 3**0.5 * torch.randn(3, 16, 18, 20, generator=generator)
        save(tmp_path / "out", f"SCAN_to_COPY_{n:04d}", true + wrong, sigma)
    found = measure_calibration(data, tmp_path / "out")
    assert all(0.5 < float(row["spearman"]) < 0.95 for row in found.pairs)
    assert len(found.bins) == BINS and sum(int(row["voxels"]) for row in found.bins) == found.pairs[-1]["voxels"]
    for row in found.bins:
        # A part has some 500 draws, whose deviation is off by 3 %, of one standard deviation: five of them.
        assert row["error"] == pytest.approx(row["uncertainty"], rel=0.15)
        assert 0 < float(row["mean_error"]) < float(row["error"])
    spread = [float(row["uncertainty"]) for row in found.bins]
    assert spread == sorted(spread)
    with Image.open(io.BytesIO(draw_calibration(found))) as picture:
        assert picture.size[0] > 2 * picture.size[1] > 400


def test_uncertainty_of_another_grid_is_refused(shapes: Path, tmp_path: Path) -> None:
    for name in BOTH:
        save(tmp_path / "out", name, torch.zeros(3, 20, 24, 18), torch.zeros(5, 4, 3))
    with pytest.raises(InputError, match="is not on the grid of"):
        measure_calibration(shapes, tmp_path / "out")
