# SPDX-License-Identifier: Apache-2.0
"""What the options of all workflows may be, and the one place that says so to the user."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigParser

from common.checks import InputError
from common.cli import sentence_of
from common.data.readers import READERS, SECTIONS
from common.data.working_grid import is_orientation
from common.engine.option_names import SEPARATORS
from common.engine.registration_files import ALL, OUTPUTS, are_outputs
from common.io.challenge_fields import NAMINGS
from common.io.dicom_files import is_uid
from common.io.landmarks import COORDINATES
from common.losses.similarity import SIMILARITIES
from common.metrics.pair import HD95_UNITS


class Check(NamedTuple):
    """What an option takes: a test of a value, and the words that follow "give"."""

    accepts: Callable[[Any], bool]
    wanted: str


def _is_whole(value: Any, low: int, high: float = math.inf) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and low <= int(value) <= high


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, Path)) and str(value).strip() != ""


def _are(values: Any, accepts: Callable[[Any], bool], counts: Collection[int] = ()) -> bool:
    """Whether something is a list of values of a kind, of one of these lengths."""
    return (
        isinstance(values, (list, tuple, range))
        and (len(values) in counts if counts else len(values) > 0)
        and all(accepts(value) for value in values)
    )


def _or_none(check: Check) -> Check:
    return Check(lambda value: value is None or check.accepts(value), f"{check.wanted}, or None")


def _one_of(names: Collection[str]) -> Check:
    return Check(lambda value: isinstance(value, str) and value in names, f"one of {', '.join(names)}")


_PATH = Check(_is_path, "a path")
_FILE = Check(lambda value: _is_path(value) and os.path.isfile(value), "a file that exists")
_SWITCH = Check(lambda value: isinstance(value, bool), "true or false")
_SIZE = Check(lambda value: _are(value, lambda size: _is_whole(size, 1), (2, 3)), "the voxels along each axis")
_SIZES = Check(
    lambda value: _SIZE.accepts(value) or _are(value, _SIZE.accepts), "the voxels along each axis, or a list of such"
)
PATHS: dict[str, Check] = {
    **dict.fromkeys(
        ("bundle_root", "dataset_dir", "output_dir", "ckpt_path", "history", "fields_dir", "record"), _PATH
    ),
    **dict.fromkeys(
        (
            *(f"{side}{kind}" for kind in ("", "_label", "_mask", "_landmarks") for side in ("moving", "fixed")),
            *("label_groups", "label_names", "dataset_json", "archive"),
        ),
        _or_none(_PATH),
    ),
    **dict.fromkeys(("start_from", "pre_ckpt_path"), _or_none(_FILE)),
}
"""Options that name files or folders; their texts are taken to the letter."""
OPTIONS: dict[str, Check] = {
    **PATHS,
    **dict.fromkeys(("supervised", "resume", "overwrite", "amp", "affine", "distributed", "symmetric"), _SWITCH),
    **dict.fromkeys(
        ("moving_series", "fixed_series"), _or_none(Check(is_uid, "the UID of a DICOM series, such as 1.2.840.10008.7"))
    ),
    "reader": _one_of(READERS),
    "outputs": Check(are_outputs, f"{ALL}, or some of {', '.join(OUTPUTS)}, joined by commas"),
    "section": _or_none(_one_of(SECTIONS)),
    "hd95": _or_none(_one_of(HD95_UNITS)),
    "label_numbering": _one_of(("ids", "original")),
    "naming": _one_of(NAMINGS),
    "landmark_coordinates": _one_of(COORDINATES),
    "similarity": _one_of(SIMILARITIES),
    "seed": Check(lambda value: _is_whole(value, 0, 2**32 - 1), "a whole number from 0 to 4294967295"),
    "max_epochs": Check(lambda value: _is_whole(value, 1), "the number of epochs, 1 or more"),
    "train_subjects": Check(
        lambda value: value is None or _is_whole(value, 2), "the number of subjects, 2 or more, or None for all"
    ),
    "max_cpu_seconds": Check(
        lambda value: value is None or (_is_number(value) and value > 0), "seconds above 0, or None for no end"
    ),
    "ema_decay": Check(
        lambda value: value is None or (_is_number(value) and 0 <= value < 1),
        "the share of the average that a step leaves, 0 to below 1, or None for none",
    ),
    "pairs_per_epoch": Check(
        lambda value: value is None or _is_whole(value, 1), "the number of pairs, 1 or more, or None for all"
    ),
    "batch_size": Check(lambda value: _is_whole(value, 1), "the number of pairs in a step, 1 or more"),
    "num_shapes": Check(
        lambda value: value is None or _is_whole(value, 2),
        "the number of maps of random shapes, 2 or more, or None for label maps of a data set",
    ),
    "val_interval": Check(lambda value: _is_whole(value, 1), "the number of epochs between validations, 1 or more"),
    "num_workers": Check(lambda value: _is_whole(value, 0), "the number of processes that read, 0 or more"),
    "io_steps": Check(
        lambda value: _is_whole(value, 0) or _are(value, lambda steps: _is_whole(steps, 0)),
        "the number of steps on each pair, or a list of one per level, 0 for none",
    ),
    "levels": Check(
        lambda value: _are(value, lambda factor: _is_whole(factor, 1)),
        'how many times as large voxels are, level by level, such as "[4, 2, 1]"',
    ),
    **dict.fromkeys(
        ("label_weight", "landmark_weight", "smoothness", "prior_lambda"),
        Check(lambda value: _is_number(value) and value >= 0, "a number, 0 or more"),
    ),
    **dict.fromkeys(
        ("learning_rate", "io_learning_rate", "image_sigma"),
        Check(lambda value: _is_number(value) and value > 0, "a number above 0"),
    ),
    "checkpoint_seconds": Check(lambda value: _is_number(value) and value >= 0, "seconds, 0 or more"),
    "cache_rate": Check(lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1"),
    "zoom": Check(lambda value: _is_number(value) and value > 0, "a number above 0"),
    **dict.fromkeys(
        ("spacing", "io_spacing"),
        Check(
            lambda value: value is None or _are(value, lambda size: _is_number(size) and size > 0, (2, 3)),
            "three voxel sizes in millimetres, such as [1, 1, 1] ([1, 1] for two dimensions), or None",
        ),
    ),
    "window": Check(
        lambda value: value is None or (_are(value, _is_number, (2,)) and value[0] < value[1]),
        "the lowest and the highest intensity that count, such as [-1000, 0], or None",
    ),
    "spatial_size": _SIZE,
    "orientation": _or_none(
        Check(is_orientation, "where the axes go to, a letter each of R or L, A or P, S or I, such as RAS")
    ),
    "image_shape": _SIZES,
    "labels": _or_none(
        Check(
            lambda value: (
                _are(value, lambda label: _is_whole(label, -(2**63), 2**63 - 1)) and len(set(value)) == len(value)
            ),
            'a list of different label values, such as "[1, 2]"',
        )
    ),
}
"""By name; an option that no configuration here has is not looked for."""
# Parts of which a nested option may be wrong, in the order of a workflow; all are made from options alone.
BUILT = (
    "preprocessing",
    "shapes",
    "images",
    "intensity",
    "network_def",
    "loss",
    "optimizer",
    "lr_scheduler",
    "metrics",
)


def check_values(parser: ConfigParser, changes: Mapping[str, Any]) -> None:
    """Refuse values that cannot be used, before anything is read or made.

    Args:
        parser: of a parsed configuration; what is evaluated stays in its cache.
        changes: what the user has set, by name, for the message on a component that cannot be made.

    Raises:
        InputError: naming the option, its value, and what to give instead.
    """
    for name, check in OPTIONS.items():
        if name in parser:
            value = _evaluated(parser, name)
            if not check.accepts(value):
                raise InputError(f"--{name} is {value!r}; give {check.wanted}.")
    if "device" in parser:
        _check_device(parser["device"])
    # The random numbers are those of the run.
    with torch.random.fork_rng(devices=[]):
        for name in BUILT:
            if name in parser:
                _check_component(parser, name, changes)


def _evaluated(parser: ConfigParser, name: str) -> Any:
    given = parser[name]
    try:
        return parser.get_parsed_content(name)
    except Exception as error:
        sentence = sentence_of(error)
        if sentence is None and isinstance(given, str) and given.startswith("$"):
            sentence = (
                f"--{name} {given} cannot be evaluated ({_innermost(error)}): to MONAI, what begins with $ is a Python "
                "expression."
            )
        if sentence is None:
            raise
        raise InputError(sentence) from error


def _check_device(device: Any) -> None:
    """Of a device that was named; an expression chooses one that there is."""
    if isinstance(device, str) and device.startswith(("$", "@")):
        return
    wanted = "give cpu" + (", cuda or cuda:N" if torch.cuda.is_available() else "")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise InputError(f"--device is {device!r}, which is no device; {wanted}.") from None
    if found.type not in ("cpu", *_accelerators()) or (found.type == "cuda" and not _has_gpu(found)):
        raise InputError(f"--device is {str(device)!r}, which is not there; {wanted}.")


def _has_gpu(device: torch.device) -> bool:
    return device.index is None or device.index < torch.cuda.device_count()


def _accelerators() -> list[str]:
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "xpu": torch.xpu.is_available(),
    }
    return [name for name, available in there.items() if available]


def _check_component(parser: ConfigParser, name: str, changes: Mapping[str, Any]) -> None:
    try:
        parser.get_parsed_content(name)
    except Exception as error:
        message = sentence_of(error) or _innermost(error)
        below = [key for key in changes if SEPARATORS.sub("#", key).startswith(f"{name}#")]
        named = [key for key in below if SEPARATORS.split(key)[-1] in message] or below
        if named:
            options = " ".join(f"--{key} {changes[key]}" for key in named)
            raise InputError(f"{options} cannot be used: {message.rstrip('.')}.") from error
        if sentence_of(error) is not None:
            raise InputError(message) from error
        # Not by an option: the run itself fails with the whole story.


def _innermost(error: BaseException) -> str:
    """The first line of what went wrong at first."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")


def as_path_text(value: Any) -> str | None:
    """What a path object, or a text with "~", stands for; None for all else."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str) or (text is value and not text.startswith("~")):
        return None
    return os.path.expanduser(text)
