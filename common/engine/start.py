# SPDX-License-Identifier: Apache-2.0
"""The first item of each workflow's ``run`` list: the process becomes what the workflow needs, if need be by a restart.

Two things can only be mended by starting ``python -m monai.bundle`` again: options that MONAI has read as something
else than was meant, and threads, whose number and manner of waiting are fixed when torch is loaded.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from types import TracebackType

import torch
import torch.distributed as dist

from common.checks import InputError
from common.cli import sentence_of
from common.engine.bundle_folder import check_bundle, check_writable
from common.engine.command_line import as_monai_reads, check_options
from common.engine.memory import keep_freed_memory
from common.threads import share_cores


def restart_and_check(bundle_root: str | Path, output_dir: str | Path, distributed: bool = False) -> None:
    """Start the process anew where its options or threads ask for it, then check the folders it was given.

    From the command line this **replaces the process** by the same command, at most once: with the options written as
    MONAI reads them (:func:`common.engine.command_line.as_monai_reads`), and with the environment of
    :func:`common.threads.share_cores` where the user has set none. Errors become one line, and freed memory is kept.
    Called from Python, it leaves process, environment and excepthook alone and only checks.

    Args:
        bundle_root: folder of the bundle.
        output_dir: made if it does not exist.
        distributed: whether to join the other processes that ``torchrun`` started (NCCL on GPUs, else Gloo).

    Raises:
        InputError: for an unknown option, a text "true" or "false" for what is no switch, a bundle_root that is no
            bundle, a foreign ``common``, or an output folder that cannot be written to.
    """
    if _is_command_line():
        _report_errors_in_one_line()
        keep_freed_memory()
        _restart_if_needed(sys.argv[1:])
    check_bundle(bundle_root)
    check_writable(output_dir)
    if distributed:
        _join_processes()


def _is_command_line() -> bool:
    return Path(sys.argv[0]).parts[-3:] == ("monai", "bundle", "__main__.py")


def _report_errors_in_one_line() -> None:
    sys.excepthook = report_error
    logging.getLogger().addFilter(_not_announced)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_not_announced)


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


def _not_announced(record: logging.LogRecord) -> bool:
    """Drop the engines' announcement of an error that is about to be reported."""
    return "terminating due to exception" not in str(record.msg)


def _restart_if_needed(arguments: list[str]) -> None:
    check_options(arguments)
    wanted = as_monai_reads(arguments)
    # A single thread waits for no other.
    too_late = share_cores() and torch.get_num_threads() > 1
    if wanted != arguments or too_late:
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, [*sys.orig_argv[: len(sys.orig_argv) - len(arguments)], *wanted])


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
