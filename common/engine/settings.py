# SPDX-License-Identifier: Apache-2.0
"""What the result of a training depends on, as plain values that a checkpoint keeps and a resumed run compares."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import nn

from common.data.dataset import PairDataset

_DEPTH = 12
"""How many objects within objects are looked into."""
_EVOLVING = ("training", "optimizer", "base_lrs", "last_epoch")
"""Attributes that say nothing about how an object was made, or are described elsewhere."""
_RATES = ("params", "lr", "initial_lr")
_OPTIONS = ("learning_rate", "seed", "batch_size", "amp", "pairs_per_epoch", "max_epochs", "val_interval", "ema_decay")
"""Names that are options of the command line, too."""


def run_settings(engine: Any, network: nn.Module, optimizer: Any, lr_scheduler: Any) -> dict[str, Any]:
    """Settings of a run that are known when handlers are attached to its trainer; another one is another run.

    Args:
        engine: the trainer.
        network: plain module.
        optimizer: any torch optimiser.
        lr_scheduler: any torch scheduler, or None.

    Returns:
        Plain values by name; data sets by the names and sizes of their files, wherever these lie.
    """
    loader = engine.data_loader
    return {
        # The default stays what it was when a scheduler or a checkpoint changes the rate.
        "learning_rate": optimizer.defaults["lr"],
        "seed": loader.sampler.seed,
        "batch_size": loader.batch_size * loader.sampler.num_replicas,
        "pairs_per_epoch": described(getattr(loader.sampler, "pairs_per_epoch", None)),
        "network_def": {"class": type(network).__name__, **described(getattr(network, "arguments", {}))},
        "optimizer": optimizer_settings(optimizer),
        "lr_scheduler": described(lr_scheduler),
        "training": _data(loader),
    }


def step_settings(engine: Any) -> dict[str, Any]:
    """Settings of a run that a trainer knows when it starts; another one is another run."""
    return {
        "amp": bool(getattr(engine.inferer, "amp", False) or engine.amp),
        "loss": described(engine.loss_function),
        "prepare_batch": described(engine.prepare_batch),
        "accumulation_steps": getattr(engine, "accumulation_steps", 1),
    }


def chosen_settings(engine: Any, evaluator: Any, val_interval: int | None) -> dict[str, Any]:
    """Settings that a run may go on with changed, as no step depends on them: only which weights are the best.

    Args:
        engine: the trainer.
        evaluator: that validates, or None.
        val_interval: epochs from one validation to the next, where it is known.
    """
    settings: dict[str, Any] = {"max_epochs": engine.state.max_epochs, "device": engine.state.device.type}
    if val_interval is not None:
        settings["val_interval"] = val_interval
    if evaluator is not None:
        settings["validation"] = _data(evaluator.data_loader)
    return settings


def differences(began: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Path, old and new value of all that differs between two settings; what one of them lacks is None."""
    if isinstance(began, Mapping) and isinstance(now, Mapping) and began.get("class") == now.get("class"):
        for key in dict.fromkeys((*began, *now)):
            yield from differences(began.get(key), now.get(key), f"{path}::{key}" if path else str(key))
    elif isinstance(began, list) and isinstance(now, list) and len(began) == len(now):
        for place, (old, new) in enumerate(zip(began, now, strict=True)):
            yield from differences(old, new, f"{path}::{place}")
    elif began != now and not (began != began and now != now):
        yield path, began, now


def option(path: str) -> str:
    """How a user writes a setting: with dashes where it is an option by this name."""
    return f"--{path}" if path in _OPTIONS else path


def brief(value: Any) -> str:
    """A value in few words: of an object its class."""
    if isinstance(value, Mapping):
        return str(value.get("class", dict(value)))
    return "none" if value is None else str(value)


def described(value: Any, depth: int = _DEPTH) -> Any:
    """Plain values that say how an object was made: its class and its public attributes, those of its parts as well.

    Args:
        value: anything; of tensors and arrays the digest of what they hold, of functions what they enclose.
        depth: how many objects within objects are looked into; below only the class counts.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor | np.ndarray):
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
        return {"shape": list(array.shape), "digest": _digest(array.tobytes())}
    if depth == 0 or isinstance(value, type):
        return getattr(value, "__name__", type(value).__name__)
    if isinstance(value, Path):
        return value.name
    if isinstance(value, Mapping | nn.ModuleDict):
        return {str(key): described(item, depth - 1) for key, item in value.items()}
    if isinstance(value, Set):
        return sorted((described(item, depth - 1) for item in value), key=str)
    if isinstance(value, Sequence | nn.ModuleList):
        return [described(item, depth - 1) for item in value]
    if isinstance(value, FunctionType):
        return _function(value, depth)
    return _object(value, depth)


def _object(value: Any, depth: int) -> dict[str, Any]:
    attributes = dict(getattr(value, "__dict__", {}))
    attributes |= dict(value.named_children()) if isinstance(value, nn.Module) else {}
    public = {name: item for name, item in attributes.items() if not name.startswith("_") and name not in _EVOLVING}
    return {"class": type(value).__name__, **{name: described(item, depth - 1) for name, item in public.items()}}


def _function(value: FunctionType, depth: int) -> dict[str, Any]:
    enclosed = inspect.getclosurevars(value).nonlocals
    constants = [item for item in value.__code__.co_consts if isinstance(item, bool | int | float | str)]
    plain = {name: described(item, depth - 1) for name, item in enclosed.items()}
    return {"class": value.__qualname__, **plain, "constants": constants if value.__name__ == "<lambda>" else []}


def optimizer_settings(optimizer: Any) -> dict[str, Any]:
    """Class and options of an optimiser, but for the learning rates."""
    groups = [
        {name: described(value) for name, value in group.items() if name not in _RATES}
        for group in optimizer.param_groups
    ]
    return {"class": type(optimizer).__name__, "groups": groups}


def _data(loader: Any) -> dict[str, Any]:
    """Which subjects, how they are prepared, and which of their pairs are drawn."""
    data, sampler = loader.dataset, loader.sampler
    pairs = {name: described(getattr(sampler, name, None)) for name in ("strategy", "pairs", "atlas", "flip_axes")}
    if getattr(sampler, "both_ways", False):
        # Left out otherwise, as in checkpoints of earlier versions.
        pairs["both_ways"] = True
    if not isinstance(data, PairDataset):
        return {"subjects": len(data), **pairs}
    files = [
        [subject.get("id"), *(_size(subject[key]) for key in ("image", "label") if key in subject)]
        for subject in data.data
    ]
    return {
        "subjects": f"{len(files)} ({_digest(repr(files).encode())})",
        "preprocessing": described(data.subjects.transform),
        **pairs,
    }


def _size(path: Any) -> int:
    return Path(path).stat().st_size if isinstance(path, str | Path) and Path(path).is_file() else -1


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
