# SPDX-License-Identifier: Apache-2.0
"""On an evaluator with a network whose inverse, and whose answer to exchanged images, are known."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
import torch
from monai.engines import SupervisedEvaluator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from common.data import PairSampler
from common.engine import PrepareRegistrationBatch, RegistrationInferer, registered
from common.engine.study_figures import StudyFigures
from common.metrics.handlers import RegistrationMetrics


class Pairs(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, pair: Any) -> dict[str, Any]:
        images = {name: torch.full((1, 6, 7), float(pair[n])) for n, name in enumerate(("moving", "fixed"))}
        return {**images, "moving_id": str(pair[0]), "fixed_id": str(pair[1])}


class Difference(nn.Module):
    """Moves by moving - fixed along the first axis; its inverse is short of that by ``error`` of a voxel.

    In training it is wrong by one voxel, as networks whose batch normalisation looks at the batch may be.
    """

    def __init__(self, error: float) -> None:
        super().__init__()
        self.error = error

    def forward(self, image: Tensor, details: Collection[str] = ()) -> Tensor | dict[str, Tensor]:
        ddf = torch.cat([image[:, :1] - image[:, 1:], torch.zeros_like(image[:, :1])], dim=1)
        ddf = ddf + 1.0 if self.training else ddf
        inverse = -ddf - self.error * torch.tensor([1.0, 0.0])[None, :, None, None]
        return {"ddf": ddf, "inverse_ddf": inverse} if "inverse_ddf" in details else ddf


def cases(details: list[str], batch_size: int) -> list[dict[str, Any]]:
    metrics, data = RegistrationMetrics(output_transform=registered), Pairs()
    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(data, batch_size, sampler=PairSampler(data, "all", drop_last=False)),
        network=Difference(0.25),
        inferer=RegistrationInferer(details),
        prepare_batch=PrepareRegistrationBatch(),
        key_val_metric={"fold_fraction": metrics},
        val_handlers=[StudyFigures(metrics)],
    ).run()
    return metrics.cases


@pytest.mark.parametrize("batch_size", [1, 4])
def test_what_an_inverse_misses_is_measured_in_voxels(batch_size: int) -> None:
    measured = cases(["inverse_ddf"], batch_size)
    assert len(measured) == 6
    for case in measured:
        assert case["inverse_error_voxels"] == pytest.approx(0.25, abs=1e-6)
        assert case["swap_error_voxels"] == pytest.approx(0.25, abs=1e-6)


def test_without_an_inverse_nothing_is_added() -> None:
    assert not any("inverse_error_voxels" in case or "swap_error_voxels" in case for case in cases([], 1))
