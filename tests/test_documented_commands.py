# SPDX-License-Identifier: Apache-2.0
"""Every command of README, docs and the bundles' pages exists as it is written there.

A shell runs the code blocks with stand-ins for the programs, which note down what they are called with: quoting,
variables and line breaks are bash's own. What was noted is held against configurations and parsers, without training.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
from monai.bundle import ConfigParser

from common.checks import InputError
from common.data import READERS, SECTIONS
from common.engine.command_line import RUN_OPTIONS, check_options, read_command_line
from common.engine.option_names import SEPARATORS, check_names

ROOT = Path(__file__).parents[1]
BUNDLES = sorted(path.parent.parent for path in (ROOT / "bundles").glob("*/configs/metadata.json"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [bundle / "docs" / "README.md" for bundle in BUNDLES]
PROGRAMS = ("python", "pytest", "torchrun", "bash", "pip", "antsApplyTransforms", "pre-commit", "hf")
CHECKERS = ("ruff", "lint-imports", "mypy", "codespell")
STAND_IN = """#!/bin/sh
call=$(mktemp "$CALLS/$(ls "$CALLS" | wc -l | xargs printf %04d).XXXXXX")
printf '%s\\0' "$(basename "$0")" "$PWD" "$@" > "$call"
if [ "$1" = - ]; then cat > "$call.stdin"; fi
"""


@dataclass(frozen=True)
class Call:
    """What a program was called with, where, and what it was given to read."""

    program: str
    folder: Path
    arguments: list[str]
    stdin: str

    def __str__(self) -> str:
        """As in a sentence."""
        return f"{self.program} {' '.join(self.arguments)}"


def fragments(page: Path) -> tuple[list[str], list[str]]:
    """Code blocks in bash of a page, and commands in the middle of its text."""
    text = page.read_text(encoding="utf-8")
    blocks, rest = re.findall(r"```bash\n(.*?)```", text, re.DOTALL), re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    code = [
        " ".join(words.split()) for words in re.findall(r"`([^`]+)`", rest) + re.findall(r"^    (\S.*)$", rest, re.M)
    ]
    return blocks, [words for words in code if words.split(" ")[0] in (*PROGRAMS, "source") and " " in words]


@pytest.fixture
def shell(tmp_path: Path) -> Callable[[str, str], list[Call]]:
    """Runs a script in a copy of the repository's folder, or in a folder of it, and returns the calls that it made."""
    for folder in ("bin", "calls", "repository/scripts"):
        (tmp_path / folder).mkdir(parents=True)
    for program in (*PROGRAMS, *CHECKERS):
        (tmp_path / "bin" / program).write_text(STAND_IN)
        (tmp_path / "bin" / program).chmod(0o755)
    repository = tmp_path / "repository"
    for path in (*ROOT.glob("*.txt"), ROOT / "bundles", ROOT / "tests", *(ROOT / "scripts").iterdir()):
        (repository / path.relative_to(ROOT)).symlink_to(path)
    # Would install packages.
    (repository / "scripts" / "environment.sh").unlink()
    (repository / "scripts" / "environment.sh").touch()

    def run(script: str, folder: str) -> list[Call]:
        environment = {
            **os.environ,
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "CALLS": str(tmp_path / "calls"),
        }
        result = subprocess.run(
            [shutil.which("bash") or "bash", "-eu"],
            input=script, text=True, capture_output=True, env=environment, cwd=repository / folder, timeout=60,
        )  # fmt: skip
        assert result.returncode == 0 and "not found" not in result.stderr, result.stderr
        calls = []
        for file in sorted(path for path in (tmp_path / "calls").iterdir() if path.suffix != ".stdin"):
            program, place, *arguments = file.read_bytes().decode().split("\0")[:-1]
            stdin = file.with_name(file.name + ".stdin")
            # Folders of bundles are links to the real ones.
            where = Path(place).resolve()
            where = ROOT if where == repository.resolve() else where
            calls.append(Call(program, where, arguments, stdin.read_text() if stdin.exists() else ""))
        return calls

    return run


def options_of(arguments: list[str]) -> dict[str, str]:
    """Value behind each option."""
    following = zip(arguments, [*arguments[1:], ""], strict=False)
    return {word[2:]: value for word, value in following if word.startswith("--")}


def folders_with(files: list[str], folder: Path) -> list[Path]:
    """Where a command finds its files: in its own folder, at the root, or else in every bundle that has them."""
    for place in (folder, ROOT):
        if all((place / file).is_file() for file in files):
            return [place]
    return [bundle for bundle in BUNDLES if all((bundle / file).is_file() for file in files)]


