# SPDX-License-Identifier: Apache-2.0
"""A resumed training goes on with the settings that it began with, or says which others."""

from __future__ import annotations

import csv
import logging
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.transforms import Compose
from torch.utils.data import DataLoader

from common.checks import InputError
from common.data import CheckSubjectd, LoadSubjectd, PairDataset, PairSampler
from common.engine import (
    History,
    PrepareRegistrationBatch,
    RegistrationInferer,
    ResumeHandler,
    TrainingHandlers,
    registered,
)
from common.engine.schedules import polynomial_decay
from common.engine.settings import described, differences
from common.losses import GradientLoss, LNCCLoss, RegistrationLoss, Term
from common.metrics.handlers import RegistrationMetrics
from common.networks import EOIR


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    for number in range(3):
        values = np.random.default_rng(number).random((16, 17, 16), np.float32)
        nib.save(nib.Nifti1Image(values, np.eye(4)), folder / f"s{number}.nii.gz")
        nib.save(nib.Nifti1Image((values > 0.5).astype(np.uint8), np.eye(4)), folder / f"l{number}.nii.gz")
    return folder


def train(folder: Path, scans: Path, resume: bool = False, whole: bool = False, **changed: Any) -> Path:
    """One epoch, or what ``changed`` says, with all handlers or those alone that count here; returns the history."""
    given: dict[str, Any] = {
        **{"smoothness": 5.0, "kernel": 5, "int_steps": 3, "amp": False, "pairs": 2, "val_interval": 1, "epochs": 1},
        **{"amsgrad": True, "decay": 0.0, "labels": [1], "gamma": 0.5, "polynomial": False, "strategy": "all"},
        **{"accumulation": 1, "seed": 0, "dice": False},
    }
    assert set(changed) <= set(given)
    given |= changed
    torch.manual_seed(0)
    device = torch.device("cpu")
    network = EOIR(start_channel=2, int_steps=given["int_steps"])
    subjects = [
        {"id": f"s{n}", "image": str(scans / f"s{n}.nii.gz"), "label": str(scans / f"l{n}.nii.gz")} for n in range(3)
    ]
    transform = Compose([LoadSubjectd(), CheckSubjectd(labels=given["labels"])])
    data = PairDataset(subjects, transform, progress=False)
    terms = {
        "lncc": Term(LNCCLoss(kernel_size=given["kernel"]), ["warped", "fixed"]),
        "smoothness": Term(GradientLoss(), ["velocity"], given["smoothness"]),
    }
    if given["dice"]:
        terms["again"] = Term(torch.nn.MSELoss(), ["warped", "fixed"])
    loss = RegistrationLoss(terms)
    parts: dict[str, Any] = {"device": device, "network": network, "prepare_batch": PrepareRegistrationBatch()}
    evaluator = SupervisedEvaluator(
        val_data_loader=DataLoader(data, sampler=PairSampler(data, "listed", [(0, 1)])),
        inferer=RegistrationInferer(),
        key_val_metric={"dice": RegistrationMetrics([1], output_transform=registered)},
        **parts,
    )
    adam = torch.optim.Adam(network.parameters(), 0.001, amsgrad=given["amsgrad"], weight_decay=given["decay"])
    schedule: Any = torch.optim.lr_scheduler.StepLR(adam, 1, given["gamma"])
    if given["polynomial"]:
        schedule = torch.optim.lr_scheduler.LambdaLR(adam, polynomial_decay(0.001, given["epochs"]))
    if whole:
        rest = (folder / "model.pt", network, adam, loss, evaluator, given["val_interval"], schedule, resume)
        handlers: list[Any] = [TrainingHandlers(folder, *rest)]
    else:
        handlers = [
            History(folder / "history.csv", loss, evaluator),
            ResumeHandler(
                *(folder / "checkpoint.pt", network, adam, schedule, evaluator, resume),
                val_interval=given["val_interval"],
            ),
        ]
    sampler = PairSampler(data, given["strategy"], num_samples=given["pairs"], seed=given["seed"])
    SupervisedTrainer(
        max_epochs=given["epochs"],
        train_data_loader=DataLoader(data, sampler=sampler),
        optimizer=adam,
        loss_function=loss,
        inferer=RegistrationInferer(details=loss.details, amp=given["amp"]),
        decollate=False,
        accumulation_steps=given["accumulation"],
        train_handlers=handlers,
        **parts,
    ).run()
    return folder / "history.csv"


