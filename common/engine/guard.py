# SPDX-License-Identifier: Apache-2.0
"""What stands between a person's command line and a traceback of fifty lines.

``python -m monai.bundle run`` accepts a mistyped option in silence, takes ``--flag false`` for true, and wraps every
error in others. :func:`guard` is the first item of each workflow's ``run`` list and mends all three.
"""

from __future__ import annotations

import difflib
import inspect
import json
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pydoc import locate
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from monai.bundle import ConfigComponent, ConfigParser

import common
from common.checks import InputError
from common.cli import sentence_of
from common.engine.memory import keep_freed_memory

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


def guard(bundle_root: str | Path, output_dir: str | Path, distributed: bool = False) -> None:
    """Check the command line, the copy of ``common`` and the output folder, and turn errors into one line.

    Args:
        bundle_root: folder of the bundle.
        output_dir: made if it does not exist.
        distributed: whether to join the other processes that ``torchrun`` started (NCCL on GPUs, else Gloo).

    Raises:
        InputError: for an unknown option, a text "true" or "false" for what is no switch, a bundle_root that is no
            bundle, a foreign ``common``, or an output folder that cannot be written to.
    """
    if _is_command_line():
        sys.excepthook = report_error
        logging.getLogger().addFilter(_not_announced)
        for handler in logging.getLogger().handlers:
            handler.addFilter(_not_announced)
        keep_freed_memory()
        check_options(sys.argv[1:])
        _start_again(as_monai_reads(sys.argv[1:]))
    check_bundle(bundle_root)
    check_writable(output_dir)
    if distributed:
        _join_processes()


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


def _start_again(arguments: list[str]) -> None:
    """MONAI has read the options by now: where they have to be written differently, the process begins anew."""
    if arguments != sys.argv[1:]:
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, [*sys.orig_argv[: len(sys.orig_argv) - len(arguments)], *arguments])


def check_bundle(bundle_root: str | Path) -> None:
    """Refuse a folder that is no bundle, and a ``common`` of another version than the bundle was made for.

    The latter happens when bundles of two clones share one process; in a zip the package has a name of its own.

    Raises:
        InputError: naming the folder, or both versions.
    """
    path = Path(bundle_root) / "configs" / "metadata.json"
    if not path.is_file():
        raise InputError(
            f"{bundle_root!r} is not the folder of a bundle (it has no configs/metadata.json): run from the bundle's "
            "folder, or add --bundle_root FOLDER."
        )
    wanted = json.loads(path.read_text()).get("common_version")
    if wanted != common.__version__:
        raise InputError(
            f"This bundle needs version {wanted} of 'common', but version {common.__version__} was loaded from "
            f"{Path(common.__file__).parent}: run each bundle in a process of its own, from its own folder."
        )


def check_writable(folder: str | Path) -> None:
    """Make the folder and try to write there.

    Raises:
        InputError: naming the folder and the reason.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
    except OSError as error:
        raise InputError(
            f"Cannot write to the folder {folder}: {error.strerror}; choose another --output_dir."
        ) from error


def report_error(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """``sys.excepthook``: one line when the cause is the user's to mend, the usual traceback otherwise."""
    sentence = sentence_of(error)
    if sentence is not None:
        print(f"ERROR: {sentence}", file=sys.stderr)
        return
    if issubclass(kind, KeyboardInterrupt):
        print("Interrupted; training continues with --resume True, all else with the same command.", file=sys.stderr)
        return
    sys.__excepthook__(kind, error, traceback)


def _is_command_line() -> bool:
    return Path(sys.argv[0]).parts[-3:] == ("monai", "bundle", "__main__.py")


def _not_announced(record: logging.LogRecord) -> bool:
    """Drop the engines' announcement of an error that is about to be reported."""
    return "terminating due to exception" not in str(record.msg)


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


def _join_processes() -> None:
    if "LOCAL_RANK" not in os.environ:
        raise InputError(
            "Training on several devices is started by torchrun: torchrun --nproc_per_node=N -m monai.bundle run "
            "--config_file \"['configs/train.json','configs/multi_gpu_train.json']\"."
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
