# SPDX-License-Identifier: Apache-2.0
"""Lists of pairs to evaluate: CSV, JSON lists, data lists and evaluation configurations of Learn2Reg and LUMIR."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.checks import InputError
from common.data.readers.datalist import read_datalist
from common.data.subjects import read_section

_MOST_LABELS = 100_000
_NAMED = ("moving", "fixed", "field", "moving_label", "fixed_label", "inverse")

SECTIONS = ("validation", "test", "training")
METRICS = ("dice", "hd95", "sdlogj", "ndv", "tre")
COSTS = ("seconds", "cpu_seconds", "peak_memory_gb")
"""What a list may say of each registration, as numbers."""


@dataclass(frozen=True)
class ListedPair:
    """One line of a pair list; all names as they are written there.

    Attributes:
        moving: id, file name or path of the moving image.
        fixed: the same of the fixed image.
        field: file of the displacement field; None where it is found by its name.
        moving_label: label map of the moving image; None where it is found by its name.
        fixed_label: the same of the fixed image.
        inverse: file of the field back, where there is one.
        costs: what the registration took, those of ``COSTS`` that the list says, by name.
    """

    moving: str
    fixed: str
    field: str | None = None
    moving_label: str | None = None
    fixed_label: str | None = None
    inverse: str | None = None
    costs: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class ChallengeMetric:
    """One entry of "evaluation_methods" in a configuration of the challenges.

    Attributes:
        name: heading in the challenge's results, such as "DSC".
        metric: one of ``METRICS``.
        labels: label values, for "dice" and "hd95".
        dest: folder of the landmarks, for "tre".
    """

    name: str
    metric: str
    labels: tuple[int, ...] = ()
    dest: str | None = None


@dataclass(frozen=True)
class Challenge:
    """What an evaluation configuration asks for.

    Attributes:
        name: of the task.
        metrics: in the order of the file.
        shape: spatial shape that every field must have.
        masked: whether SDlogJ counts inside masks only.
        lumir: whether this is LUMIR's dialect: landmarks are label volumes, and folding counts in the moving
            foreground.
    """

    name: str
    metrics: tuple[ChallengeMetric, ...]
    shape: tuple[int, ...] | None
    masked: bool
    lumir: bool

    @property
    def labels(self) -> tuple[int, ...] | None:
        """Label values of Dice and HD95, None without either."""
        return next((metric.labels for metric in self.metrics if metric.labels), None)


@dataclass(frozen=True)
class PairList:
    """Pairs in their order, and what the file says beyond them."""

    pairs: tuple[ListedPair, ...]
    challenge: Challenge | None = None


def read_pair_list(source: str | Path | Sequence[Any], section: str | None = None) -> PairList:
    """Read which images were registered to which.

    Args:
        source: a CSV with the columns ``moving`` and ``fixed`` (or ``moving_id`` and ``fixed_id``, as this
            evaluation itself writes them; in any order) and, if wanted, ``field``, ``moving_label``,
            ``fixed_label``, ``COSTS``, ``inverse`` (on the fixed image's grid, as the field); a JSON list of
            {"moving", "fixed", ...}, or of [fixed, moving], where the order is that of Learn2Reg's lists and file
            names; a data list of Learn2Reg or MONAI; an evaluation configuration with "eval_pairs"; or such a list
            itself.
        section: part of a data list, "validation", "test" or "training"; default: the first with pairs or subjects.

    Returns:
        The pairs and, for an evaluation configuration, what it asks for.

    Raises:
        InputError: when the file is missing, damaged, of another kind, without pairs, or lists a pair twice.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.is_file():
            raise InputError(
                f"The pair list {path} does not exist; give a CSV with the columns moving,fixed, or a JSON."
            )
        listed = _read_file(path, section)
        name = str(path)
    else:
        name = "the given list"
        listed = PairList(tuple(_pair(entry, name) for entry in source))
    if not listed.pairs:
        raise InputError(f"The pair list {name} holds no pair.")
    seen = set()
    for pair in listed.pairs:
        if (pair.moving, pair.fixed) in seen:
            raise InputError(f"The pair list {name} holds the pair moving {pair.moving}, fixed {pair.fixed} twice.")
        seen.add((pair.moving, pair.fixed))
    return listed


def parse_labels(text: str | Sequence[int] | None) -> tuple[int, ...] | None:
    """Label values of a text such as "1-35" or "1,2,5-7".

    Raises:
        InputError: when it is something else, or a value repeats.
    """
    if text is None:
        return None
    parts = text.replace(" ", "").split(",") if isinstance(text, str) else [str(value) for value in text]
    values: list[int] = []
    for part in parts:
        found = re.fullmatch(r"(-?\d+)(?:-(-?\d+))?", part)
        if not found:
            raise InputError(f"The label values {text!r} are not of the form 1-35 or 1,2,5-7.")
        first, last = int(found[1]), int(found[2] or found[1])
        if last - first > _MOST_LABELS:
            raise InputError(f"The label values {text!r} are more than {_MOST_LABELS}: list those that count.")
        values += range(first, last + 1)
    if not values or len(set(values)) < len(values):
        raise InputError(f"The label values {text!r} are empty or repeat a value.")
    return tuple(values)


def _read_file(path: Path, section: str | None) -> PairList:
    if path.suffix == ".csv":
        return PairList(tuple(_from_csv(path)))
    if path.suffix != ".json":
        raise InputError(f"The pair list {path} is neither .csv nor .json.")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"The file {path} is not valid JSON ({error}); correct it or copy it anew.") from error
    if isinstance(content, list):
        return PairList(tuple(_pair(entry, str(path)) for entry in content))
    if isinstance(content, dict) and "eval_pairs" in content:
        pairs = tuple(_pair(entry, str(path)) for entry in content["eval_pairs"])
        return PairList(pairs, _challenge(content, path))
    if isinstance(content, dict):
        return PairList(tuple(_from_data_list(path, section)))
    raise InputError(f"The pair list {path} holds a JSON {type(content).__name__}; a list or an object is expected.")


