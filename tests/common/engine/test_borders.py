# SPDX-License-Identifier: Apache-2.0
"""Few thick slices of a turned scan: inference, apply and evaluation agree up to the outermost slices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation
from torch import Tensor, nn
from torch.utils.data import DataLoader

from common.data import LoadSubjectd, PairSampler, ScanPairDataset, registration_request
from common.engine import PrepareRegistrationBatch, RegistrationFolder, RegistrationInferer, RegistrationWriter
from common.evaluation.pair_files import PairFiles
from common.evaluation.pair_measure import Measures, measure_pair
from common.io.apply import Chain, warp_file
from common.io.nifti import read_grid


class InPlane(nn.Module):
    """Up to ``most`` voxels along the first axis, nothing along the others."""

    def __init__(self, most: float) -> None:
        super().__init__()
        self.most = most

    def forward(self, image: Tensor) -> Tensor:
        wave = self.most * torch.sin(torch.linspace(0, 7, image.shape[3])).view(1, 1, -1, 1)
        ddf = torch.zeros(1, 3, *image.shape[2:])
        ddf[:, :1] = wave
        return ddf


@pytest.fixture(params=[1, 2, 4])
def scans(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """A scan of some slices as the moving one, and its own middle, cut out, as the fixed one."""
    shape = (30, 28, request.param)
    noise = gaussian_filter(np.random.default_rng(3).normal(size=shape), (2, 2, 0))
    image = ((noise - noise.min()) * 1000 + 10).astype(np.float32)
    labels = np.digitize(noise, np.quantile(noise, [0.25, 0.5, 0.75])).astype(np.uint8) + 1
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", (0.4, -0.3, 0.6)).as_matrix() * (1.25, 1.25, 10)
    affine[:3, 3] = -61.7, 38.2, 101.1
    inner = affine.copy()
    inner[:3, 3] += affine[:3, :3] @ (4, 5, 0)
    paths = {}
    for name, part, matrix in (
        ("moving", np.s_[:, :], affine),
        ("fixed", np.s_[4:26, 5:25], inner),
    ):
        for kind, array in (("", image), ("_label", labels)):
            paths[name + kind] = str(tmp_path / f"{name}{kind}.nii.gz")
            nibabel.save(nibabel.Nifti1Image(array[part], matrix), paths[name + kind])
    return paths


def infer(scans: dict[str, Any], output: Path, most: float) -> dict[str, float]:
    """Dice by header and after registration."""
    request, folder = registration_request("", **scans), RegistrationFolder(output, {})
    dataset = ScanPairDataset(request.subjects, Compose([LoadSubjectd()]))
    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(
            dataset,
            batch_size=1,
            sampler=PairSampler(dataset, "listed", pairs=folder.remaining(request), drop_last=False),
        ),
        network=InPlane(most),
        inferer=RegistrationInferer(),
        prepare_batch=PrepareRegistrationBatch(),
        val_handlers=[RegistrationWriter(folder)],
    ).run()
    found: dict[str, float] = json.loads((output / "provenance.json").read_text())["pairs"]["moving_to_fixed"]["dice"]
    return found


def array(path: str | Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def test_a_scan_and_its_own_middle_are_the_same_everywhere(scans: dict[str, Any], tmp_path: Path) -> None:
    found = infer(scans, tmp_path / "out", 0.0)
    assert found == {"header": 1, "registered": 1}
    assert np.array_equal(array(tmp_path / "out" / "moving_to_fixed_warped_label.nii.gz"), array(scans["fixed_label"]))
    files = PairFiles(moving_id="m", fixed_id="f", field=str(tmp_path / "out/moving_to_fixed_ddf.nii.gz"), **scans)
    case = measure_pair(files, Measures())
    assert case["dice"] == case["dice_before"] == 1 and case["hd95"] == case["hd95_before"] == 0


def test_all_three_files_move_the_labels_as_inference_did(scans: dict[str, Any], tmp_path: Path) -> None:
    dice = infer(scans, tmp_path / "out", 2.3)["registered"]
    assert dice < 0.95
    prefix = str(tmp_path / "out" / "moving_to_fixed_")
    warped = array(prefix + "warped_label.nii.gz")
    assert (warped == 0).mean() < 0.05
    for name in ("ddf.nii.gz", "displacement.nii.gz", "transform.h5"):
        chain = Chain([prefix + name], read_grid(scans["fixed"]))
        warp_file(scans["moving_label"], tmp_path / "again.nii.gz", chain, scans["fixed"], is_label=True)
        assert np.array_equal(array(tmp_path / "again.nii.gz"), warped), name
        files = PairFiles(moving_id="m", fixed_id="f", field=prefix + name, **scans)
        assert measure_pair(files, Measures(trust=True))["dice"] == pytest.approx(dice, abs=1e-12), name
