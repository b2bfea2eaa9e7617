# SPDX-License-Identifier: Apache-2.0
"""The app's end of the worker: starts it, asks, and starts it anew when it has died. Standard library alone."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

logger = logging.getLogger(__name__)


class WorkerError(RuntimeError):
    """What the worker could not do; the message is one sentence for the person who asked."""


class Worker:
    """A process that answers lines of JSON with lines of JSON, one at a time; see ``worker.py``.

    Args:
        command: what starts it.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)
        self._process: subprocess.Popen[str] | None = None
        self._turn = threading.Lock()

    def start(self) -> dict[str, Any]:
        """Start the process unless it runs, and wait until it has loaded the bundle.

        Returns:
            What it says of the bundle.

        Raises:
            WorkerError: when it cannot be started or the bundle not be loaded.
        """
        with self._turn:
            self._start()
            return self._said

    def ask(self, task: str, **arguments: Any) -> dict[str, Any]:
        """Ask for a task and wait for the answer.

        Raises:
            WorkerError: with the worker's sentence, or when it dies. It is started anew for the next request.
        """
        with self._turn:
            self._start()
            assert self._process is not None and self._process.stdin is not None
            # Of one that has died its silence tells.
            with suppress(BrokenPipeError):
                print(json.dumps({"task": task, **arguments}), file=self._process.stdin, flush=True)
            return self._listen(f"while it worked on a request ({task})")

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.communicate()
            self._process = None

    def _start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        if self._process is not None:
            logger.warning("The worker had ended (exit status %d) and is started anew.", self._process.returncode)
        # Folders of another environment's packages are none of its business.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        try:
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
            )
        except OSError as error:
            raise WorkerError(f"The worker cannot be started by {self.command[0]}: {error.strerror}.") from error
        self._said = self._listen("while it loaded the bundle")

    def _listen(self, when: str) -> dict[str, Any]:
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._process = None
            raise WorkerError(
                f"The worker ended {when}, exit status {status} (-9 is lack of memory, most often); its own words are "
                "in the log of the server, and the next request starts it anew."
            )
        message = json.loads(line)
        if "error" in message:
            raise WorkerError(message["error"])
        answer: dict[str, Any] = message["answer"]
        return answer
