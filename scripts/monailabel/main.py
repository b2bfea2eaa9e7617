# SPDX-License-Identifier: Apache-2.0
"""MONAI Label app that registers the scans of a store by a registration bundle; README.md beside it says how."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.exception import MONAILabelException
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.tasks.activelearning.first import First

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts.monailabel.client import Worker, WorkerError
from scripts.monailabel.conf import settings_of
from scripts.monailabel.learning import Agreement, LeastSimilar
from scripts.monailabel.stores import labelled
from scripts.monailabel.tasks import Propagate, Register

logger = logging.getLogger(__name__)


class RegistrationApp(MONAILabelApp):
    """Labels and transforms by registration; ``conf`` as :func:`scripts.monailabel.conf.settings_of` reads it."""

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        with _ends_in_a_sentence():
            self.settings = settings_of(conf)
            worker = str(Path(__file__).with_name("worker.py"))
            given = json.dumps(self.settings.bundle)
            self.worker = Worker([self.settings.python or sys.executable, "-W", "ignore", worker, given])
            about = self.worker.start()
            super().__init__(
                app_dir=app_dir,
                studies=studies,
                conf=dict(conf),
                name=f"Registration by {about['name']}",
                description="Brings the labels of labelled scans to others, and registers two of them",
                version=about["version"],
            )
        # It would register every scan without labels each time that one is asked for.
        self._auto_update_scoring = False

    def init_infers(self) -> dict[str, InferTask]:
        """The tasks by name."""
        labels = self.settings.labels or self._labels_of_store()
        propagate = Propagate(self.worker, self.datastore, labels, self.settings.atlases)
        return {"propagate": propagate, "register": Register(self.worker, self.datastore, self.find)}

    def init_strategies(self) -> dict[str, Strategy]:
        """The strategies by name."""
        return {"least_similar": LeastSimilar(self.worker), "first": First()}

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        """The ways of scoring by name."""
        return {"agreement": Agreement(self._infers["propagate"], self.find)}

    def infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Run a task; mistakes and failures end in a sentence."""
        with _answers_in_a_sentence():
            name = str(request.get("image"))
            known = request if os.path.exists(name) else {**request, "image_id": name, "image": self.find(name)}
            return dict(super().infer(known, datastore))

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        """Ask a strategy, likewise."""
        with _answers_in_a_sentence():
            return dict(super().next_sample(request))

    def scoring(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Score, likewise."""
        with _answers_in_a_sentence():
            return dict(super().scoring(request, datastore))

    def find(self, name: str) -> str:
        """File of a scan of the store.

        Raises:
            HTTPException: 404 where there is none of this id.
        """
        try:
            file = str(self.datastore().get_image_uri(name) or "")
        except Exception as error:  # Of the DICOMweb client, the network, and what SimpleITK says of an empty folder.
            raise HTTPException(404, f"The store gives no scan {name} ({_first_line(error)}).") from error
        if not os.path.exists(file):
            raise HTTPException(404, f"There is no scan {name} in the store: GET /datastore/?output=all lists them.")
        return file

    def _labels_of_store(self) -> dict[str, int]:
        """Names of the values of the first label map that the store has."""
        scans = labelled(self.datastore())
        values = self.worker.ask("labels", file=scans[0].label)["values"] if scans else []
        return {f"label {value}": value for value in values}


@contextmanager
def _answers_in_a_sentence() -> Iterator[None]:
    try:
        yield
    except HTTPException:
        raise
    except WorkerError as error:
        raise HTTPException(400, str(error)) from error
    except MONAILabelException as error:
        raise HTTPException(404, error.msg) from error
    except Exception as error:
        logger.exception("A request failed")
        raise HTTPException(
            500, f"The request failed ({type(error).__name__}: {_first_line(error)}); the log of the server says where."
        ) from error


@contextmanager
def _ends_in_a_sentence() -> Iterator[None]:
    """An app that cannot work ends the server, which by itself would print a page of calls about it."""
    try:
        yield
    except (WorkerError, HTTPException) as error:
        print(f"ERROR: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]
