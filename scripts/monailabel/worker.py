# SPDX-License-Identifier: Apache-2.0
"""Registers for the app, in a process that stays warm: ``worker.py '{"bundle": "eoir_oasis", "options": {}}'``.

It runs in the environment of the bundles, which MONAI Label's own is not, and loads the bundle once. A request is a
line of JSON on standard input, ``{"task": "propagate", ...}``; the answer a line on standard output, ``{"answer":
{...}}`` or ``{"error": "one sentence"}``. The first line, which nobody asks for, says which bundle it is. Images come
and go as files.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from common.threads import share_cores

share_cores()

import nibabel
import numpy as np
import torch

from common.alignment.likeness import likeness, look
from common.alignment.mutual_information import BlockScan
from common.api import load_bundle
from common.checks import InputError
from common.cli import sentence_of
from common.io.nifti import read_image, read_labels, write_image
from common.propagation import Atlas, Propagation, propagate
from common.spatial import Grid


class Desk:
    """Answers requests with one bundle.

    Args:
        bundle: as :func:`common.api.load_bundle` returns it.
    """

    def __init__(self, bundle: Any) -> None:
        self.bundle = bundle
        self._looks: dict[tuple[str, int], BlockScan] = {}
        self._last: tuple[str, dict[str, Any], Propagation] | None = None

    def about(self) -> dict[str, Any]:
        """Which bundle answers."""
        return {"name": self.bundle.name, "version": self.bundle.version}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer a request; the other entries are the arguments of the method that ``task`` names."""
        tasks: dict[str, Callable[..., dict[str, Any]]] = {
            "about": self.about,
            "propagate": self.propagate,
            "register": self.register,
            "likeness": self.likeness,
            "labels": self.labels,
        }
        arguments = dict(request)
        task = tasks.get(arguments.pop("task", ""))
        if task is None:
            raise InputError(f"There is no task {request.get('task')!r}; there are {', '.join(tasks)}.")
        return task(**arguments)

    def propagate(
        self, target: str, atlases: list[dict[str, Any]], count: int, vote: str, label: str, confidence: str | None
    ) -> dict[str, Any]:
        """Bring the labels of the ``count`` atlases that are most like the target onto it.

        Args:
            target: file of the scan.
            atlases: name, image, label (files) and, where the label map's values are to be changed, values, from old
                to new.
            count: how many of them.
            vote: see :func:`common.propagation.propagate`.
            label: file that is written, .nii.gz or .nii.
            confidence: likewise, or None.
        """
        # The same question again, as for the confidence map after the labels, costs the writing alone.
        changed = [
            _changed(file) for file in (target, *(atlas[kind] for atlas in atlases for kind in ("image", "label")))
        ]
        key = json.dumps([target, atlases, changed, count, vote])
        if self._last is None or self._last[0] != key:
            started = time.perf_counter()
            chosen = self._most_alike(target, atlases, count)
            looked = time.perf_counter()
            found = propagate(self.bundle, [_atlas(atlas) for atlas in chosen], target, vote)
            seconds = {"choice": looked - started, "registration": time.perf_counter() - looked}
            figures: dict[str, Any] = {
                "similarities": {name: round(value, 4) for name, value in found.similarities.items()},
                "agreement": None if found.agreement is None else round(found.agreement, 4),
                "mean_confidence": round(float(found.confidence.mean()), 4),
                "label_values": [int(value) for value in np.unique(found.label) if value != 0],
                "seconds": {name: round(value, 2) for name, value in seconds.items()},
            }
            self._last = key, figures, found
        _, figures, found = self._last
        affine = torch.from_numpy(np.asarray(found.affine, dtype=np.float64))
        started = time.perf_counter()
        write_image(label, torch.from_numpy(_smallest(found.label))[None], affine)
        if confidence is not None:
            write_image(confidence, torch.from_numpy(found.confidence)[None], affine)
        return {**figures, "seconds": {**figures["seconds"], "writing": round(time.perf_counter() - started, 2)}}

    def _most_alike(self, target: str, atlases: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
        if len(atlases) <= count:
            return atlases
        fixed = self._look(target)
        return sorted(atlases, key=lambda atlas: -likeness(self._look(atlas["image"]), fixed))[:count]

    def register(self, moving: str, fixed: str, result: str, file: str, moving_label: str | None) -> dict[str, Any]:
        """Register two scans and write one result.

        Args:
            moving: file of the scan that is warped.
            fixed: file of the scan that stays.
            result: by its name in ``--outputs`` of inference, such as "transform".
            file: that is written.
            moving_label: label map of the moving scan.
        """
        started = time.perf_counter()
        found = self.bundle.register(moving, fixed, moving_label=moving_label)
        registered = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            written = found.save(folder, outputs=[result])
            if not written:
                raise InputError(f"The way from {moving} to {fixed} has no {result}: its field folds.")
            shutil.move(written[0], file)
        seconds = {"registration": registered - started, "writing": time.perf_counter() - registered}
        return {"seconds": {name: round(value, 2) for name, value in seconds.items()}}

    def likeness(self, scans: dict[str, str], references: dict[str, str]) -> dict[str, Any]:
        """Per scan how like it is to the reference that is most like it, in [0, 1]; files by name."""
        found = {}
        for name, file in scans.items():
            fixed = self._look(file)
            found[name] = max(likeness(self._look(other), fixed) for other in references.values())
        return {"likeness": found}

    def labels(self, file: str) -> dict[str, Any]:
        """The values of a label map, without the background."""
        values, _ = read_labels(file)
        return {"values": [value for value in values.unique().tolist() if value != 0]}

    def _look(self, file: str) -> BlockScan:
        key = file, _changed(file)
        if key not in self._looks:
            values, affine = read_image(file)
            grid = Grid.of(values.shape, affine)
            self._looks[key] = look(values.reshape(1, *grid.shape), grid, file)
        return self._looks[key]


def _changed(file: str) -> int:
    try:
        return os.stat(file).st_mtime_ns
    except FileNotFoundError:
        return 0  # The reader says it better.


def _atlas(atlas: dict[str, Any]) -> Atlas:
    label: Any = atlas["label"]
    if atlas.get("values"):
        values, affine = read_labels(label)
        # Apart from what is renamed, nothing may keep a number that another label has now.
        renamed = np.zeros(values.shape, np.int32)
        for old, new in atlas["values"].items():
            renamed[values.numpy() == int(old)] = new
        label = nibabel.Nifti1Image(renamed, affine.numpy())
    return Atlas(atlas["name"], atlas["image"], label)


def _smallest(label: np.ndarray) -> np.ndarray:
    """The label map in the smallest type that viewers know and that holds its values."""
    low, high = int(label.min()), int(label.max())
    fits = (kind for kind in (np.uint8, np.int16) if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)
    return label.astype(next(fits, np.int32))


def serve(desk: Desk, lines: Iterable[str], say: Callable[[dict[str, Any]], None]) -> None:
    """Answer lines until there are no more.

    Args:
        desk: who answers.
        lines: of JSON.
        say: takes each answer.
    """
    say({"answer": desk.about()})
    for line in lines:
        try:
            say({"answer": desk.answer(json.loads(line))})
        except Exception as error:  # A request that fails is no reason for the process to end.
            say({"error": _sentence(error)})


def _sentence(error: Exception) -> str:
    sentence = sentence_of(error)
    if sentence is None:
        traceback.print_exc()
        sentence = f"The registration failed ({type(error).__name__}: {error}); the log of the server says where."
    return sentence


def main() -> None:
    """Command line."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    # What libraries print goes where the log goes.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=channel, flush=True)

    settings = json.loads(sys.argv[1])
    try:
        bundle = load_bundle(settings["bundle"], trust=settings.get("trust", False), **settings.get("options", {}))
    except Exception as error:  # The app says it, and ends.
        say({"error": _sentence(error)})
        return
    serve(Desk(bundle), sys.stdin, say)


if __name__ == "__main__":
    main()