def _from_csv(path: Path) -> Iterable[ListedPair]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            rows = list(reader)
            columns = set(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"The pair list {path} cannot be read as CSV ({error}).") from error
    short = {"moving", "fixed"} <= columns
    if not short and not {"moving_id", "fixed_id"} <= columns:
        raise InputError(f"The first line of the pair list {path} must name the columns moving,fixed[,field].")
    for row in rows:
        ids = {} if short else {"moving": row["moving_id"], "fixed": row["fixed_id"]}
        yield _pair({**row, **ids}, str(path))


def _pair(entry: Any, source: str) -> ListedPair:
    if isinstance(entry, ListedPair):
        return entry
    if isinstance(entry, Sequence) and not isinstance(entry, str) and len(entry) in (2, 3):
        # Learn2Reg's order, as in its names disp_FIXED_MOVING; everywhere else here the moving image comes first.
        entry = dict(zip(("fixed", "moving", "field"), entry, strict=False))
    if not isinstance(entry, Mapping) or not entry.get("moving") or not entry.get("fixed"):
        raise InputError(f"The pair list {source} has the entry {entry!r}; expected moving and fixed.")
    given = {name: str(entry[name]) for name in _NAMED if entry.get(name) not in (None, "")}
    costs = tuple((name, _cost(name, entry[name], source)) for name in COSTS if entry.get(name) not in (None, ""))
    return ListedPair(**{name: os.path.expanduser(text) for name, text in given.items()}, costs=costs)


def _cost(name: str, given: Any, source: str) -> float:
    try:
        return float(given)
    except (ValueError, TypeError) as error:
        raise InputError(f"The pair list {source} gives {given!r} as {name}: a number is meant.") from error


def _from_data_list(path: Path, section: str | None) -> Iterable[ListedPair]:
    listings = read_datalist(path.parent, path.name)
    names = [section] if section else [name for name in SECTIONS if name in listings]
    chosen = next((name for name in names if name in listings and listings[name].pairs), names[0] if names else None)
    if chosen is None or chosen not in listings:
        raise InputError(
            f"The data list {path} has no {section or 'validation, test or training'} section with images."
        )
    listing = read_section(path.parent, "datalist", chosen, path.name)
    for moving, fixed in listing.every_pair():
        sides = {"moving": listing.subjects[moving], "fixed": listing.subjects[fixed]}
        labels = {f"{side}_label": subject.get("label") for side, subject in sides.items()}
        yield _pair({**{side: subject["image"] for side, subject in sides.items()}, **labels}, str(path))


def _challenge(content: Mapping[str, Any], path: Path) -> Challenge:
    try:
        metrics = tuple(
            ChallengeMetric(
                str(method["name"]),
                str(method["metric"]),
                tuple(int(label) for label in method.get("labels", ())),
                method.get("dest"),
            )
            for method in content["evaluation_methods"]
        )
        shape = tuple(int(n) for n in content["expected_shape"][:3]) if "expected_shape" in content else None
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"The evaluation configuration {path} is damaged ({type(error).__name__}: {error})."
        ) from error
    unknown = [metric.metric for metric in metrics if metric.metric not in METRICS]
    if unknown:
        raise InputError(f"The configuration {path} asks for {unknown[0]!r}; known are {', '.join(METRICS)}.")
    if len({metric.labels for metric in metrics if metric.labels}) > 1:
        raise InputError(f"The configuration {path} asks for Dice and HD95 of different labels; make two of it.")
    lumir = "task_name" not in content and "name" in content
    name = str(content.get("task_name", content.get("name", path.stem)))
    return Challenge(name, metrics, shape, bool(content.get("masked_evaluation", False)), lumir)
