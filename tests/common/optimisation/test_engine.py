# SPDX-License-Identifier: Apache-2.0
"""An evaluator whose inferer optimises: what the tables say of it."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose
from torch import nn
from torch.utils.data import DataLoader

from common.data import CheckSubjectd, LoadSubjectd, PairDataset, PairSampler
from common.engine import EvaluationWriter, PrepareRegistrationBatch, registered
from common.losses import RegistrationLoss, Term
from common.metrics.handlers import RegistrationMetrics
from common.networks import GradICON
from common.optimisation import NetworkWeights, OptimisingInferer


@pytest.mark.parametrize("batch_size", [1, 2])
def test_an_evaluation_has_the_loss_before_and_after(tmp_path: Path, batch_size: int) -> None:
    subjects = []
    for number in range(3):
        labels = np.zeros((12, 12, 12), np.uint8)
        labels[3 + number : 7 + number, 3:8, 3:8] = 1
        paths = {name: tmp_path / f"{name}{number}.nii.gz" for name in ("image", "label")}
        nibabel.save(nibabel.Nifti1Image(labels.astype(np.float32), np.eye(4)), paths["image"])
        nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), paths["label"])
        subjects.append({"id": f"s{number}", **{name: str(path) for name, path in paths.items()}})
    transform = Compose([LoadSubjectd(("image", "label")), CheckSubjectd(("image", "label"))])
    dataset = PairDataset(subjects, transform, progress=False)
    sampler = PairSampler(dataset, "listed", pairs=[(1, 0), (2, 0)], drop_last=False)
    metrics = RegistrationMetrics(labels=[1], output_transform=registered)
    torch.manual_seed(0)
    loss = RegistrationLoss({"mse": Term(nn.MSELoss(), ["warped", "fixed"])})
    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(dataset, batch_size=batch_size, sampler=sampler),
        network=GradICON(3, channels=(4, 4), up_channels=(4, 4), halvings=(0,)),
        inferer=OptimisingInferer(loss, 8, NetworkWeights(), 1e-2, ["inverse_ddf"]),
        prepare_batch=PrepareRegistrationBatch(),
        key_val_metric={"dice": metrics},
        val_handlers=[EvaluationWriter(tmp_path / "out", metrics, "A title")],
    ).run()
    cases = list(csv.DictReader((tmp_path / "out" / "cases.csv").open()))
    assert [case["io_steps"] for case in cases] == ["8", "8"]
    assert all(0 < float(case["loss"]) < float(case["loss_before"]) < 1 for case in cases)
    assert all(float(case["dice"]) > float(case["dice_before"]) for case in cases)
    assert "loss" in (tmp_path / "out" / "summary.json").read_text()
