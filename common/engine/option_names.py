# SPDX-License-Identifier: Apache-2.0
"""Names that mean nothing: options and arguments that MONAI would accept in silence, wherever they were given."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pydoc import ErrorDuringImport, locate
from typing import Any

from monai.bundle import ComponentLocator, ConfigComponent, ReferenceResolver

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
# What MONAI looks for in a config by itself; `is_not_rank0` comes with its tracking.
MONAI_IDS = {"imports", "initialize", "run", "finalize", "is_not_rank0"}
SEPARATORS = re.compile(r"::|#")
_LOCATOR = ComponentLocator()


def check_names(config: Mapping[str, Any], known: Collection[str] = ()) -> None:
    """Refuse what a merged configuration holds to no effect.

    An item at the top has to be referred to by another one (``@name``), be MONAI's, begin with "_", or be ``known``;
    the arguments of a component have to be those that its class takes.

    Args:
        config: with overrides, macros resolved.
        known: names that may stand there unused.

    Raises:
        InputError: naming the item, with the closest one that exists.
    """
    referred = set(references(config))
    idle = [
        name
        for name, item in config.items()
        if not name.startswith("_")
        and name not in {*known, *RUN_OPTIONS, *MONAI_IDS, *referred}
        and not (isinstance(item, (dict, list)) and _is_copied(item, config))
    ]
    if idle:
        guess = _closest(idle[0], set(config) - set(idle))
        raise InputError(f"There is no option --{idle[0]}.{guess or ' Nothing in the configuration refers to it.'}")
    for path, component in _components({name: item for name, item in config.items() if not name.startswith("_")}):
        parameters = _parameters(component)
        if parameters is None or _takes_any(parameters):
            continue
        for name in set(component) - set(ConfigComponent.non_arg_keys) - set(parameters):
            raise InputError(_no_such(f"{path}#{name}", name, set(parameters)))


def check_nested(config: Any, keys: Sequence[str], name: str) -> None:
    """Refuse a nested option that leads nowhere.

    Args:
        config: the item at the top.
        keys: names below it, from the outermost.
        name: the whole option, for the message.

    Raises:
        InputError: naming the part that does not exist.
    """
    for key in keys:
        existing = _children(config)
        if key not in existing and not (isinstance(config, dict) and _takes_any(_parameters(config) or {})):
            raise InputError(_no_such(name, key, existing))
        config = config[int(key)] if isinstance(config, list) else config.get(key)


def _closest(name: str, known: Collection[str]) -> str:
    """`` Did you mean 'name'?`` where something is spelt alike, else nothing."""
    matches = difflib.get_close_matches(name, [key for key in known if not key.startswith("_")], n=1)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def _no_such(name: str, key: str, existing: Collection[str]) -> str:
    return f"There is no option --{name}: {key!r} does not exist there.{_closest(key, existing)}"


def references(item: Any) -> Iterator[str]:
    """Names at the top of a configuration that expressions and references below an item speak of."""
    if isinstance(item, str):
        for found in ReferenceResolver.match_refs_pattern(item):
            yield SEPARATORS.split(found)[0]
    elif isinstance(item, (dict, list)):
        for value in item.values() if isinstance(item, dict) else item:
            yield from references(value)


def _is_copied(item: Any, config: Any) -> bool:
    """Whether a macro, which leaves no trace but its result, has taken an item to another place."""
    if isinstance(config, (dict, list)):
        values = list(config.values() if isinstance(config, dict) else config)
        inner = [value for value in values if isinstance(value, (dict, list)) and value is not item]
        return any(item == value or _is_copied(item, value) for value in inner)
    return False


def _components(item: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(item, dict):
        if isinstance(item.get("_target_"), str):
            yield path, item
        for key, value in item.items():
            yield from _components(value, f"{path}#{key}" if path else key)
    elif isinstance(item, list):
        for position, value in enumerate(item):
            yield from _components(value, f"{path}#{position}")


def _children(config: Any) -> set[str]:
    """What can be set below an item: its own keys or positions, and for a component all arguments that it takes."""
    if isinstance(config, list):
        return {str(position) for position in range(len(config))}
    return {*config, *(_parameters(config) or {})} if isinstance(config, dict) else set()


def _takes_any(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Whether a component hands further arguments on."""
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())


def _parameters(config: dict[str, Any]) -> Mapping[str, inspect.Parameter] | None:
    """Parameters of a component, named by its module or, as MONAI allows for its own, by its class alone.

    None where that cannot be known.
    """
    if not isinstance(config.get("_target_"), str):
        return None
    try:
        target = locate(ConfigComponent(config, locator=_LOCATOR).resolve_module_name())
        return inspect.signature(target).parameters if callable(target) else None
    except (ErrorDuringImport, TypeError, ValueError):
        return None
