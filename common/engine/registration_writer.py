# SPDX-License-Identifier: Apache-2.0
"""What inference leaves behind: per pair the warped scan, the transform in forms that tools read, a picture."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from common.data.label_groups import Lookup
from common.data.request import pair_name
from common.engine.pair_handler import PairHandler
from common.engine.registration import Registration
from common.engine.registration_figures import sentence
from common.engine.registration_files import write_files
from common.engine.registration_folder import RegistrationFolder

logger = logging.getLogger(__name__)


class RegistrationWriter(PairHandler):
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
    and ``warped_label.png`` are written, too, their values rounded. On request, of DICOM series:
    ``warped_label_seg.dcm`` and ``transform_reg.dcm``, see :mod:`common.engine.registration_dicom`.

    Args:
        folder: where, what, and whether to overwrite.
        labels: see :class:`common.engine.pair_handler.PairHandler`.
        lookup: likewise.
        label_names: likewise.
    """

    def __init__(
        self,
        folder: RegistrationFolder,
        labels: Sequence[int] | None = None,
        lookup: Lookup | None = None,
        label_names: str | Path | None = None,
    ) -> None:
        super().__init__(labels, lookup, label_names)
        self.folder = folder

    def take(self, result: Registration, seconds: float, device: torch.device) -> None:
        """Write the pair's files, then note it."""
        self.folder.claim()
        name = pair_name(result.pair["moving_id"], result.pair["fixed_id"])
        files = write_files(result, self.folder.output_dir / name, self.folder.outputs)
        entry = {
            **self.entry(result, seconds, device),
            "files": [path.name for path in files],
            **(result.inverse_figures() if "inverse" in self.folder.outputs else {}),
        }
        self.folder.record(name, entry)
        logger.info("%s: %s", name, sentence(entry))
