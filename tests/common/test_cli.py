# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
from monai.utils import optional_import

from common.cli import add_switch, sentence_of

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


def test_a_package_that_monai_asks_for_is_named_in_a_line() -> None:
    missing, _ = optional_import("no_such_package", descriptor="Please install {}.")
    with pytest.raises(RuntimeError) as error:
        try:
            missing.something()
        except ImportError as cause:
            raise RuntimeError("Failed to instantiate") from cause
    sentence = str(sentence_of(error.value))
    assert sentence.startswith("Please install") and "no_such_package" in sentence and "\n" not in sentence


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