def check_bundle_command(call: Call, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """``monai.bundle COMMAND ...``: the workflow, the configurations, and every option in them."""
    command, *rest = arguments
    options = options_of(rest)
    if command != "run":
        known = inspect.signature(getattr(monai.bundle, command)).parameters
        assert not set(options) - set(known), f"{command} has no {set(options) - set(known)}"
    if "config_file" not in options:
        return
    files = re.findall(r"[\w./-]+\.json", options["config_file"])
    folders = folders_with(files, call.folder)
    assert files and folders, f"no bundle has {files}"
    for folder in folders:
        monkeypatch.chdir(folder)
        config = ConfigParser.load_config_files(files)
        if command == "run":
            given = read_command_line(arguments)
            assert given is not None
            check_options(given)
            top = {name: value for name, value in given.changes().items() if not SEPARATORS.search(name)}
            check_names({**config, **top}, set(given.first))
        if command != "run" or not rest[0].startswith("-"):
            assert rest[0] in config, f"{files} in {folder} has no {rest[0]}"
        assert options.get("reader", "datalist") in READERS and options.get("section", "test") in SECTIONS
        assert (ROOT / options.get("bundle_root", ".")).is_dir()


class Parsed(Exception):
    """The arguments were taken."""


def check_arguments(main: Callable[[], Any], arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A program's own parser takes the arguments; then it is stopped."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser: argparse.ArgumentParser, *given: Any) -> None:
        parse(parser, *given)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    try:
        main()
    except Parsed:
        pass
    except SystemExit as end:
        assert end.code == 0, f"{main.__module__} does not take {arguments}"
    else:
        raise AssertionError(f"{main.__module__} has no parser")
    finally:
        monkeypatch.undo()


def check_call(call: Call, config: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call, by its program."""
    words = call.arguments
    if "monai.bundle" in words:
        check_bundle_command(call, words[words.index("monai.bundle") + 1 :], monkeypatch)
    elif call.program == "python" and words[0] in ("-", "-c"):
        ast.parse(call.stdin if words[0] == "-" else words[1])
    elif call.program == "python" and words[0] == "-m":
        check_arguments(importlib.import_module(words[1]).main, words[2:], monkeypatch)
    elif call.program == "python":
        assert (ROOT / words[0]).is_file()
        # A script that is named without arguments is spoken of, not run.
        if words[1:]:
            module = importlib.import_module(words[0].removesuffix(".py").replace("/", "."))
            check_arguments(module.main, words[1:], monkeypatch)
    elif call.program == "bash":
        assert (ROOT / words[0]).is_file()
    elif call.program == "pip":
        assert all((ROOT / word).is_file() for word in words if word.endswith(".txt"))
    elif call.program == "pytest":
        assert all((ROOT / word).exists() for word in words if word.startswith("tests"))
        for option in options_of(words):
            config.getoption(option.replace("-", "_"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_of_a_page_exist(
    page: Path, shell: Callable[[str, str], list[Call]], pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks, inline = fragments(page)
    folder = page.parents[1].relative_to(ROOT).as_posix() if ROOT / "bundles" in page.parents else "."
    # Variables last from block to block, folders do not.
    calls = shell("here=$PWD\n" + "".join(f'cd "$here"\n{block}\n' for block in [*blocks, *inline]), folder)
    for call in calls:
        check_call(call, pytestconfig, monkeypatch)
    assert len(calls) >= len(inline) + bool(blocks)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_options_that_a_text_names_exist(page: Path) -> None:
    known = {"nproc_per_node", "help", *RUN_OPTIONS}
    for path in (ROOT / "bundles").glob("*/configs/*.json"):
        known |= set(ConfigParser.load_config_file(str(path)))
    # Some name their options in a table.
    for script in (ROOT / "scripts").glob("*.py"):
        known |= set(re.findall(r'"(?:--)?(\w+)"', script.read_text()))
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    named = {name for code in re.findall(r"`([^`]+)`", text) for name in re.findall(r"(?:^|\s)--(\w+)", code)}
    assert sorted(named - known) == []


def test_what_the_scripts_of_the_readme_run_exists(
    shell: Callable[[str, str], list[Call]], pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.which("bash")
    demo = f"{real} scripts/demo.sh"
    calls = shell(f"{demo}; {demo} nephi_shapes2d; {demo} eoir_shapes3d train; {real} scripts/test.sh -k lncc", ".")
    for call in calls:
        check_call(call, pytestconfig, monkeypatch)
    runs = [call for call in calls if "monai.bundle" in call.arguments]
    assert [run.arguments[3] for run in runs] == 2 * ["infer", "evaluate"] + ["train", "infer", "evaluate"]
    # A network that is trained here does not replace the one that comes with the bundle.
    assert ["--ckpt_path" in run.arguments for run in runs] == 4 * [False] + 3 * [True]
    assert [call.program for call in calls if call.program in CHECKERS] == ["ruff", *CHECKERS]
    (tests,) = (call.arguments for call in calls if call.program == "pytest")
    assert tests[-2:] == ["-k", "lncc"]


@pytest.mark.parametrize(
    "command",
    [
        "python scripts/absent.py",
        "python scripts/apply.py --imgae a.nii.gz",
        "python scripts/evaluate.py --fields only",
        "python scripts/wiring.py --wirte",
        "python -m monai.bundle run train --config_file configs/trane.json",
        "python -m monai.bundle run trains --config_file configs/train.json",
        "python -m monai.bundle run train --config_file configs/train.json --max_epoch 3",
        "python -m monai.bundle run train --config_file configs/train.json --network_def#channel 3",
        "python -m monai.bundle run train --config_file configs/train.json --reader nifti",
        "python -m monai.bundle onnx_export network_def --file a.onnx --config_file configs/inference.json",
        "python -m common.data.shapes3d --subjects 3",
        "python -c 'import ('",
        "bash scripts/absent.sh",
        "pip install -r absent.txt",
        "pytest tests/absent",
        "pytest tests/golden --golden-folder DIR",
    ],
)
def test_a_command_that_does_not_exist_is_noticed(
    command: str,
    shell: Callable[[str, str], list[Call]],
    pytestconfig: pytest.Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (call,) = shell(command, "bundles/eoir_oasis")
    with pytest.raises((AssertionError, InputError, ValueError, SyntaxError, pytest.fail.Exception)):
        check_call(call, pytestconfig, monkeypatch)