@pytest.fixture(scope="module")
def begun(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("begun")
    train(folder, scans)
    return folder


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"smoothness": 1.0}, "loss::terms::smoothness::weight 5.0, not 1.0"),
    ({"kernel": 7}, "loss::terms::lncc::losses::0::kernel_size .*5.*, not .*7"),
    ({"dice": True}, "loss::terms::again none, not Term"),
    ({"int_steps": 5}, "network_def::int_steps 3, not 5"),
    ({"amp": True}, "--amp False, not True"),
    ({"pairs": 3}, "--pairs_per_epoch 2, not 3"),
    ({"amsgrad": False}, "optimizer::groups::0::amsgrad True, not False"),
    ({"decay": 0.01}, "optimizer::groups::0::weight_decay 0.0, not 0.01"),
    ({"gamma": 0.1}, "lr_scheduler::gamma 0.5, not 0.1"),
    ({"polynomial": True}, "lr_scheduler StepLR, not LambdaLR"),
    ({"labels": [1, 2]}, "training::preprocessing::transforms::1::labels .0, 1., not .0, 1, 2."),
    ({"strategy": "random_partner"}, "training::strategy all, not random_partner"),
    ({"accumulation": 2}, "accumulation_steps 1, not 2"),
    ({"seed": 1, "decay": 0.1}, "--seed 0, not 1, optimizer::groups::0::weight_decay 0.0, not 0.1"),
    ({"amp": True, "smoothness": 2.0}, "--amp False, not True, loss::terms::smoothness::weight 5.0, not 2.0"),
]


@pytest.mark.parametrize(("changed", "message"), REFUSED, ids=lambda value: str(value) if "{" in str(value) else "")
def test_what_changes_the_steps_is_refused(
    changed: dict[str, Any], message: str, begun: Path, scans: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(begun, tmp_path / "run")
    before = (folder / "checkpoint.pt").read_bytes()
    with pytest.raises(InputError, match=f"written with {message}: resume with what the run began with"):
        train(folder, scans, resume=True, epochs=2, **changed)
    assert (folder / "checkpoint.pt").read_bytes() == before


def test_other_scans_of_the_same_names_are_refused_and_moved_ones_are_not(
    begun: Path, scans: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(scans, tmp_path / "moved")
    folder = shutil.copytree(begun, tmp_path / "run")
    train(folder, moved, resume=True, epochs=2)
    values = np.random.default_rng(9).random((16, 17, 16), np.float32).round(1)
    nib.save(nib.Nifti1Image(values, np.eye(4)), moved / "s1.nii.gz")
    with pytest.raises(InputError, match=r"training::subjects 3 \(\w+\), not 3 \(\w+\): resume"):
        train(folder, moved, resume=True, epochs=3)


def test_what_may_change_is_said_in_log_and_history(
    begun: Path, scans: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(begun, tmp_path / "run")
    with caplog.at_level(logging.WARNING):
        train(folder, scans, resume=True, epochs=2, val_interval=2)
    said = "max_epochs 1 -> 2; val_interval 1 -> 2"
    assert f"Resuming with other settings: {said}." in caplog.text
    history = train(folder, scans, resume=True, epochs=4, val_interval=2)
    changes = [row["changed"] for row in csv.DictReader(history.open())]
    assert changes == ["", said, "max_epochs 2 -> 4", ""]


def test_a_schedule_that_ends_with_the_training_follows_its_length_and_says_so(scans: Path, tmp_path: Path) -> None:
    train(tmp_path, scans, polynomial=True)
    history = train(tmp_path, scans, resume=True, polynomial=True, epochs=2)
    changes = [row["changed"] for row in csv.DictReader(history.open())]
    assert changes == ["", "max_epochs 1 -> 2; lr_scheduler::lr_lambdas::0::epochs 1 -> 2"]


def test_a_checkpoint_that_does_not_say_its_settings_goes_on_with_a_line(
    begun: Path, scans: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(begun, tmp_path / "run")
    content = torch.load(folder / "checkpoint.pt", weights_only=True)
    few = {name: content["settings"][name] for name in ("learning_rate", "seed", "batch_size")}
    old = {name: value for name, value in content.items() if name not in ("chosen", "changes")}
    torch.save({**old, "settings": few}, folder / "checkpoint.pt")
    with caplog.at_level(logging.INFO):
        train(folder, scans, resume=True, epochs=2)
    assert (
        "does not say its pairs_per_epoch, network_def, optimizer, lr_scheduler, training: they are not" in caplog.text
    )
    assert "does not say its amp, loss, prepare_batch, accumulation_steps: they are not compared" in caplog.text


def test_a_refusal_leaves_all_files_as_they_were(scans: Path, tmp_path: Path) -> None:
    train(tmp_path, scans, whole=True)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert tmp_path / "history.csv" in before
    with pytest.raises(InputError, match="weight 5.0, not 1.0"):
        train(tmp_path, scans, resume=True, whole=True, epochs=2, smoothness=1.0)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_descriptions_are_plain_and_find_what_differs() -> None:
    assert described({"a": (1, 2.5), "b": {3, 1}, "c": range(2)}) == {"a": [1, 2.5], "b": [1, 3], "c": [0, 1]}
    assert described(torch.arange(3)) == described(np.arange(3)) != described(np.arange(1, 4))
    assert described(Path("/somewhere/a.csv")) == described(Path("/elsewhere/a.csv"))
    half, third = (lambda x: x / 2), (lambda x: x / 3)
    ((path, old, new),) = differences(described({"f": half}), described({"f": third}))
    assert path.startswith("f::constants") and (old, new) == (2, 3)
    assert list(differences({"a": [1, float("nan")]}, {"a": [1, float("nan")]})) == []
    assert list(differences({"a": [1]}, {"a": [1, 2], "b": None})) == [("a", [1], [1, 2])]
