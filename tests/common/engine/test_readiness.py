# SPDX-License-Identifier: Apache-2.0
"""What would end a training late is found early."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from common.checks import InputError
from common.data import LoadSubjectd, PairDataset, PairSampler
from common.engine.readiness import (
    check_batches,
    check_file,
    check_space,
    need_package,
    training_files,
)


class Usage(NamedTuple):
    free: int


def test_a_place_for_a_file_is_tried(tmp_path: Path) -> None:
    check_file(tmp_path / "new" / "deeper" / "model.pt", "--ckpt_path")
    assert list((tmp_path / "new" / "deeper").iterdir()) == []
    (tmp_path / "file").touch()
    check_file(tmp_path / "file", "--ckpt_path")
    with pytest.raises(InputError, match=r"new is a folder, but a file is written there: name one with --ckpt_path"):
        check_file(tmp_path / "new", "--ckpt_path")
    with pytest.raises(InputError, match=r"Cannot write to the folder .*file: .*choose another --ckpt_path"):
        check_file(tmp_path / "file" / "model.pt", "--ckpt_path")
    with pytest.raises(InputError, match=r"Cannot write to the folder .*below.*choose another --ckpt_path"):
        check_file(tmp_path / "file" / "below" / "model.pt", "--ckpt_path")


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    # Root may write anywhere but where the kernel says no.
    place = Path("/proc/self") if os.geteuid() == 0 else closed
    with pytest.raises(InputError, match=f"Cannot write to the folder {place}"):
        check_file(place / "model.pt", "--ckpt_path")


@pytest.mark.parametrize(
    ("optimizer", "copies"),
    [(lambda p: torch.optim.Adam(p, amsgrad=True), 3), (lambda p: torch.optim.AdamW(p), 2)],
)
def test_the_size_of_a_checkpoint_is_foreseen(optimizer: Any, copies: int, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv3d(2, 64, 3), nn.BatchNorm3d(64), nn.Conv3d(64, 64, 3))
    adam = optimizer(network.parameters())
    network(torch.rand(1, 2, 5, 5, 5)).sum().backward()
    adam.step()
    weights, checkpoint = tmp_path / "model.pt", tmp_path / "checkpoint.pt"
    foreseen = training_files(weights, checkpoint, network, adam)
    torch.save(network.state_dict(), weights)
    torch.save({"network": network.state_dict(), "optimizer": adam.state_dict()}, checkpoint)
    for path, size in foreseen.items():
        assert path.stat().st_size == pytest.approx(size, rel=0.02)


def test_a_disk_that_is_too_full_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {tmp_path / "model.pt": 10_000_000, tmp_path / "checkpoint.pt": 40_000_000}
    (tmp_path / "out").mkdir()
    # Both, and the larger one a second time while it is replaced.
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(90_000_000))
    check_space(files)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(89_000_000))
    with pytest.raises(InputError, match=r"need about 90.0 MB on the disk of .*, where 89.0 MB are free: make room"):
        check_space(files)
    (tmp_path / "model.pt").write_bytes(bytes(10_000_000))
    check_space(files)
    # Two folders of one disk count together.
    with pytest.raises(InputError, match="need about 90.0 MB"):
        check_space({tmp_path / "out" / "model.pt": 10_000_000, tmp_path / "checkpoint.pt": 40_000_000})


def pairs(folder: Path, *shapes: tuple[int, ...], labels: int = 0) -> PairDataset:
    subjects = []
    for number, shape in enumerate(shapes):
        path = str(folder / f"s{number}.nii.gz")
        nib.save(nib.Nifti1Image(np.random.default_rng(number).random(shape, np.float32), np.eye(4)), path)
        subjects.append({"id": f"s{number}", "image": path})
    for number in range(labels):
        path = str(folder / f"l{number}.nii.gz")
        nib.save(nib.Nifti1Image(np.ones(shapes[number], np.uint8), np.eye(4)), path)
        subjects[number]["label"] = path
    return PairDataset(subjects, LoadSubjectd(), progress=False)


def test_pairs_of_several_shapes_make_no_batch(tmp_path: Path) -> None:
    data = pairs(tmp_path, (5, 6, 7), (5, 6, 7), (5, 6, 8), (5, 6, 8))
    sampler = PairSampler(data, "either_way", [(0, 1), (2, 3)])
    check_batches(DataLoader(data, 1, sampler=sampler))
    with pytest.raises(InputError, match=r"s0.nii.gz has shape \(5, 6, 7\) and .*s2.nii.gz has \(5, 6, 8\).*_size 1"):
        check_batches(DataLoader(data, 2, sampler=sampler))


def test_a_missing_package_is_named() -> None:
    need_package("json", "Training")
    with pytest.raises(InputError, match="Training needs no_such_package, which .* pip install no_such_package"):
        need_package("no_such_package", "Training")
