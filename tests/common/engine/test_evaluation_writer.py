# SPDX-License-Identifier: Apache-2.0
"""Handlers on real engines with a network that returns a known field."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose
from torch import Tensor, nn
from torch.utils.data import DataLoader

from common.checks import InputError
from common.data import CheckSubjectd, LoadSubjectd, PairDataset, PairSampler
from common.engine import (
    EvaluationWriter,
    PrepareRegistrationBatch,
    RegistrationInferer,
    evaluation_writer,
    registered,
)
from common.metrics.handlers import RegistrationMetrics

AFFINE = np.array([[0, -2, 0, 5], [1, 0, 0, 7], [0, 0, 3, -9], [0, 0, 0, 1]], float)


class Shift(nn.Module):
    """A field that fetches every voxel from one voxel further along axis 0; its weight has three numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(self, image: Tensor) -> Tensor:
        ddf = torch.zeros(image.shape[0], 3, *image.shape[2:])
        ddf[:, 0] = 1
        return ddf


@pytest.fixture
def loader(tmp_path: Path) -> DataLoader:
    subjects = []
    for number in range(3):
        labels = np.zeros((10, 9, 8), np.uint8)
        labels[3 + number : 6 + number, 3:6, 2:6] = 1
        paths = {name: tmp_path / f"{name}{number}.nii.gz" for name in ("image", "label")}
        nibabel.save(nibabel.Nifti1Image(labels.astype(np.float32) * 0.5, AFFINE), paths["image"])
        nibabel.save(nibabel.Nifti1Image(labels, AFFINE), paths["label"])
        subjects.append({"id": f"s{number}", **{name: str(path) for name, path in paths.items()}})
    transform = Compose([LoadSubjectd(("image", "label")), CheckSubjectd(("image", "label"))])
    dataset = PairDataset(subjects, transform, progress=False)
    sampler = PairSampler(dataset, "listed", pairs=[(1, 0), (2, 1), (2, 0)], drop_last=False)
    return DataLoader(dataset, batch_size=1, sampler=sampler)


def evaluator(
    loader: DataLoader, handlers: list[Any], metrics: RegistrationMetrics | None = None
) -> SupervisedEvaluator:
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=loader,
        network=Shift(),
        inferer=RegistrationInferer(),
        prepare_batch=PrepareRegistrationBatch(),
        key_val_metric=None if metrics is None else {"dice": metrics},
        val_handlers=handlers,
    )


def test_evaluation_leaves_tables_summary_and_page(loader: DataLoader, tmp_path: Path) -> None:
    metrics = RegistrationMetrics(labels=[1], output_transform=registered, hd95="voxels")
    out = tmp_path / "out"
    evaluator(loader, [EvaluationWriter(out, metrics, "A title")], metrics).run()
    cases = list(csv.DictReader((out / "cases.csv").open()))
    # The subjects are shifted by one voxel against their neighbours: the field is right for two pairs, short for one.
    assert [float(case["dice"]) for case in cases] == pytest.approx([1, 1, 2 / 3], abs=1e-5)
    assert [float(case["dice_before"]) for case in cases] == pytest.approx([2 / 3, 2 / 3, 1 / 3], abs=1e-5)
    assert [(case["moving_id"], case["fixed_id"]) for case in cases] == [("s1", "s0"), ("s2", "s1"), ("s2", "s0")]
    assert all(float(case["seconds"]) > 0 and float(case["cpu_seconds"]) >= 0 for case in cases)
    labels = list(csv.DictReader((out / "labels.csv").open()))
    assert len(labels) == 3 and float(labels[2]["dice"]) == pytest.approx(2 / 3, abs=1e-5)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["metrics"]["dice"]["mean"] == pytest.approx(8 / 9)
    assert summary["metrics"]["dice"]["before"] == pytest.approx(5 / 9)
    assert summary["metrics"]["fold_fraction"]["mean"] == 0
    assert summary["metrics"]["peak_memory_gb"]["mean"] > 0 and summary["parameters"] == 3
    assert {"versions", "machine", "command", "git", "time"} <= set(summary["provenance"])
    page = (out / "report.html").read_text()
    assert "A title" in page and "s2 to s0" in page and "data:image/png;base64," in page


