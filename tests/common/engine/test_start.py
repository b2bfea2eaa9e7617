# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import common
from common.checks import InputError
from common.engine import restart_and_check, start
from common.engine.start import report_error


def test_other_callers_keep_their_process(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text(json.dumps({"common_version": common.__version__}))
    hook = sys.excepthook
    restart_and_check(tmp_path, tmp_path / "out")
    assert sys.excepthook is hook and (tmp_path / "out").is_dir()


def test_several_devices_need_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text(json.dumps({"common_version": common.__version__}))
    with pytest.raises(InputError, match="torchrun"):
        restart_and_check(tmp_path, tmp_path / "out", distributed=True)


def test_wrapped_user_errors_become_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        try:
            raise InputError("The file a.nii.gz is broken.")
        except InputError as cause:
            raise RuntimeError("Failed to instantiate") from cause
    except RuntimeError as error:
        report_error(type(error), error, error.__traceback__)
    assert capsys.readouterr().err == "ERROR: The file a.nii.gz is broken.\n"


class Unreadable(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        try:
            raise InputError("No scan: a.nii.gz is broken.")
        except InputError as error:
            raise InputError(str(error)) from error


def test_errors_of_a_data_loaders_worker_become_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError) as error:
        next(iter(DataLoader(Unreadable(), num_workers=1)))
    report_error(error.type, error.value, error.tb)
    assert capsys.readouterr().err == "ERROR: No scan: a.nii.gz is broken.\n"


def test_other_errors_keep_their_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise RuntimeError("a defect of ours")
    except RuntimeError as error:
        report_error(type(error), error, error.__traceback__)
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("threads", "set_now", "restarts"), [(2, True, True), (2, False, False), (1, True, False), (1, False, False)]
)
def test_the_process_starts_anew_where_it_helps(
    threads: int, set_now: bool, restarts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["run", "--config_file", "train.json", "--flag", "false"]
    calls: list[list[str]] = []
    monkeypatch.setattr(sys, "orig_argv", ["python", "-W", "ignore", "-m", "monai.bundle", *command])
    monkeypatch.setattr(os, "execv", lambda program, words: calls.append(words))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(start, "share_cores", lambda: set_now)
    start._restart_if_needed(command)
    assert calls == ([sys.orig_argv] if restarts else [])


def test_on_windows_the_caller_waits_for_the_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "name", "nt")
    with pytest.raises(SystemExit) as end:
        start._become(["python", "-c", "raise SystemExit(7)"])
    assert end.value.code == 7
