# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from monai.utils import optional_import

from common.cli import add_switch, finite, positive, run_tool, sentence_of, whole

ROOT = Path(__file__).parents[2]
SWITCHES = "overwrite|resume|amp|affine|supervised|trust|allow_missing"


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ([], False),
        (["--redo"], True),
        (["--redo", "true"], True),
        (["--redo", "True"], True),
        (["--redo=false"], False),
    ],
)
def test_a_switch_is_turned_on_alone_or_by_a_word(words: list[str], value: bool) -> None:
    options = argparse.ArgumentParser()
    add_switch(options, "redo", "make it anew")
    assert options.parse_args(words).redo is value
    with pytest.raises(SystemExit):
        options.parse_args(["--redo", "yes"])
    add_switch(options, "check", "look at it first", default=True)
    assert options.parse_args(words).check and not options.parse_args(["--check", "false"]).check


def test_a_package_that_monai_asks_for_is_named_in_a_line() -> None:
    missing, _ = optional_import("no_such_package", descriptor="Please install {}.")
    with pytest.raises(RuntimeError) as error:
        try:
            missing.something()
        except ImportError as cause:
            raise RuntimeError("Failed to instantiate") from cause
    sentence = str(sentence_of(error.value))
    assert sentence.startswith("Please install") and "no_such_package" in sentence and "\n" not in sentence


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        (whole(1), {"1": 1, "+7": 7}, ["0", "-1", "1.5", "two", "1e3", "1_000", "", "nan"]),
        (whole(0), {"0": 0}, ["-1"]),
        (finite, {"-1000": -1000.0, "1e3": 1000.0, "0": 0.0}, ["nan", "inf", "-inf", "x", "1e999"]),
        (positive, {"0.5": 0.5}, ["0", "-2", "nan", "inf", "[1]"]),
    ],
)
def test_numbers_of_tools(kind: Callable[[str], float], right: dict[str, float], wrong: list[str]) -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--number", type=kind)
    for word, value in right.items():
        assert options.parse_args([f"--number={word}"]).number == value
    for word in wrong:
        with pytest.raises(argparse.ArgumentTypeError, match=re.escape(repr(word))):
            kind(word)


def test_the_home_folder_is_known_where_the_shell_leaves_its_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    words = ["--output=~/out", "syn=~/a b", "~/c", "inverse:~/x", "a~/b", "--flag", "-1"]
    monkeypatch.setattr(sys, "argv", ["tool.py", *words])
    run_tool(lambda: None)
    assert sys.argv[1:] == ["--output=/home/me/out", "syn=/home/me/a b", "/home/me/c", "inverse:/home/me/x", *words[4:]]


def test_messages_and_documents_have_one_spelling_of_switches() -> None:
    files = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("bundles/*/docs/README.md")]
    files += [path for suffix in ("py", "md", "sh") for path in ROOT.glob(f"scripts/**/*.{suffix}")]
    files += ROOT.glob("common/**/*.py")
    for file in files:
        # True is a word for MONAI alone, and without a word it is turned on in tools alone.
        found = re.findall(rf"--(?:{SWITCHES})(?: True| False|[.,;]).*", file.read_text(encoding="utf-8"))
        assert not found, (
            f"{file.relative_to(ROOT)} writes {found[0]!r}: --overwrite true runs in bundles and tools alike"
        )