def test_pictures_show_each_image_under_its_name(
    loader: DataLoader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[dict[str, Any]] = []

    def keep(**images: Any) -> bytes:
        shown.append(images)
        return b""

    monkeypatch.setattr(evaluation_writer, "picture", keep)
    metrics = RegistrationMetrics(labels=[1], output_transform=registered)
    writer = EvaluationWriter(tmp_path / "out", metrics, "")
    evaluator(loader, [writer], metrics).run()
    assert shown
    for images in shown:
        # Labels lie three voxels behind the first plane, one more for each subject; the last pair is two apart.
        first = {name: int(images[name][0].sum((1, 2)).nonzero()[0]) for name in ("moving", "fixed", "warped")}
        assert first["moving"] in (first["fixed"] + 1, first["fixed"] + 2) and first["warped"] == first["moving"] - 1
    (_, viewer) = writer._pictures()
    assert all(torch.equal(pair.fixed.image, images["fixed"]) for pair, images in zip(viewer, shown, strict=False))
    assert not any(torch.equal(pair.moving.image, pair.fixed.image) for pair in viewer)


def test_pairs_of_one_batch_share_its_time(loader: DataLoader, tmp_path: Path) -> None:
    batches = DataLoader(loader.dataset, batch_size=2, sampler=loader.sampler)
    metrics = RegistrationMetrics(labels=[1], output_transform=registered)
    writer = EvaluationWriter(tmp_path, metrics, "")
    evaluator(batches, [writer], metrics).run()
    cases = list(csv.DictReader((tmp_path / "cases.csv").open()))
    assert [float(case["dice"]) for case in cases] == pytest.approx([1, 1, 2 / 3], abs=1e-5)
    assert 0 < float(cases[0]["seconds"]) == float(cases[1]["seconds"])
    assert [pair["moving_id"] for _, pair in writer._pairs] == ["s1", "s2", "s2"]


def without_labels(loader: DataLoader, places: set[int]) -> DataLoader:
    """The same pairs, some subjects without their label maps."""
    assert isinstance(loader.dataset, PairDataset)
    subjects = [
        {key: value for key, value in subject.items() if key != "label" or place not in places}
        for place, subject in enumerate(loader.dataset.data)
    ]
    dataset = PairDataset(subjects, LoadSubjectd(("image", "label")), progress=False)
    sampler = PairSampler(dataset, "listed", pairs=[(1, 0), (2, 1), (2, 0)], drop_last=False)
    return DataLoader(dataset, batch_size=3, sampler=sampler)


def test_pairs_of_which_one_has_no_labels_are_left_out_of_the_dice(loader: DataLoader, tmp_path: Path) -> None:
    metrics = RegistrationMetrics(labels=[1], output_transform=registered, hd95="voxels")
    engine = evaluator(without_labels(loader, {0}), [EvaluationWriter(tmp_path, metrics, "")], metrics)
    engine.run()
    cases = list(csv.DictReader((tmp_path / "cases.csv").open()))
    # As in the whole set, for the one pair that is left.
    assert [case["dice"] for case in cases] == ["", "1", ""] and cases[1]["dice_before"] == "0.666667"
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["pairs"] == 3 and summary["metrics"]["dice"]["mean"] == engine.state.metrics["dice"] == 1
    assert [row["moving_id"] for row in csv.DictReader((tmp_path / "labels.csv").open())] == ["s2"]
    assert (tmp_path / "report.html").exists()


def test_pairs_without_labels_are_measured_without_dice(loader: DataLoader, tmp_path: Path) -> None:
    loader = without_labels(loader, {0, 1, 2})
    metrics = RegistrationMetrics(labels=[1], output_transform=registered, hd95="voxels")
    engine = evaluator(loader, [EvaluationWriter(tmp_path, metrics, "")], metrics)
    engine.run()
    assert np.isnan(engine.state.metrics["dice"]) and np.isnan(engine.state.best_metric)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["pairs"] == 3 and "sdlogj" in summary["metrics"] and "dice" not in summary["metrics"]
    assert (tmp_path / "report.html").exists()


def test_evaluation_is_not_replaced_unasked(tmp_path: Path) -> None:
    metrics = RegistrationMetrics(labels=[1])
    (tmp_path / "cases.csv").write_text("")
    with pytest.raises(InputError, match="holds an evaluation already"):
        EvaluationWriter(tmp_path, metrics, "")
    EvaluationWriter(tmp_path, metrics, "", overwrite=True)


def test_many_pairs_keep_the_worst_and_the_best(tmp_path: Path) -> None:
    writer = EvaluationWriter(tmp_path, RegistrationMetrics(labels=[1]), "")

    class State:
        output = [{"label": {"moving_id": "m", "fixed_id": "f"}, "pred": {}}]

    class Fake:
        state = State()

    scores = np.random.default_rng(0).permutation(101) / 100
    for score in scores:
        writer.metrics.cases = [{"dice": float(score)}]
        writer._keep(Fake())
    kept = sorted(score for score, _ in writer._pairs)
    assert len(kept) <= 16 and kept[0] == 0 and kept[-1] == 1
    assert abs(kept[len(kept) // 2] - 0.5) < 0.25
