# SPDX-License-Identifier: Apache-2.0
"""What can be asked for a scan: labels of the labelled ones, or its registration with another one."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from scripts.monailabel.client import Worker, WorkerError
from scripts.monailabel.stores import Scan, as_atlases, labelled

VOTES = ("similarity", "majority")
RESULTS = {
    "transform": ".h5",
    "warped": ".nii.gz",
    "label": ".nii.gz",
    "displacement": ".nii.gz",
    "inverse": ".h5",
    "jacobian": ".nii.gz",
}
"""What ``register`` returns, by the names of inference's ``--outputs``, and its ending."""


class Propagate(InferTask):
    """Brings the labels of stored, labelled scans onto the one that is asked for.

    Args:
        worker: registers.
        store: gives the store.
        labels: value by name.
        count: how many labelled scans are used unless a request says otherwise.
    """

    def __init__(self, worker: Worker, store: Callable[[], Datastore], labels: Mapping[str, int], count: int) -> None:
        super().__init__(
            InferType.SEGMENTATION,
            dict(labels),
            3,
            "Labels of the labelled scans of the store, brought onto this one by registration",
            {"atlases": count, "vote": list(VOTES), "result": ["label", "confidence"]},
        )
        self.worker, self.store = worker, store

    def is_valid(self) -> bool:
        """Whether the task is offered."""
        return True

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The file of the label map, or of its confidence; and how it came about."""
        started = time.time()
        wanted = _chosen(request, "result", ("label", "confidence"))
        atlases, count = self._atlases(request.get("atlases", self.config()["atlases"]), request.get("image_id"))
        files = {"label": _file(".nii.gz"), "confidence": _file(".nii.gz") if wanted == "confidence" else None}
        answer = self.worker.ask(
            "propagate",
            target=request["image"],
            atlases=as_atlases(self.store(), atlases, self.labels),
            count=count,
            vote=_chosen(request, "vote", VOTES),
            **files,
        )
        file = files[wanted]
        assert file is not None
        values = answer["label_values"]
        named = {value: name for name, value in self.labels.items()}
        answer |= {
            "label_names": {named.get(value, f"label {value}"): value for value in values},
            "label_info": [{"name": named.get(value, f"label {value}")} for value in values],
            "latencies": {**answer.pop("seconds"), "total": round(time.time() - started, 2)},
        }
        if wanted == "confidence":
            os.unlink(str(files["label"]))
        return _as(file, request.get("result_extension")), answer

    def _atlases(self, asked: Any, target: str | None) -> tuple[list[Scan], int]:
        """The labelled scans that may be used, and how many of them."""
        there = [scan for scan in labelled(self.store()) if scan.name != target]
        if not there:
            raise WorkerError(
                "No other scan of the store has a final label map: label one, and submit it or put it there."
            )
        if isinstance(asked, str | list) and not str(asked).isdigit():
            names = [asked] if isinstance(asked, str) else asked
            missing = [name for name in names if name not in {scan.name for scan in there}]
            if missing:
                raise WorkerError(
                    f"There is no labelled scan {missing[0]} in the store beside the one that is asked for."
                )
            return [scan for scan in there if scan.name in names], len(names)
        if int(asked) < 1:
            raise WorkerError(f"atlases is {asked}: give a number from 1 on, or ids of labelled scans.")
        return there, int(asked)


class Register(InferTask):
    """Registers a stored scan, ``moving``, to the one that is asked for, which is the fixed one.

    Args:
        worker: registers.
        store: gives the store.
        find: file of a scan by its id; refuses unknown ones.
    """

    def __init__(self, worker: Worker, store: Callable[[], Datastore], find: Callable[[str], str]) -> None:
        super().__init__(
            InferType.OTHERS,
            [],
            3,
            "Registers the stored scan 'moving' to this one, which stays as it is",
            {"moving": "", "result": list(RESULTS)},
        )
        self.worker, self.store, self.find = worker, store, find

    def is_valid(self) -> bool:
        """Whether the task is offered."""
        return True

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The file of the result that is asked for; and figures."""
        started = time.time()
        name = request.get("moving")
        if not name:
            raise WorkerError("register needs moving, the id of the stored scan that is warped to this one.")
        wanted = _chosen(request, "result", tuple(RESULTS))
        label = None
        if wanted == "label":
            label = next((scan.label for scan in labelled(self.store()) if scan.name == name), None)
            if label is None:
                raise WorkerError(f"{name} has no final label map that could be warped.")
        file = _file(RESULTS[wanted])
        answer = self.worker.ask(
            "register", moving=self.find(name), fixed=request["image"], result=wanted, file=file, moving_label=label
        )
        seconds = {**answer.pop("seconds"), "total": round(time.time() - started, 2)}
        return file, {**answer, "moving": name, "fixed": request.get("image_id"), "latencies": seconds}


def _chosen(request: Mapping[str, Any], name: str, choices: Sequence[str]) -> str:
    """One of the choices; clients that show them send back the whole list where nothing was chosen."""
    value = request.get(name) or choices[0]
    value = value[0] if isinstance(value, list) else value
    if value not in choices:
        raise WorkerError(f"{name} is {value!r}; it is one of {', '.join(choices)}.")
    return str(value)


def _file(ending: str) -> str:
    """A new empty file, which MONAI Label removes when it has sent it."""
    handle, name = tempfile.mkstemp(suffix=ending)
    os.close(handle)
    return name


def _as(file: str, ending: str | None) -> str:
    """The file in another form of images, such as ".nrrd", which 3D Slicer asks for."""
    if not ending or file.endswith(ending):
        return file
    import SimpleITK

    other = _file(ending)
    try:
        SimpleITK.WriteImage(SimpleITK.ReadImage(file), other, True)
    except RuntimeError as error:
        os.unlink(other)
        raise WorkerError(f"Images cannot be written as {ending}: ask for .nii.gz or .nrrd.") from error
    finally:
        os.unlink(file)
    return other
