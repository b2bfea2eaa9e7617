# SPDX-License-Identifier: Apache-2.0
"""The options of ``python -m monai.bundle``, checked and written as MONAI reads them.

MONAI accepts a mistyped option in silence and takes ``--flag false`` for true.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from pydoc import locate
from typing import Any

from monai.bundle import ConfigComponent, ConfigParser

from common.checks import InputError

# Options of `monai.bundle run` itself, which no config has to define.
RUN_OPTIONS = {
    "run_id",
    "init_id",
    "final_id",
    "meta_file",
    "config_file",
    "logging_file",
    "tracking",
    "args_file",
    "experiment_name",
    "run_name",
    "tracking_uri",
    "save_execute_config",
}
SEPARATORS = re.compile(r"::|#")


def check_options(arguments: Sequence[str]) -> None:
    """Refuse options that no config of this run defines, and "true" or "false" for what is no switch.

    Args:
        arguments: of ``python -m monai.bundle``, e.g. ``["run", "--config_file", "configs/train.json", "--lr", "1"]``.

    Raises:
        InputError: naming the option, with the closest one that exists.
    """
    config = _config(arguments)
    if config is None:
        return
    known = set(config) | RUN_OPTIONS
    for name, value in _options(arguments):
        top, *nested = SEPARATORS.split(name)
        if top not in known:
            raise InputError(f"There is no option --{name}.{_closest(name, known)}")
        _check_nested(config.get(top), nested, name)
        if _is_lower_switch(value) and not isinstance(config.get(name), bool):
            raise InputError(
                f"--{name} {value} is a text to MONAI, and every text counts as true: write {value.title()}."
            )


def as_monai_reads(arguments: Sequence[str]) -> list[str]:
    """The command line with True and False for true and false of a switch, and with "$None" for None.

    MONAI takes the former for texts, and leaves out an option whose value is None.

    Args:
        arguments: as for :func:`check_options`.
    """
    config = _config(arguments)
    words = list(arguments)
    for position, argument in enumerate(arguments if config is not None else []):
        name, equals, value = argument.lstrip("-").partition("=")
        if not argument.startswith("-"):
            continue
        is_switch = isinstance((config or {}).get(name.replace("-", "_")), bool)
        if equals:
            words[position] = f"--{name}={_monai_value(value, is_switch)}"
        elif position + 1 < len(words):
            words[position + 1] = _monai_value(words[position + 1], is_switch)
    return words


def _monai_value(value: str, is_switch: bool) -> str:
    if value == "None":
        return "$None"
    return value.title() if is_switch and _is_lower_switch(value) else value


def _config(arguments: Sequence[str]) -> dict[str, Any] | None:
    """The files of ``--config_file``, merged; None without the option."""
    files = dict(_options(arguments)).get("config_file")
    return None if files is None else ConfigParser.load_config_files(_as_list(files))


def _is_lower_switch(value: str) -> bool:
    return value.lower() in ("true", "false") and value not in ("True", "False")


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Name and text of each ``--name value``, ``--name=value`` or ``--name``, as fire reads them."""
    for position, argument in enumerate(arguments):
        if not re.match(r"--?[A-Za-z_]", argument):
            continue
        name, equals, value = argument.lstrip("-").partition("=")
        following = arguments[position + 1] if position + 1 < len(arguments) else ""
        yield name.replace("-", "_"), value if equals else following


def _as_list(text: str) -> list[str]:
    return re.findall(r"[^\[\]'\",\s]+", text) if text.startswith("[") else [text]


def _check_nested(config: Any, keys: Sequence[str], name: str) -> None:
    for key in keys:
        existing = _children(config)
        if key not in existing and not _takes_any(config):
            raise InputError(f"There is no option --{name}: {key!r} does not exist there.{_closest(key, existing)}")
        config = config[int(key)] if isinstance(config, list) else config.get(key)


def _children(config: Any) -> set[str]:
    """What can be set below an item: its own keys or positions, and for a component all arguments that it takes."""
    if isinstance(config, list):
        return {str(position) for position in range(len(config))}
    if not isinstance(config, dict):
        return set()
    return set(config) | set(_parameters(config))


def _takes_any(config: Any) -> bool:
    """Whether an item is a component that hands further arguments on."""
    kinds = [parameter.kind for parameter in _parameters(config).values()] if isinstance(config, dict) else []
    return inspect.Parameter.VAR_KEYWORD in kinds


def _parameters(config: dict[str, Any]) -> Mapping[str, inspect.Parameter]:
    """Parameters of a component, named by its module or, as MONAI allows for its own, by its class alone."""
    target = locate(ConfigComponent(config).resolve_module_name()) if "_target_" in config else None
    return inspect.signature(target).parameters if callable(target) else {}


def _closest(name: str, known: set[str]) -> str:
    matches = difflib.get_close_matches(name, [key for key in known if not key.startswith("_")], n=1)
    return f" Did you mean {matches[0]!r}?" if matches else ""
