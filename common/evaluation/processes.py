# SPDX-License-Identifier: Apache-2.0
"""Commands in processes of their own, whose words go to a file: memory and threads are theirs alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.checks import InputError

ERROR = re.compile(r"^ERROR: (.*)", re.MULTILINE)


def run_logged(command: Sequence[str], name: str, log: Path, environment: Mapping[str, str]) -> float | None:
    """Run a process to its end with its words added to a file.

    Args:
        command: program and words.
        name: what to call it in an error.
        log: the file; its folder is made.
        environment: all variables of the process.

    Returns:
        Its largest memory in GB, None where the system does not tell.

    Raises:
        InputError: when it fails: what it said, and its log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        try:
            code, memory = _waited(process)
        except BaseException:
            process.kill()
            process.wait()
            raise
    if code != 0:
        text = log.read_text(encoding="utf-8", errors="replace").strip()
        said = ERROR.findall(text) or text.splitlines()[-1:] or ["nothing"]
        raise InputError(f"{name} ended with {code} and said: {said[-1]} (all of it: {log})")
    return memory


def _waited(process: subprocess.Popen[Any]) -> tuple[int, float | None]:
    if sys.platform == "win32":
        return process.wait(), None
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
