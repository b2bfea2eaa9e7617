# SPDX-License-Identifier: Apache-2.0
"""Threads that fill the cache, when something goes wrong."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import pytest
from monai.transforms import MapTransform

from common.checks import InputError
from common.data import PairDataset
from common.data.cache import SubjectCache

SUBJECTS = 200
THREADS = 3


class Decode(MapTransform):
    """Takes a while per subject, counts, and lets a test interfere."""

    def __init__(self, interfere: Callable[[int], None]) -> None:
        super().__init__("image")
        self.interfere = interfere
        self.begun: list[int] = []
        self.ended: list[int] = []

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        number = data["image"]
        self.begun.append(number)
        try:
            time.sleep(0.02)
            self.interfere(number)
        finally:
            self.ended.append(number)
        return dict(data)


def fill(transform: Decode) -> PairDataset:
    subjects = [{"id": str(number), "image": number} for number in range(SUBJECTS)]
    return PairDataset(subjects, transform, num_workers=THREADS, progress=False)


def refuse(refused: Callable[[int], bool]) -> Callable[[int], None]:
    def interfere(number: int) -> None:
        if refused(number):
            raise InputError(f"Subject {number} cannot be used.")

    return interfere


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Shells start what they run in the background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt(number: int) -> None:
    if number == 4:
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("interfere", "error", "message"),
    [
        (refuse(lambda number: True), InputError, "Subject 0 "),
        (refuse(lambda number: number == 7), InputError, "Subject 7 "),
        (refuse(lambda number: number >= 5), InputError, "Subject 5 "),
        (interrupt, KeyboardInterrupt, None),
    ],
    ids=["all", "one of many", "the first is named", "interrupted"],
)
def test_nothing_runs_on_after_an_error(
    interfere: Callable[[int], None], error: type[BaseException], message: str | None
) -> None:
    transform = Decode(interfere)
    with pytest.raises(error, match=message):
        fill(transform)
    begun = list(transform.begun)
    assert sorted(begun) == sorted(transform.ended)
    time.sleep(0.1)
    assert begun == transform.begun
    assert len(transform.begun) < SUBJECTS / 2


def test_subjects_come_in_their_order() -> None:
    subjects = [{"image": number} for number in range(20)]
    slow_first = Decode(lambda number: time.sleep(0.002 * (20 - number)))
    cache = SubjectCache(subjects, slow_first, cache_rate=0.5, num_workers=THREADS, progress=False)
    assert [cache[number] for number in range(20)] == subjects
    assert sorted(slow_first.begun) == list(range(20))
