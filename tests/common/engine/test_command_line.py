# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.checks import InputError
from common.engine.command_line import as_monai_reads, check_options


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
