# SPDX-License-Identifier: Apache-2.0
"""By landmarks where there are such, by Dice elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose
from torch import nn
from torch.utils.data import DataLoader

from common.data import LoadLandmarksd, LoadSubjectd, PairDataset, PairSampler
from common.engine import BestModelHandler, PrepareRegistrationBatch, RegistrationInferer, registered
from common.engine.key_metric import choose_key_metric
from common.metrics.handlers import RegistrationMetrics

SIZE = (12, 13, 14)
BOTH = ("label", "landmarks")
POINTS = np.array([[5.0, 6, 7], [6, 4, 5]])


class Shift(nn.Module):
    """A displacement of so many voxels along the first axis."""

    def __init__(self) -> None:
        super().__init__()
        self.voxels = nn.Parameter(torch.zeros(()))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        ddf = torch.zeros(len(image), 3, *image.shape[2:])
        ddf[:, 0] = self.voxels
        return ddf


def subject(folder: Path, name: str, shift: float, kinds: Collection[str]) -> dict[str, str]:
    image = np.random.default_rng(len(name)).random(SIZE, np.float32)
    nibabel.save(nibabel.Nifti1Image(image, np.diag([2.0, 1, 1, 1])), folder / f"{name}.nii.gz")
    # Labels that fit best without registration, unlike the points.
    nibabel.save(
        nibabel.Nifti1Image((image > 0.5).astype(np.uint8), np.diag([2.0, 1, 1, 1])), folder / f"l{name}.nii.gz"
    )
    np.savetxt(folder / f"{name}.csv", POINTS + (shift, 0, 0), delimiter=",")
    files = {"label": f"l{name}.nii.gz", "landmarks": f"{name}.csv"}
    here = {key: str(folder / file) for key, file in files.items() if key in kinds}
    return {"id": name, "image": str(folder / f"{name}.nii.gz"), **here}


def evaluator(data: list[dict[str, str]], *further: Any) -> SupervisedEvaluator:
    dataset = PairDataset(data, Compose([LoadSubjectd(), *further]), progress=False)
    sampler = PairSampler(dataset, "listed", [(1, 0), (2, 0)], drop_last=False)
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(dataset, 1, sampler=sampler),
        network=Shift(),
        inferer=RegistrationInferer(),
        prepare_batch=PrepareRegistrationBatch(),
        key_val_metric={"dice": RegistrationMetrics(labels=[1], output_transform=registered)},
    )


def test_the_smallest_error_of_landmarks_is_kept_where_a_pair_has_them(tmp_path: Path) -> None:
    # One pair has landmarks, two voxels of 2 mm apart, all have labels.
    data = [
        subject(tmp_path, "fixed", 0, BOTH),
        subject(tmp_path, "other", 2, BOTH),
        subject(tmp_path, "bare", 0, BOTH[:1]),
    ]
    engine = evaluator(data, LoadLandmarksd())
    choose_key_metric(engine)
    network: Any = engine.network
    BestModelHandler(tmp_path / "best.pt", network).attach(engine)
    for epoch, (voxels, error, best) in enumerate([(0, 4, 0), (3, 2, 3), (1.5, 1, 1.5), (5, 6, 1.5)], start=1):
        with torch.no_grad():
            network.voxels.fill_(voxels)
        engine.run(epoch)
        # The published cubic interpolation of a constant is not exact at the border alone.
        assert engine.state.metrics["tre"] == pytest.approx(error, abs=1e-4)
        assert engine.state.metrics["tre_before"] == pytest.approx(4)
        assert float(torch.load(tmp_path / "best.pt", weights_only=True)["voxels"]) == best
    assert engine.state.best_metric == pytest.approx(1, abs=1e-4) and engine.state.best_metric_epoch == 3


@pytest.mark.parametrize("kinds", [BOTH[:1], BOTH])
def test_dice_is_kept_where_there_are_no_landmarks_or_none_are_read(tmp_path: Path, kinds: Collection[str]) -> None:
    data = [subject(tmp_path, name, 1, kinds) for name in ("fixed", "other", "bare")]
    engine = evaluator(data)
    choose_key_metric(engine)
    engine.run()
    assert engine.state.key_metric_name == "dice" and engine.state.best_metric == engine.state.metrics["dice"]
    assert "tre" not in engine.state.metrics and engine.metric_cmp_fn(0.6, 0.5)


@pytest.mark.parametrize(("kinds", "said"), [((), True), (BOTH[:1], False), (BOTH[1:], False)])
def test_nothing_to_choose_by_is_said(
    kinds: Collection[str], said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = [subject(tmp_path, name, 1, kinds) for name in ("fixed", "other", "bare")]
    engine = evaluator(data, LoadLandmarksd())
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        choose_key_metric(engine)
    assert ("the last weights are kept" in caplog.text) == said
