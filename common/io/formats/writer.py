# SPDX-License-Identifier: Apache-2.0
"""A displacement field in the form in which another tool applies it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel
from torch import Tensor

from common.checks import InputError
from common.io.field_checks import VOXEL_MARK, check_to_write
from common.io.formats import fnirt, niftyreg, spm
from common.io.formats.vectors import vectors_of
from common.io.header_forms import set_world
from common.io.nifti_files import save_nifti
from common.spatial.world import Grid


@dataclass(frozen=True)
class Form:
    """What a tool wants in a NIfTI file.

    Attributes:
        convention: of the vectors.
        axes: of the array; of five, the fourth has one element.
        intent: code of NIfTI.
        name: of the intent.
        use: with which the file is applied.
    """

    convention: str
    axes: int
    intent: int = 0
    name: bytes = b""
    use: str = ""


FORMS: Mapping[str, Form] = {
    "itk": Form("lps_mm", 5, 1007, use="antsApplyTransforms, SimpleITK, Slicer, greedy -r"),
    "voxels": Form("voxels", 4, 0, VOXEL_MARK, use="this project, Learn2Reg"),
    "niftyreg": Form("ras_positions", 5, 1007, niftyreg.INTENT_NAME, use="reg_resample -trans"),
    "spm": Form("ras_positions", 5, 1007, spm.INTENT_NAME, use="SPM, Deformations, Pullback"),
    "fsl": Form("fsl_relative", 4, fnirt.DISPLACEMENT, use="applywarp --warp; needs --moving"),
    "freesurfer": Form("ras_mm", 5, 1006, use="surfa, FreeSurfer"),
    "mrtrix": Form("ras_positions", 4, use="mrtransform -warp"),
}
"""What ``apply.py --save_as`` writes."""
_FLAT = ("itk", "voxels")
"""Those of two dimensions."""


def write_as(path: str | Path, form: str, ddf: Tensor, fixed: Grid, moving: Grid | None = None) -> None:
    """Write a displacement field in the form of a tool.

    Args:
        path: ends in .nii.gz or .nii.
        form: a key of :data:`FORMS`.
        ddf: (1, 3, *fixed.shape), voxels of ``fixed``.
        fixed: grid of the fixed scan.
        moving: grid of the moving scan, for FSL.

    Raises:
        InputError: when there is no such form (of two dimensions those of ITK and of this project), a grid is missing,
            values are not finite, or the file cannot be written.
    """
    if form not in FORMS:
        raise InputError(f"There is no form {form!r}; choose one of {', '.join(FORMS)}.")
    wanted = FORMS[form]
    if fixed.flat and form not in _FLAT:
        raise InputError(f"Fields of two dimensions are written as {' or '.join(_FLAT)}, not as {form!r}.")
    vectors = vectors_of(ddf, fixed, wanted.convention, moving)
    check_to_write(path, vectors)
    array = vectors.numpy()
    if fixed.flat:
        # ITK's vectors keep the place of a third axis of space.
        array = array[..., :2] if form == "itk" else array[:, :, 0, :2]
    file = nibabel.Nifti1Image(array[..., None, :] if wanted.axes == 5 else array, None)
    set_world(file, fixed.affine.numpy())
    file.header["intent_code"], file.header["intent_name"] = wanted.intent, wanted.name
    save_nifti(path, file)
