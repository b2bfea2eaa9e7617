# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset

import common
from common.checks import InputError
from common.engine.guard import as_monai_reads, check_bundle, check_options, check_writable, guard, report_error


@pytest.fixture
def config(tmp_path: Path) -> str:
    content = {
        "lr": 0.1,
        "flag": True,
        "network_def": {"_target_": "common.networks.EOIR", "start_channel": 8},
        "handlers": [{"_target_": "ValidationHandler", "interval": 1}],
        "loader": {"_target_": "DataLoader", "batch_size": 1},
    }
    path = tmp_path / "train.json"
    path.write_text(json.dumps(content))
    return str(path)


@pytest.mark.parametrize(
    "options",
    [
        ["--lr", "1e-3"],
        ["--lr=1e-3"],
        ["--flag", "False"],
        ["--flag", "false"],
        ["--network_def#start_channel", "4"],
        ["--network_def::start_channel", "4"],
        ["--network_def#int_steps", "0"],
        ["--handlers#0#interval", "2"],
        ["--handlers#0#epoch_level", "False"],
        ["--loader#pin_memory", "True"],
        ["--logging_file", "x.conf"],
    ],
)
def test_options_of_the_config_pass(config: str, options: list[str]) -> None:
    check_options(["run", "--config_file", config, *options])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lrr", "3"], "no option --lrr. Did you mean 'lr'"),
        (["--lr", "false"], "write False"),
        (["--network_def#normal=true"], "'normal' does not exist"),
        (["--network_def#start_channel=true"], "write True"),
        (["--network_def#start_chanel", "4"], "Did you mean 'start_channel'"),
        (["--handlers#0#intervals", "2"], "Did you mean 'interval'"),
        (["--loader#pin_memory#deep", "2"], "'deep' does not exist"),
        (["--handlers#3#interval", "2"], "'3' does not exist"),
        (["--lr#deep", "2"], "'deep' does not exist"),
    ],
)
def test_mistyped_options_are_refused(config: str, options: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_options(["run", "--config_file", config, *options])


def test_the_command_line_is_written_as_monai_reads_it(config: str) -> None:
    command = ["run", "--config_file", config, "--flag", "false", "--flag=true", "--lr", "None", "--lr=None", "--flag"]
    expected = ["--flag", "False", "--flag=True", "--lr", "$None", "--lr=$None", "--flag"]
    assert as_monai_reads(command) == ["run", "--config_file", config, *expected]
    untouched = ["run", "--config_file", config, "--lr", "true", "--lr=-1e-3", "--network_def#int_steps", "0"]
    assert as_monai_reads(untouched) == untouched
    assert as_monai_reads(["verify_metadata", "--flag", "true"]) == ["verify_metadata", "--flag", "true"]


def test_options_of_several_configs_are_known(config: str, tmp_path: Path) -> None:
    other = tmp_path / "more.json"
    other.write_text('{"more": 1}')
    check_options(["run", "--config_file", f"['{config}','{other}']", "--more", "2", "--lr", "1"])


def test_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--bundle_root"):
        check_bundle(tmp_path)


def test_foreign_common_is_refused(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    metadata = tmp_path / "configs" / "metadata.json"
    metadata.write_text('{"common_version": "99.0"}')
    with pytest.raises(InputError, match=f"needs version 99.0 .* version {common.__version__} was loaded"):
        check_bundle(tmp_path)
    metadata.write_text(json.dumps({"common_version": common.__version__}))
    check_bundle(tmp_path)


def test_folder_below_a_file_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Cannot write to the folder"):
        check_writable(tmp_path / "file" / "below")


def test_guard_leaves_other_callers_alone(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text(json.dumps({"common_version": common.__version__}))
    hook = sys.excepthook
    guard(tmp_path, tmp_path / "out")
    assert sys.excepthook is hook and (tmp_path / "out").is_dir()


def test_several_devices_need_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text(json.dumps({"common_version": common.__version__}))
    with pytest.raises(InputError, match="torchrun"):
        guard(tmp_path, tmp_path / "out", distributed=True)


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
