# SPDX-License-Identifier: Apache-2.0
"""What all command-line tools share: errors as one line, switches that understand plain words."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Callable

from common.checks import InputError


def run_tool(main: Callable[[], None]) -> None:
    """Run a tool's ``main`` and leave the process: what a user can mend ends as one line and exit code 1.

    An ``InputError`` anywhere in the chain of causes, or an ``OSError`` that names a file, is reported as
    ``ERROR: sentence`` on standard error; an interruption by the keyboard exits with 130. All else keeps its traceback.
    "~" means the home folder also where the shell leaves it, as in ``--output=~/out`` and ``NAME=~/fields``.
    """
    sys.argv[1:] = [_at_home(word) for word in sys.argv[1:]]
    try:
        main()
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on where it stopped.", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        sentence = sentence_of(error)
        if sentence is None:
            raise
        print(f"ERROR: {sentence}", file=sys.stderr)
        sys.exit(1)


def sentence_of(error: BaseException) -> str | None:
    """What to tell the user, found in an error or its causes; None where the fault is the program's."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        # By name: the package inside a zip has a class of its own.
        if any(kind.__name__ == InputError.__name__ for kind in type(cause).__mro__):
            # A data loader's worker sends its whole traceback as the text; the sentence stands at its end.
            return str(cause).rpartition(f"{InputError.__name__}: ")[2].strip()
        if type(cause).__name__ == "OptionalImportError":
            # MONAI's, of a package that it can do without; the first line says which one to install for what.
            return str(cause).partition("\n")[0]
        if isinstance(cause, OSError) and cause.filename is not None:
            return f"{cause.filename}: {cause.strerror}."
        cause = cause.__cause__ or cause.__context__
    return None


def _at_home(word: str) -> str:
    found = re.fullmatch(r"((?:.*=)?(?:inverse:)?)(~.*)", word, re.DOTALL)
    return f"{found[1]}{os.path.expanduser(found[2])}" if found else word


def add_switch(options: argparse.ArgumentParser, name: str, meaning: str, default: bool = False) -> None:
    """Add a switch: ``--name true``, as in the commands of the bundles, or ``--name`` alone turns it on.

    Args:
        options: of the tool.
        name: without the dashes.
        meaning: its help.
        default: what it is without a word.
    """
    options.add_argument(
        f"--{name}", type=_switch, nargs="?", const=True, default=default, metavar="true|false", help=meaning
    )


def whole(lowest: int) -> Callable[[str], int]:
    """A type for ``argparse``: whole numbers from ``lowest`` on."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"\s*[+-]?\d+\s*", text) or int(text) < lowest:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {lowest} on")
        return int(text)

    return parse


def finite(text: str) -> float:
    """A type for ``argparse``: a number that is neither NaN nor infinite."""
    return _number(text, math.isfinite, "is no finite number")


def positive(text: str) -> float:
    """A type for ``argparse``: a finite number above 0."""
    return _number(text, lambda value: 0 < value < math.inf, "is no number above 0")


def _number(text: str, accepts: Callable[[float], bool], complaint: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not accepts(value):
        raise argparse.ArgumentTypeError(f"{text!r} {complaint}")
    return value


def _switch(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"
