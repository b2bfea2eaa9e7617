# SPDX-License-Identifier: Apache-2.0
"""A bundle's inference as MONAI's workflow: checked once, then given pair after pair in place of files."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

from common.api.sources import CONFIG
from common.checks import InputError
from common.engine.command_line import Given, as_text, check_options
from common.engine.option_names import references
from common.engine.option_values import PATHS
from common.engine.pair_handler import PairKeeper
from common.engine.start import not_announced

_PAIRS = "dataloader#sampler#pairs"
_SIDES = [f"{side}{kind}" for kind in ("", "_label", "_mask", "_landmarks") for side in ("moving", "fixed")]
_KEEPER = {"_target_": f"{PairKeeper.__module__}.{PairKeeper.__name__}"}


def prepared(folder: Path, options: Mapping[str, Any]) -> ConfigWorkflow:
    """The workflow of ``configs/inference.json`` with options that are checked as those of the command line.

    Its pairs are those that are asked for and nothing else, and they are kept, not written.

    Raises:
        InputError: for an option that is refused, or a configuration without the parts that are changed here.
    """
    file = folder / CONFIG
    config = ConfigParser.load_config_files(str(file))
    # Paths as such, or MONAI would change some.
    meant: dict[str, Any] = {
        name: Path(value) if name in PATHS and value is not None else value for name, value in options.items()
    }
    check_options(Given(config, config, meant, {}))
    with _unchanged_process():
        workflow = ConfigWorkflow(
            str(file), workflow_type="inference", logging_file=False, **{"bundle_root": folder, **meant}
        )
        workflow.initialize()
    parser = workflow.parser
    try:
        writer = parser["handlers"][-1]
        labels = {name: writer[name] for name in ("labels", "lookup", "label_names") if name in writer}
        parser[_PAIRS] = "$@request.pairs"
        parser["handlers"] = [_KEEPER | labels]
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file} is not made like those of this project: its pairs cannot be kept.") from error
    return workflow


def network_settings(workflow: ConfigWorkflow) -> str:
    """The items of a configuration that its network depends on, as a text that differs where any of them does."""
    config = workflow.parser.get()
    found, waiting = {}, ["network"]
    while waiting:
        name = waiting.pop()
        if name not in found and name in config:
            found[name] = config[name]
            waiting += references(config[name])
    return repr(sorted(found.items()))


def registered_pair(workflow: ConfigWorkflow, sources: Mapping[str, Any]) -> tuple[Any, Any]:
    """Register a pair.

    Args:
        workflow: from :func:`prepared`.
        sources: texts of paths or images in memory, by the name of their option.

    Returns:
        The handler, which knows what is recorded of a pair, and what it has kept.
    """
    parser = workflow.parser
    for name in _SIDES:
        source = sources.get(name)
        parser[name] = as_text(source) if isinstance(source, str) else source
    evaluator = parser.get_parsed_content("evaluator")
    evaluator.logger.addFilter(not_announced)
    try:
        evaluator.run()
    finally:
        evaluator.logger.removeFilter(not_announced)
    (keeper,) = parser.get_parsed_content("handlers")
    return keeper, keeper.kept


def forget_pair(workflow: ConfigWorkflow) -> None:
    """Let go of a pair and of all that was made for it."""
    for name in _SIDES:
        workflow.parser[name] = None


@contextmanager
def _unchanged_process() -> Iterator[None]:
    """Leave the search path as it is, and MONAI's word on log files, which nobody has asked for, unsaid."""
    searched, logger = [*sys.path], logging.getLogger(ConfigWorkflow.__module__)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        sys.path[:] = searched
        logger.setLevel(level)
