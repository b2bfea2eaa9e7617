# SPDX-License-Identifier: Apache-2.0
"""Which scan to label next, and how far propagated labels can be trusted."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy

from scripts.monailabel.client import Worker, WorkerError
from scripts.monailabel.stores import labelled, unlabelled
from scripts.monailabel.tasks import Propagate

logger = logging.getLogger(__name__)


class LeastSimilar(Strategy):
    """The unlabelled scan that is least like any labelled one: its labels would help most.

    Args:
        worker: compares.
    """

    def __init__(self, worker: Worker) -> None:
        super().__init__("The scan that is least like any of the labelled ones")
        self.worker = worker

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """Id of the scan, and how like it is to its nearest labelled one; None where all are labelled."""
        scans = unlabelled(datastore)
        if not scans:
            return None
        references = {scan.name: scan.image for scan in labelled(datastore)}
        if not references:
            # The first one to be labelled.
            return {"id": min(scans)}
        likeness = self.worker.ask("likeness", scans=scans, references=references)["likeness"]
        chosen = min(scans, key=lambda name: (likeness[name], name))
        return {"id": chosen, "likeness": round(likeness[chosen], 4)}


class Agreement(ScoringMethod):
    """How far the labelled scans agree on the labels of those without: mean Dice of each two, see ``propagate``.

    Args:
        propagate: the task, with its number of labelled scans.
        find: file of a scan by its id.
    """

    def __init__(self, propagate: Propagate, find: Callable[[str], str]) -> None:
        super().__init__("Mean Dice of the labels that each two labelled scans give a scan without; 1 is best")
        self.propagate, self.find = propagate, find

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Figures by id, which are noted in the store, too."""
        if len(labelled(datastore)) < 2:
            raise WorkerError("Agreement needs two labelled scans at least: label another one.")
        result = {}
        for name in unlabelled(datastore):
            # The strategy and the store may have given the path of a file before.
            file, answer = self.propagate({**request, "image": self.find(name), "image_id": name, "result": "label"})
            os.unlink(file)
            info = {key: answer[key] for key in ("agreement", "mean_confidence", "similarities")}
            datastore.update_image_info(name, {"agreement": info})
            result[name] = info
            logger.info("%s: agreement %s", name, info["agreement"])
        return result
