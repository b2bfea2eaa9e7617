# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

from common.checks import InputError
from common.engine.command_line import Given, as_meant, as_text, check_options, read_command_line, values_of

CONTENT: dict[str, Any] = {
    "lr": 0.1,
    "flag": True,
    "dataset_dir": "$'data'",
    "output_dir": "out",
    "moving": None,
    "title": "untitled",
    "network_def": {"_target_": "common.networks.EOIR", "start_channel": 8},
    "handlers": [{"_target_": "ValidationHandler", "interval": 1}],
    "loader": {"_target_": "DataLoader", "batch_size": 1},
}


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "train.json"
    path.write_text(json.dumps(CONTENT))
    return str(path)


def read(*arguments: str) -> Given:
    given = read_command_line(["run", *arguments])
    assert given is not None
    return given


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
        ["--output_dir", "true"],
    ],
)
def test_options_of_the_config_pass(config: str, options: list[str]) -> None:
    check_options(read("--config_file", config, *options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
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
        check_options(read("--config_file", config, *options))


def test_options_in_an_args_file_are_those_of_the_command_line(config: str, tmp_path: Path) -> None:
    args = tmp_path / "args.json"
    args.write_text(json.dumps({"config_file": config, "lr": 1, "title": "run #3"}))
    given = read("--args_file", str(args))
    check_options(given)
    assert as_meant(given) == {"title": "$'run \\x233'"} and given.changes() == {"lr": 1, "title": "run #3"}
    args.write_text(json.dumps({"config_file": config, "network_def#start_chanel": 1}))
    with pytest.raises(InputError, match="Did you mean 'start_channel'"):
        check_options(read("--args_file", str(args)))


def test_words_mean_what_was_written(config: str) -> None:
    words = ["--flag", "false", "--lr", "None", "--network_def#start_channel", "4", "--title", "None"]
    assert as_meant(read("--config_file", config, *words)) == {"flag": False, "lr": None, "title": None}
    assert as_meant(read("--config_file", config, "--flag=true", "--lr=-1e-3", "--title", "a::b")) == {"flag": True}
    assert read_command_line(["verify_metadata", "--flag", "true"]) is None


@pytest.mark.parametrize(
    ("word", "path"),
    [
        ("run#7", "run#7"),
        ("/data #1/it's", "/data #1/it's"),
        ("2024", "2024"),
        ("1e5", "1e5"),
        ("1_000", "1_000"),
        ("True", "True"),
        ("a,b", "a,b"),
        ("[x]", "[x]"),
        ("{x}", "{x}"),
        ("'2024'", "2024"),
        ('"run#7"', "run#7"),
        ("'a' #b", "'a' #b"),
        ("a::b", "a::b"),
        ("@home", "@home"),
        ("%x", "%x"),
        ("@home/x#2", "@home/x#2"),
        ("50%#@lr", "50%#@lr"),
        ("Bilder/Zürich 東京", "Bilder/Zürich 東京"),
        ("C:\\new\\data#1", "C:\\new\\data#1"),
        ("~/x", os.path.expanduser("~/x")),
        ("an import #1", "an import #1"),
        ("out/", "out/"),
    ],
)
def test_paths_arrive_to_the_letter(config: str, word: str, path: str) -> None:
    given = read("--config_file", config, f"--output_dir={word}")
    parser = ConfigParser(json.loads(json.dumps(CONTENT)))
    parser.update(as_meant(given))
    assert parser.get_parsed_content("output_dir") == path


@pytest.mark.parametrize(("word", "value"), [("$'a' + 'b'", "ab"), ("@title", "untitled"), ("%title", "untitled")])
def test_the_syntax_of_monai_stays(config: str, word: str, value: str) -> None:
    parser = ConfigParser(json.loads(json.dumps(CONTENT)))
    parser.update(as_meant(read("--config_file", config, "--output_dir", word)))
    assert parser.get_parsed_content("output_dir") == value


def test_hash_in_a_later_config_and_deep_below(config: str, tmp_path: Path) -> None:
    later = tmp_path / "later.json"
    later.write_text(
        json.dumps({"dataset_dir": "a#1", "+handlers": [{"_target_": "print", "end": "#"}], "lr": "@lr#x"})
    )
    given = read("--config_file", f"['{config}', '{later}']")
    assert as_meant(given) == {"dataset_dir": as_text("a#1"), "handlers::1::end": as_text("#")}


def test_an_option_replaces_a_text_of_the_files_however_it_is_spelt(config: str, tmp_path: Path) -> None:
    later = tmp_path / "later.json"
    later.write_text(json.dumps({"title": "a#1", "loader": {"_target_": "print", "end": "#", "sep": "#"}}))
    files = ["--config_file", f"{config},{later}"]
    assert set(as_meant(read(*files))) == {"title", "loader::end", "loader::sep"}
    assert set(as_meant(read(*files, "--loader#end", "x", "--title", "y"))) == {"loader::sep"}
    assert set(as_meant(read(*files, "--loader", "None"))) == {"title", "loader"}


def test_yaml_is_read_as_json_is(config: str, tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    (tmp_path / "mine.yaml").write_text("lr: 0.5\noutput_dir: 'run #4'\n")
    given = read("--config_file", f"['{config}','{tmp_path}/mine.yaml']", "--args_file", f"{tmp_path}/mine.yaml")
    assert given.config["lr"] == 0.5 and as_meant(given) == {"output_dir": as_text("run #4")}


def test_a_flag_takes_no_other_flag_for_its_value(config: str) -> None:
    assert read("--config_file", config, "--flag", "--moving", "a.nii").words["flag"] is None


@pytest.mark.parametrize("form", ["['{0}','{1}']", "('{0}','{1}')", '["{0}", "{1}"]', "{0},{1}"])
def test_several_configs_in_all_forms_of_monai(config: str, tmp_path: Path, form: str) -> None:
    (tmp_path / "my files").mkdir()
    other = tmp_path / "my files" / "more.json"
    other.write_text('{"more": 1}')
    given = read("--config_file", form.format(config, other), "--more", "2", "--lr", "1")
    check_options(given)
    assert given.first == CONTENT and given.config == {**CONTENT, "more": 1}
    assert given.changes() == {"more": "2", "lr": "1"}


def test_options_that_are_passed_on_are_read_as_monai_reads_them() -> None:
    words = ["--a#b", "[1,2]", "--c", "true", "--d", "text", "--e", "1e-3"]
    assert values_of(words) == {"a#b": [1, 2], "c": True, "d": "text", "e": 1e-3}
    for wrong in (["a", "1"], ["--a"]):
        with pytest.raises(InputError, match="options of the bundle are --name value"):
            values_of(wrong)
