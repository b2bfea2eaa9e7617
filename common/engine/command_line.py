# SPDX-License-Identifier: Apache-2.0
"""The options of ``python -m monai.bundle``: which there are, and the values that their words mean.

MONAI accepts a mistyped option in silence, takes ``--flag false`` for true, leaves out an option whose value is None,
turns every "#" of a value into "::", and a folder called 2024 into a number.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser
from monai.utils import ensure_tuple

from common.checks import InputError
from common.engine.option_names import RUN_OPTIONS, SEPARATORS, check_nested
from common.engine.option_values import PATHS


class Given(NamedTuple):
    """What a command line says.

    Attributes:
        first: the first configuration file.
        config: all of them, merged.
        recorded: values by the names of options in ``--args_file``.
        words: text by the name of each option of the command line; None for an option without a value.
    """

    first: Mapping[str, Any]
    config: Mapping[str, Any]
    recorded: Mapping[str, Any]
    words: Mapping[str, str | None]

    def changes(self) -> dict[str, Any]:
        """What differs from the first file, by name, as the user gave it."""
        later = {name: value for name, value in self.config.items() if self.first.get(name) != value}
        options = {**later, **self.recorded, **self.words}
        return {name: value for name, value in options.items() if name not in RUN_OPTIONS}


def read_command_line(arguments: Sequence[str]) -> Given | None:
    """The options of a command, with the files that they name.

    Args:
        arguments: of ``python -m monai.bundle``, e.g. ``["run", "--config_file", "configs/train.json", "--lr", "1"]``.

    Returns:
        None for a command without a configuration file.
    """
    words = dict(_options(arguments))
    args_file = words.get("args_file")
    recorded = dict(ConfigParser.load_config_file(args_file)) if args_file else {}
    files = words["config_file"] if "config_file" in words else recorded.get("config_file")
    if not files:
        return None
    # As fire and MONAI read them: a path, several with commas, a list or a tuple.
    paths = DefaultParseValue(files) if "config_file" in words else files
    if isinstance(paths, str) and not Path(paths).is_file() and "," in paths:
        paths = paths.split(",")
    first = ConfigParser.load_config_files(ensure_tuple(paths)[0])
    return Given(first, ConfigParser.load_config_files(paths), recorded, words)


def check_options(given: Given) -> None:
    """Refuse nested options that lead nowhere, and "true" or "false" for what is no switch.

    Raises:
        InputError: naming the option, with the closest one that exists.
    """
    for name, value in {**given.recorded, **given.words}.items():
        top, *nested = SEPARATORS.split(name)
        if top in given.config:
            check_nested(given.config[top], nested, name)
        takes_word = isinstance(given.config.get(name), bool) or name in PATHS
        if name in given.words and _is_lower_switch(value) and not takes_word:
            raise InputError(
                f"--{name} {value} is a text to MONAI, and every text counts as true: write {value.title()}."
            )


def as_meant(given: Given) -> dict[str, Any]:
    """Values, by name, where MONAI would read something else than was written.

    True and False for true and false of a switch, None for None, paths to the letter (a quoted one without its quotes,
    "~" as the home folder), and texts with "#" anywhere in the files.
    """
    meant: dict[str, Any] = dict(_texts_with_hash(given.config))
    for name, value in given.recorded.items():
        _forget(meant, name)
        meant |= _texts_with_hash(value, SEPARATORS.sub("::", name))
    for name, word in given.words.items():
        _forget(meant, name)
        if word is None or name in RUN_OPTIONS:
            continue
        if word == "None":
            meant[name] = None
        elif isinstance(given.config.get(name), bool) and _is_lower_switch(word):
            meant[name] = word.lower() == "true"
        elif name in PATHS:
            meant[name] = word if _is_syntax(word, given.config) else as_text(os.path.expanduser(_unquoted(word)))
        elif "#" in word and not word.startswith(("$", "@", "%")) and isinstance(DefaultParseValue(word), str):
            meant[name] = as_text(_unquoted(word))
    return meant


def values_of(words: Sequence[str]) -> dict[str, Any]:
    """Options that another tool passes on, ``--name value`` one after the other: values by name, read as MONAI does.

    Args:
        words: names and values in turn; true and false are switches.

    Raises:
        InputError: for a word that is no option, or has no value.
    """
    found: dict[str, Any] = {}
    for name, value in zip(words[::2], [*words[1::2], None], strict=False):
        if not name.startswith("--") or value is None:
            raise InputError(f"{name!r} is not understood; options of the bundle are --name value.")
        found[name.removeprefix("--")] = {"true": True, "false": False}.get(value.lower(), DefaultParseValue(value))
    return found


def as_text(text: str) -> str:
    """A config value that MONAI reads as this very text: an expression where "#", "$", "@" or "%" mean something."""
    if "#" not in text and not text.startswith(("$", "@", "%")):
        return text
    return "$" + re.sub(r"[#@%]", lambda found: f"\\x{ord(found[0]):02x}", repr(text))


def _is_syntax(word: str, config: Mapping[str, Any]) -> bool:
    """Whether a value is MONAI's: an expression, or a reference or macro of something that exists."""
    if word.startswith("%") and ConfigParser.split_path_id(word[1:])[0]:
        return True
    return word.startswith("$") or (word[:1] in ("@", "%") and SEPARATORS.split(word[1:])[0] in config)


def _unquoted(word: str) -> str:
    """A text without the quotes that keep fire from reading it as something else."""
    try:
        value = ast.literal_eval(word)
    except (SyntaxError, ValueError):
        return word
    # What follows "#" would be lost as a comment.
    return value if isinstance(value, str) and "#" not in word.rpartition(word[0])[2] else word


def _texts_with_hash(config: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Id and exact form of every text with "#" that is neither expression nor reference nor macro."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            if not key.startswith("_"):
                yield from _texts_with_hash(value, f"{path}::{key}" if path else key)
    elif isinstance(config, list):
        for position, value in enumerate(config):
            yield from _texts_with_hash(value, f"{path}::{position}")
    elif isinstance(config, str) and "#" in config and not config.startswith(("$", "@", "%")):
        yield path, as_text(config)


def _forget(meant: dict[str, Any], name: str) -> None:
    """Leave out what an option has replaced, or is a part of."""
    option = SEPARATORS.sub("::", name)
    for path in list(meant):
        if path == option or path.startswith(f"{option}::") or option.startswith(f"{path}::"):
            del meant[path]


def _is_lower_switch(value: Any) -> bool:
    return isinstance(value, str) and value.lower() in ("true", "false") and value not in ("True", "False")


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Name and text of each ``--name value``, ``--name=value`` or ``--name``, as fire reads them."""
    for position, argument in enumerate(arguments):
        if not _is_flag(argument):
            continue
        name, equals, value = argument.lstrip("-").partition("=")
        following = arguments[position + 1] if position + 1 < len(arguments) else "--"
        yield name.replace("-", "_"), value if equals else None if following.startswith("--") else following


def _is_flag(argument: str) -> bool:
    return re.match(r"--?[A-Za-z_]", argument) is not None
