# SPDX-License-Identifier: Apache-2.0
"""What would end a training after hours, looked for before its first step."""

from __future__ import annotations

import importlib
import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.checks import InputError
from common.data.dataset import PairDataset
from common.engine.bundle_folder import check_writable

logger = logging.getLogger(__name__)


def check_file(path: str | Path, option: str) -> None:
    """Refuse a place where no file can be written; its folder is made if need be.

    Args:
        path: of the file.
        option: of the command line that chooses it.

    Raises:
        InputError: naming the place and the reason.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(
            f"{path} is a folder, but a file is written there: name one with {option}, such as {path / 'model.pt'}."
        )
    check_writable(path.parent, option)


def check_space(files: Mapping[Path, int]) -> None:
    """Refuse to write files that do not fit on the disk, each through a temporary one, which old ones make room for.

    Args:
        files: bytes of each; their folders exist.

    Raises:
        InputError: naming the folder, what is needed and what is free.
    """
    for folder in {path.parent for path in files}:
        here = {path: size for path, size in files.items() if path.parent.stat().st_dev == folder.stat().st_dev}
        old = sum(path.stat().st_size for path in here if path.is_file())
        needed, free = sum(here.values()) + max(here.values()) - old, shutil.disk_usage(folder).free
        if needed > free:
            raise InputError(
                f"Weights and checkpoint need about {_megabytes(needed)} on the disk of {folder}, where "
                f"{_megabytes(free)} are free: make room, or choose another --output_dir and --ckpt_path."
            )


def training_files(
    weights: Path, checkpoint: Path, network: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[Path, int]:
    """Bytes of what a training writes again and again, about."""
    size = _bytes(network.state_dict().values())
    trained = _bytes(parameter for group in optimizer.param_groups for parameter in group["params"])
    # What Adam keeps of each parameter: two moments, and the largest second one where it is asked to.
    copies = 3 if optimizer.defaults.get("amsgrad") else 2
    return {weights: size, checkpoint: size + copies * trained}


def check_batches(loader: Any) -> None:
    """Refuse batches of pairs that differ in shape, which the network cannot be given at once.

    Raises:
        InputError: naming two files and their shapes.
    """
    data = loader.dataset
    if loader.batch_size == 1 or not isinstance(data, PairDataset):
        return
    shapes: dict[tuple[int, ...], str] = {}
    for index, subject in enumerate(data.data):
        outline = data.outlines[index]
        if outline is not None:
            shapes.setdefault(tuple(outline.shape[1:]), str(subject.get("image", subject.get("label"))))
    if len(shapes) > 1:
        (first, one), (second, another), *_ = shapes.items()
        raise InputError(
            f"{one} has shape {first} and {another} has {second}: pairs of different shapes make no batch, use "
            "--batch_size 1 or resample them to one shape."
        )


def need_package(name: str, purpose: str) -> None:
    """Import a package that is used later.

    Raises:
        InputError: when it is not installed.
    """
    try:
        importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"{purpose} needs {name}, which cannot be imported: pip install {name}.") from error


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
