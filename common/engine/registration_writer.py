# SPDX-License-Identifier: Apache-2.0
"""What inference leaves behind: per pair the warped scan, the transform in forms that tools read, a picture."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys

from common.data.label_groups import Lookup, MapLabelsd
from common.data.request import pair_name
from common.engine.batch import registered
from common.engine.clock import NetworkClock
from common.engine.registration import Registration
from common.engine.registration_figures import sentence
from common.engine.registration_files import write_files
from common.engine.registration_folder import RegistrationFolder
from common.io.map_files import maps_of
from common.io.provenance import peak_memory

logger = logging.getLogger(__name__)


class RegistrationWriter:
    """Writes what belongs to each pair, and notes it in the folder's record when all of it is there.

    Of the folder's outputs, per pair ``<moving>_to_<fixed>_``: ``warped.nii.gz`` and ``warped_label.nii.gz`` on the
    fixed scan's grid; ``transform.h5`` (ITK: displacement, then affine) and ``inverse.h5``; ``displacement.nii.gz``
    (the whole transform, millimetres LPS, as ITK, ANTs and 3D Slicer read it); ``ddf.nii.gz`` (the same in voxels of
    the fixed grid); ``jacobian.nii.gz`` (its determinant); ``panel.png``. Of a network that returns the way back, too,
    ``inverse_ddf.nii.gz`` (the whole of it, in voxels of the fixed grid), and how far it misses to undo the other. What
    the network returns under a name that ends in ``_map`` is written under that name, on the fixed scan's grid, and
    shown in the panel; of ``deviation`` that is ``uncertainty.nii.gz``, the root of its mean squared length in
    millimetres, before the affine alignment. ``map.pt`` holds ``map`` and ``inverse_map`` where they are functions that
    a file can hold (:mod:`common.io.map_files`). All files of two images are of two dimensions; of PNG, ``warped.png``
    and ``warped_label.png`` are written, too, their values rounded.

    Args:
        folder: where, what, and whether to overwrite.
        labels: label values that the Dice is the mean of, where both scans have label maps; None for all that both
            have.
        lookup: group of each label value of the files, see :func:`common.data.read_label_groups`; None takes them as
            they are. Warped label maps keep the values of the files.
    """

    def __init__(
        self, folder: RegistrationFolder, labels: Sequence[int] | None = None, lookup: Lookup | None = None
    ) -> None:
        self.folder = folder
        self._clock = NetworkClock()
        self.labels = labels
        self.group = MapLabelsd("label", lookup)
        self._functions: dict[str, Any] = {}

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        self._clock.attach(engine)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._keep_functions)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write)

    def _keep_functions(self, engine: Engine) -> None:
        """Takes the functions out of the outputs, which could not be taken apart with them."""
        outputs = engine.state.output[CommonKeys.PRED]
        self._functions = {name: outputs.pop(name) for name in [*outputs] if callable(outputs[name])}

    def _write(self, engine: Engine) -> None:
        pairs = registered(engine.state.output)
        maps, self._functions = maps_of(self._functions), {}
        for number, pair in enumerate(pairs):
            result = Registration(pair, None if maps is None else (maps, number))
            self.folder.claim()
            name = pair_name(pair["moving_id"], pair["fixed_id"])
            files = write_files(result, self.folder.output_dir / name, self.folder.outputs)
            entry = {
                "moving": pair["path_moving"],
                "fixed": pair["path_fixed"],
                "moving_id": pair["moving_id"],
                "fixed_id": pair["fixed_id"],
                "files": [path.name for path in files],
                "network_seconds": round(self._clock.seconds / len(pairs), 3),
                **result.record(self.labels, self.group),
                **(result.inverse_figures() if "inverse" in self.folder.outputs else {}),
            }
            entry |= peak_memory(engine.state.device)
            self.folder.record(name, entry)
            logger.info("%s: %s", name, sentence(entry))
