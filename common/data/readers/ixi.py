# SPDX-License-Identifier: Apache-2.0
"""IXI as the authors of TransMorph have prepared it: an atlas, and scans in the folders Train, Val and Test.

* pickles (image, label) as they are given out: ``atlas.pkl`` and ``Train/subject_N.pkl``;
* NIfTI files in the same folders, the label map ``NAME_seg.nii.gz`` or ``NAME_label.nii.gz`` beside ``NAME.nii.gz``.

Which scans train is told by the folders alone: the numbers of the files are not those of IXI. Scans are 160 x 192 x 224
voxels of 1 mm, intensities in [0, 1], label maps those of FreeSurfer (``aseg``), of which 30 structures count. The
atlas is CycleMorph's.

Sources: J. Chen et al., TransMorph, Medical Image Analysis 82, 2022; B. Kim et al., CycleMorph, Medical Image Analysis
71, 2021; repository junyuchen245/TransMorph_Transformer_for_Medical_Image_Registration.
"""

from __future__ import annotations

import logging
from pathlib import Path

from common.checks import InputError
from common.data.readers.atlas import SCANS, atlas_listing, first_file, folders, scan, scan_files
from common.data.readers.listing import Listing, refuse_list

_logger = logging.getLogger(__name__)
_FOLDERS = {"training": "train", "validation": "val", "test": "test"}
_PUBLISHED = {"training": 403, "validation": 58, "test": 115}
LABELS = (
    *(2, 3, 4, 7, 8, *range(10, 19), 24, 28, 31),
    *(41, 42, 43, 46, 47, *range(49, 55), 60, 63),
)
"""The 30 structures of the published tables, by FreeSurfer's numbers; label maps have others, which do not count."""


def read_ixi(dataset_dir: Path, dataset_json: str | None = None) -> dict[str, Listing]:
    """Sections of the folder; the atlas is the moving image of every pair, each scan once the fixed one.

    Args:
        dataset_dir: folder of the data set.
        dataset_json: not for this reader, whose sections are folders; use the reader ``datalist``.

    Returns:
        Listing per section, the atlas its first subject; sections without scans are absent. A NIfTI file without a
        label map has no label.

    Raises:
        InputError: the atlas or the folders are missing, or a list of one's own is asked for.
    """
    refuse_list("ixi", dataset_json)
    atlas = first_file(dataset_dir, (f"atlas{ending}" for ending in SCANS))
    found = folders(dataset_dir)
    files = {section: scan_files(found[name]) for section, name in _FOLDERS.items() if name in found}
    if atlas is None or not any(files.values()):
        raise InputError(
            f"The folder {dataset_dir} is no known form of IXI; expected atlas.pkl beside folders Train, Val and Test "
            "with subject_N.pkl, or the same as NIfTI files (.nii.gz)."
        )
    counts = {section: len(files.get(section, ())) for section in _FOLDERS}
    if counts != _PUBLISHED:
        _logger.warning(
            "%s has %d, %d and %d scans to train, validate and test with; the published tables are of 403, 58 and 115.",
            *(dataset_dir, *counts.values()),
        )
    return {section: atlas_listing(scan(atlas), map(scan, scans)) for section, scans in files.items() if scans}
