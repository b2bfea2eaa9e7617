# SPDX-License-Identifier: Apache-2.0
"""How a workflow begins: its options are read as they were meant, checked, and the process becomes what it needs.

``prepare_workflow`` stands in ``initialize`` of each configuration, so that it comes before all else, also where a
workflow is made in Python; ``restart_and_check`` is the first item of each ``run`` list. Threads, whose number and
manner of waiting are fixed when torch is loaded, can only be mended by starting ``python -m monai.bundle`` again.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import torch
import torch.distributed as dist
from monai.bundle import ConfigParser, ConfigWorkflow

from common.checks import InputError
from common.cli import sentence_of
from common.engine.bundle_folder import check_bundle, check_code, check_writable, find_metadata
from common.engine.command_line import as_meant, as_text, check_options, read_command_line
from common.engine.federated import begin_as_client, federated_client, leave_to_client
from common.engine.option_names import check_names
from common.engine.option_values import PATHS, as_path_text, check_values
from common.engine.workflow import is_prepared, names_of_first_file, run_anew, running_workflow
from common.memory import keep_freed_memory
from common.threads import share_cores


def prepare_workflow() -> None:
    """Check all options of the workflow that is being initialised, wherever they were given; mend what MONAI misreads.

    From the command line, errors become one line, freed memory is kept, and the process is **replaced** by the same
    command, at most once, with the environment of :func:`common.threads.share_cores` where the user has set none.
    Called from Python, it leaves process, environment and excepthook alone. A further ``run()`` of the workflow makes
    everything anew. For a federated client, which takes trainer and evaluator and never runs the workflow, the run
    begins here, see :mod:`common.engine.federated`.

    Raises:
        InputError: for an unknown option, a value that cannot be used, a path that MONAI has changed, or code of
            another bundle.
    """
    workflow = running_workflow()
    if workflow is None:
        return
    given = None
    if _is_command_line():
        _report_errors_in_one_line()
        keep_freed_memory()
        given = read_command_line(sys.argv[1:])
    parser = workflow.parser
    client = federated_client()
    if client is not None:
        leave_to_client(parser, client)
    if given is None:
        _refuse_changed_paths(parser)
    else:
        check_options(given)
        parser.update(as_meant(given))
    _take_paths_to_the_letter(parser)
    _take_root_of_config(workflow)
    parser.parse()
    _check_bundle_of(workflow)
    run_ids = (workflow.init_id, workflow.run_id, workflow.final_id)
    check_names(parser.get(), {*run_ids, *(given.first if given else names_of_first_file(workflow))})
    check_values(parser, given.changes() if given else {})
    # Nothing is kept that a property set later would have to change.
    parser.parse()
    run_anew(workflow)
    if client is not None:
        begin_as_client(parser)
    if given is not None:
        _restart_if_needed(sys.argv[1:])


def restart_and_check(bundle_root: str | Path, output_dir: str | Path, distributed: bool = False) -> None:
    """Check the folders that the workflow was given.

    A configuration without ``initialize`` is prepared here, see :func:`prepare_workflow`.

    Args:
        bundle_root: folder of the bundle.
        output_dir: made if it does not exist.
        distributed: whether to join the other processes that ``torchrun`` started (NCCL on GPUs, else Gloo).

    Raises:
        InputError: for a bundle_root that is no bundle, a foreign ``common``, or an output folder that cannot be
            written to; and as :func:`prepare_workflow`.
    """
    workflow = running_workflow()
    if workflow is not None and not is_prepared(workflow):
        prepare_workflow()
        given = {"bundle_root": bundle_root, "output_dir": output_dir}
        bundle_root, output_dir = (
            workflow.parser.get_parsed_content(name) if name in workflow.parser else value
            for name, value in given.items()
        )
    check_bundle(bundle_root)
    check_writable(output_dir)
    if distributed:
        _join_processes()


def _check_bundle_of(workflow: ConfigWorkflow) -> None:
    """Of a configuration that lies outside its bundle, read the metadata, too."""
    parser = workflow.parser
    bundle_root = parser.get_parsed_content("bundle_root", default=".")
    metadata = find_metadata(Path(workflow.config_root_path), Path(str(bundle_root)))
    if metadata is not None:
        check_code(metadata)
        if not parser.get(parser.meta_key):
            parser.read_meta(metadata)


def _take_root_of_config(workflow: ConfigWorkflow) -> None:
    """Where no root was given, and the configuration lies in the bundle of another folder, that is the root.

    So workflows are made from any folder, as :func:`monai.bundle.load` makes them.
    """
    parser, own = workflow.parser, Path(workflow.config_root_path).absolute().parent
    if parser.get("bundle_root") == "." and (own / "configs" / "metadata.json").is_file() and not own.samefile("."):
        parser["bundle_root"] = as_text(str(own))


def _refuse_changed_paths(parser: ConfigParser) -> None:
    for name in PATHS:
        path = parser.get(name)
        if isinstance(path, str) and "::" in path and not path.startswith(("$", "@", "%")):
            meant = as_text(path.replace("::", "#"))
            raise InputError(
                f"The {name} is {path!r}, but MONAI makes '::' of every '#': from Python give {meant!r}, whichever it "
                "is."
            )


def _take_paths_to_the_letter(parser: ConfigParser) -> None:
    for name in PATHS:
        text = as_path_text(parser.get(name))
        if text is not None:
            parser[name] = as_text(text)


def _is_command_line() -> bool:
    return Path(sys.argv[0]).parts[-3:] == ("monai", "bundle", "__main__.py")


def _report_errors_in_one_line() -> None:
    sys.excepthook = report_error
    logging.getLogger().addFilter(not_announced)
    for handler in logging.getLogger().handlers:
        handler.addFilter(not_announced)


def report_error(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """``sys.excepthook``: one line when the cause is the user's to mend, the usual traceback otherwise."""
    sentence = sentence_of(error)
    if sentence is not None:
        print(f"ERROR: {sentence}", file=sys.stderr)
        return
    if issubclass(kind, KeyboardInterrupt):
        print("Interrupted; training continues with --resume true, all else with the same command.", file=sys.stderr)
        return
    sys.__excepthook__(kind, error, traceback)


def not_announced(record: logging.LogRecord) -> bool:
    """Drop the engines' announcement of an error that is about to be reported."""
    return "terminating due to exception" not in str(record.msg)


def _restart_if_needed(arguments: Sequence[str]) -> None:
    # A single thread waits for no other.
    if share_cores() and torch.get_num_threads() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        _become([*sys.orig_argv[: len(sys.orig_argv) - len(arguments)], *arguments])


def _become(command: Sequence[str]) -> None:
    """Replace this process; on Windows, where the caller would believe it ended, wait for the other one."""
    if os.name == "nt":
        sys.exit(subprocess.run([sys.executable, *command[1:]], check=False).returncode)
    os.execv(sys.executable, list(command))


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
