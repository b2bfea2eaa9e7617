# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a folder of displacement fields, whoever made them: side by side, and resumable."""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from common.checks import InputError
from common.data.label_groups import read_label_groups
from common.evaluation.finished_pairs import FinishedPairs
from common.evaluation.pair_files import PairFiles, locate
from common.evaluation.pair_lists import Challenge, PairList, parse_labels, read_pair_list
from common.evaluation.pair_measure import FOREGROUNDS, Measures, measure_pair
from common.io.formats.conventions import CONVENTIONS
from common.io.landmarks import COORDINATES

logger = logging.getLogger(__name__)
_LISTED = 8
"""Missing pairs named in a message."""


@dataclass(frozen=True)
class EvaluationRequest:
    """What a person asks to be scored: which fields of which pairs, and how.

    Attributes:
        fields: folder of the displacement fields.
        pairs: see :func:`common.evaluation.pair_lists.read_pair_list`.
        images: folder of the images; None judges by labels only.
        labels: folder of the label maps; None leaves label figures out.
        convention: of the fields, one of ``common.io.fields.CONVENTIONS``.
        pattern: form of the fields' names, with {moving} and {fixed}; default: all usual ones.
        section: part of a data list.
        label_groups: JSON that joins labels to groups; its evaluation groups count.
        label_numbering: values of the label maps, "ids" or "original" of that file.
        label_values: labels that count, such as "1-35" or [1, 2]; default: the configuration's, the file's, or all.
        landmarks: folder of landmark files or volumes that have the images' names.
        coordinates: of tables of landmarks, "voxel", "ras" or "lps".
        hd95: "voxels" as the challenges have it, "millimetres", or None to leave it out.
        ndv_mask: where folding counts: one of ``FOREGROUNDS``; default "fixed", for LUMIR's configuration "moving".
        grids: "header" to find the moving image by its header, "array" to ignore headers as the challenges do;
            default: "array" for their configurations, else "header".
        trust: whether to evaluate fields that look like another convention.
        allow_missing: whether to score what is there when pairs are missing.
    """

    fields: str | Path
    pairs: str | Path | Sequence[Any]
    images: str | Path | None = None
    labels: str | Path | None = None
    convention: str = "auto"
    pattern: str | None = None
    section: str | None = None
    label_groups: str | Path | None = None
    label_numbering: str = "ids"
    label_values: str | Sequence[int] | None = None
    landmarks: str | Path | None = None
    coordinates: str = "voxel"
    hd95: str | None = "voxels"
    ndv_mask: str | None = None
    grids: str | None = None
    trust: bool = False
    allow_missing: bool = False

    def settings(self) -> dict[str, Any]:
        """All of it as JSON keeps it; paths absolute, so that others find the files."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}


@dataclass(frozen=True)
class FieldEvaluation:
    """Every pair of a request measured.

    Attributes:
        measures: how.
        files: of the pairs.
        cases: figures of the pairs, as :func:`common.evaluation.pair_measure.measure_pair` gives them.
        missing: pairs of the list that have not all of their files, in words.
        challenge: what the list asks for, where it is an evaluation configuration of a challenge.
        finished: the finished pairs on disk, to be removed when the tables are written.
    """

    measures: Measures
    files: list[PairFiles]
    cases: list[dict[str, Any]]
    missing: list[str]
    challenge: Challenge | None
    finished: FinishedPairs


def evaluate_fields(
    request: EvaluationRequest, output_dir: Path, workers: int | None = None, overwrite: bool = False
) -> FieldEvaluation:
    """Measure every pair of a request, side by side.

    Every finished pair is kept in the folder until all are there: the same call goes on after an interruption.

    Args:
        request: what is scored.
        output_dir: folder that the finished pairs are kept in.
        workers: processes; default: one per processor.
        overwrite: whether to forget pairs that were finished with other settings.

    Raises:
        InputError: when anything given cannot be used; nothing but finished pairs is left behind.
    """
    listed = read_pair_list(request.pairs, request.section)
    settings = request.settings()
    measures = _measures(listed, settings)
    if request.images is None and request.labels is None:
        raise InputError("Neither images nor labels are given; fields are measured on the grid of one of them.")
    complete, missing = locate(
        listed, request.fields, request.images, request.labels, request.landmarks, request.pattern
    )
    _check_missing(missing, complete, request.allow_missing)
    # What the list says of a single pair is kept with the pair.
    del settings["pairs"]
    finished = FinishedPairs(
        output_dir, {**settings, "challenge": listed.challenge and asdict(listed.challenge)}, overwrite
    )
    cases = _measure_all(complete, measures, finished, workers)
    return FieldEvaluation(measures, complete, cases, missing, listed.challenge, finished)


def _measures(listed: PairList, given: Mapping[str, Any]) -> Measures:
    challenge = listed.challenge
    for name, allowed in (
        ("convention", CONVENTIONS),
        ("coordinates", COORDINATES),
        ("hd95", ("voxels", "millimetres", None)),
        ("ndv_mask", (*FOREGROUNDS, None)),
        ("grids", ("header", "array", None)),
    ):
        if given[name] not in allowed:
            known = ", ".join(str(value) for value in allowed if value is not None)
            raise InputError(f"{name} is {given[name]!r}; it must be one of {known}.")
    _, evaluated = read_label_groups(given["label_groups"], given["label_numbering"])
    values = parse_labels(given["label_values"]) or (None if evaluated is None else tuple(evaluated))
    is_lumir = challenge is not None and (challenge.lumir or any(m.metric == "ndv" for m in challenge.metrics))
    measures = Measures(
        convention=given["convention"],
        labels=values,
        label_groups=given["label_groups"],
        label_numbering=given["label_numbering"],
        hd95=given["hd95"],
        foreground=given["ndv_mask"] or ("moving" if is_lumir else "fixed"),
        headers=(given["grids"] or ("header" if challenge is None else "array")) == "header",
        trust=given["trust"],
        lumir=is_lumir,
        coordinates=given["coordinates"],
    )
    if challenge is None:
        return measures
    asked = {metric.metric for metric in challenge.metrics}
    hd95 = measures.hd95 if "hd95" in asked else None
    return replace(measures, labels=values or challenge.labels, shape=challenge.shape, hd95=hd95)


def _plain(value: Any) -> Any:
    """A setting as JSON keeps it; paths absolute, so that others find the files."""
    if isinstance(value, Path):
        return str(value.resolve())
    if isinstance(value, str) and os.sep in value and Path(value).exists():
        return str(Path(value).resolve())
    return [str(item) for item in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def _check_missing(missing: Sequence[str], complete: Sequence[PairFiles], allowed: bool) -> None:
    total = len(missing) + len(complete)
    names = "; ".join(missing[:_LISTED]) + (f"; and {len(missing) - _LISTED} more" if len(missing) > _LISTED else "")
    if missing and not complete:
        raise InputError(f"Of none of the {total} pairs all files were found: {names}.")
    if missing and not allowed:
        raise InputError(
            f"{len(missing)} of {total} pairs are not complete: {names}. Score the others with --allow_missing true."
        )
    if len({files.name for files in complete}) < len(complete):
        raise InputError("The pair list holds different images that have one name; give them names of their own.")


def _measure_all(
    pairs: Sequence[PairFiles], measures: Measures, finished: FinishedPairs, workers: int | None
) -> list[dict[str, Any]]:
    """Cases of all pairs in their order; what is finished already is not done again."""
    left = [pair for pair in pairs if finished.case(pair) is None]
    if len(left) < len(pairs):
        logger.info("%d of %d pairs are finished already.", len(pairs) - len(left), len(pairs))
    workers = min(_processors() if workers is None else workers, len(left))
    if workers < 1 and left:
        raise InputError(f"workers is {workers}; it must be 1 or more.")
    try:
        with tqdm(total=len(pairs), initial=len(pairs) - len(left), desc="Pairs", unit="pair", mininterval=1.0) as bar:
            for pair, case in _measured(left, measures, workers):
                finished.keep(pair, case)
                bar.update()
    finally:
        finished.discard_if_empty()
    return [case for case in map(finished.case, pairs) if case is not None]


def _measured(
    pairs: Sequence[PairFiles], measures: Measures, workers: int
) -> Iterator[tuple[PairFiles, dict[str, Any]]]:
    """Pairs and their cases, in the order in which they are finished."""
    if workers <= 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for pair in pairs:
                yield pair, measure_pair(pair, measures)
        finally:
            torch.set_num_threads(threads)
        return
    # A copy of this process costs milliseconds, a fresh one seconds; other systems have no safe copies.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (os.getpid(),))
    try:
        futures: dict[Future[dict[str, Any]], PairFiles] = {pool.submit(measure_pair, p, measures): p for p in pairs}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise InputError(
            f"One of {workers} processes was killed, most likely for want of memory (about 1 GB each): repeat the "
            "command with fewer --workers, finished pairs are kept."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(parent: int) -> None:
    """One thread each; an interruption by the keyboard is the parent's to handle, and its end ends the worker."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    # A killed parent closes no pipe: its workers would wait for the next pair for ever.
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
