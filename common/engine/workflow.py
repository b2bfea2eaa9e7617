# SPDX-License-Identifier: Apache-2.0
"""The workflow that a component of its configuration is being made for."""

from __future__ import annotations

import inspect
import json
import logging
from pathlib import Path
from typing import Any, TypeVar

from monai.bundle import ConfigWorkflow

_logger = logging.getLogger(__name__)
_MARK = "_runs_anew"
Caller = TypeVar("Caller")


def running_workflow() -> ConfigWorkflow | None:
    """The workflow whose item called; None for a configuration that is read without one."""
    return caller_of(ConfigWorkflow)


def caller_of(kind: type[Caller]) -> Caller | None:
    """The nearest object of a class whose method is being run by this thread.

    MONAI hands a component its arguments and nothing else, so this looks among the callers.
    """
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, kind):
            return caller
        frame = frame.f_back
    return None


def names_of_first_file(workflow: ConfigWorkflow) -> set[str]:
    """Names at the top of the configuration that a workflow began with.

    MONAI merges its files and forgets them, but the first one lies in a known folder, says what to run, and has nothing
    that the result has not.
    """
    merged = workflow.parser.get()
    found: set[str] = set()
    for path in Path(workflow.config_root_path).glob("*.json"):
        try:
            names = set(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, TypeError, ValueError):
            continue
        if workflow.run_id in names and names <= set(merged):
            found |= names
    return found


def is_prepared(workflow: ConfigWorkflow) -> bool:
    """Whether :func:`run_anew` has seen the workflow."""
    return hasattr(workflow, _MARK)


def run_anew(workflow: ConfigWorkflow) -> None:
    """Let a further ``run()`` make everything anew: it trains, evaluates or registers once more.

    MONAI keeps what ``"run": "$@train"`` has led to, so that a second call would do nothing. What was set by a property
    since the last run, which empties MONAI's cache, holds.
    """
    if is_prepared(workflow):
        return
    resolver, run = workflow.parser.ref_resolver, workflow.run
    used: Any = None

    def run_again() -> Any:
        nonlocal used
        if resolver.resolved_content is used:
            _logger.info("The workflow has run; all its parts are made anew.")
            workflow.initialize()
        try:
            return run()
        finally:
            used = resolver.resolved_content

    setattr(workflow, _MARK, True)
    # MONAI has no hook around run(): the attribute of this one workflow hides the method of all.
    workflow.run = run_again  # type: ignore[method-assign]
