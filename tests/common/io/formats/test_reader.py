# SPDX-License-Identifier: Apache-2.0
"""Fields written by nibabel in the form of each tool, and where they put the voxels by that form's definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import itk
import nibabel
import numpy as np
import pytest
import torch

from common.checks import InputError
from common.io.fields import read_field
from common.io.formats.conventions import MEANINGS, meanings
from common.io.formats.reader import read_world
from common.io.formats.writer import FORMS
from common.io.nifti import write_ddf
from common.io.transforms import Field, read_transform

NREG = b"NREG_TRANS"


def forms(scene: Any) -> dict[str, tuple[Path, str, str]]:
    """File, what has to be stated, what is found; shift and position as the documentation of each tool defines them."""
    shift, position = scene.positions - scene.places, scene.positions
    lps = np.array([-1, -1, 1])
    return {
        "NiftyReg deformation": (
            scene.save("a.nii", position, intent_code=1007, intent_name=NREG, intent_p1=0),
            "auto",
            "ras_positions",
        ),
        "NiftyReg displacement": (
            scene.save("b.nii", shift, intent_code=1007, intent_name=NREG, intent_p1=1),
            "auto",
            "ras_mm",
        ),
        "SPM y_": (scene.save("y_c.nii", position, intent_code=1007, intent_name=b"Mapping"), "auto", "ras_positions"),
        "SPM iy_ of old": (scene.save("iy_d.nii", position, descrip=b"Inverse Deformation"), "auto", "ras_positions"),
        "MRtrix deformation": (scene.save("e.nii", position, axes=4), "auto", "ras_positions"),
        "MRtrix displacement": (scene.save("f.nii", shift, axes=4), "ras_mm", "ras_mm"),
        "SynthMorph, FreeSurfer": (scene.save("g.nii", shift, intent_code=1006), "auto", "ras_mm"),
        "elastix, ANTs": (scene.save("h.nii", shift * lps, intent_code=1007), "auto", "lps_mm"),
        "LPS of four axes": (scene.save("i.nii", shift * lps, axes=4), "lps_mm", "lps_mm"),
        "RAS under ITK's intent": (scene.save("j.nii", shift, intent_code=1007), "ras_mm", "ras_mm"),
        "positions under ITK's intent": (scene.save("k.nii", position, intent_code=1007), "auto", "ras_positions"),
    }


def test_every_form_puts_the_voxels_where_its_tool_does(scene: Any) -> None:
    for name, (path, stated, expected) in forms(scene).items():
        for convention in (stated, expected):
            world = read_world(path, convention)
            assert world is not None and world[1] == expected, name
            np.testing.assert_allclose(scene.found(world[0]), scene.positions, atol=2e-4, err_msg=name)
        ddf, found = read_field(path, scene.fixed, stated)
        matrix = scene.fixed.affine[:3, :3].numpy()
        moved = scene.places + ddf[0].movedim(0, -1).double().numpy() @ matrix.T
        np.testing.assert_allclose(moved, scene.positions, atol=2e-4, err_msg=name)
        assert found == expected


def test_images_of_itk_are_read_as_elastix_and_slicer_write_them(scene: Any) -> None:
    shift = ((scene.positions - scene.places) * (-1, -1, 1)).astype(np.float32)
    lps = np.diag([-1.0, -1, 1]) @ scene.fixed.affine[:3].numpy()
    for name in ("deformationField.mhd", "a.nrrd", "a.mha"):
        vectors = np.ascontiguousarray(shift.transpose(2, 1, 0, 3))
        image = itk.image_from_array(vectors, ttype=itk.Image[itk.Vector[itk.F, 3], 3])
        spacing = np.linalg.norm(lps[:, :3], axis=0)
        image.SetSpacing(spacing)
        image.SetOrigin(lps[:, 3])
        image.SetDirection(itk.matrix_from_array(lps[:, :3] / spacing))
        itk.imwrite(image, str(scene.folder / name))
        transform = read_transform(scene.folder / name)
        np.testing.assert_allclose(scene.found(transform), scene.positions, atol=1e-4)
    itk.imwrite(itk.image_from_array(np.zeros((4, 5, 6), np.float32)), str(scene.folder / "scan.mha"))
    with pytest.raises(InputError, match=r"scan.mha holds no vectors of three components"):
        read_transform(scene.folder / "scan.mha")


@pytest.mark.parametrize(
    ("header", "shape", "message"),
    [
        (
            {"intent_code": 1007, "intent_name": NREG, "intent_p1": 3},
            (1, 3),
            "velocity field of NiftyReg.*reg_transform",
        ),
        (
            {"intent_code": 1007, "intent_name": NREG, "intent_p1": 4},
            (1, 3),
            "velocity field of NiftyReg.*reg_transform",
        ),
        ({"intent_code": 1007, "intent_name": NREG, "intent_p1": 5}, (1, 3), "velocity grid.*reg_transform -ref"),
        ({"descrip": b"Velocity Field"}, (1, 3), "velocity field of SPM.*Deformations in SPM"),
        ({"descrip": b"Flow Field"}, (1, 3), "velocity field of SPM"),
        ({"intent_code": 2008}, (3,), "DCT coefficients of FNIRT.*fnirtfileutils"),
        ({"intent_code": 2009}, (3,), "quadratic spline coefficients of FNIRT.*fnirtfileutils"),
        ({"intent_code": 2016}, (3,), "TOPUP.*applytopup"),
        ({"intent_code": 2018}, (3,), "field of TOPUP.*applytopup"),
        ({}, (3, 4), "full warp of MRtrix.*warpfull2deformation"),
        ({}, (1, 3), "vector image without intent: state --convention voxels, lps_mm, ras_mm"),
        ({}, (3,), "does not say what its vectors are: state --convention voxels .* ras_mm"),
    ],
)
def test_what_is_not_read_is_named_with_what_to_do(
    tmp_path: Path, header: dict[str, Any], shape: tuple[int, ...], message: str
) -> None:
    rng = np.random.default_rng(0)
    file: Any = nibabel.Nifti1Image(rng.normal(size=(6, 7, 8, *shape)).astype(np.float32), np.diag([2.0, 2, 3, 1]))
    file.affine[:3, 3] = file.header["srow_x"][3] = 5
    for key, value in header.items():
        file.header[key] = value
    nibabel.save(file, tmp_path / "t.nii.gz")
    with pytest.raises(InputError, match=rf"t\.nii\.gz.*{message}"):
        read_transform(tmp_path / "t.nii.gz")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("warp.m3z", b"", "warp of FreeSurfer: mri_warp_convert --inm3z"),
        ("warp.mif", b"", "image of MRtrix: mrconvert"),
        ("warp.mif.gz", b"", "image of MRtrix: mrconvert"),
        ("t.x5", b"", "X5"),
        ("t.xfm", b"", "transform of MINC"),
        ("t.txt", b"MNI Transform File\nTransform_Type = Linear;", "transform of MINC"),
        ("t.mat", b"MATLAB 5.0 MAT-file, Platform: GLNXA64", "file of MATLAB.*ras_matrix"),
        ("TransformParameters.0.txt", b'(Transform "BSplineTransform")\n', "elastix: transformix -def all -tp FILE"),
        ("t.txt", b'// written\n(Transform "EulerTransform")\n', "elastix: transformix -def all -tp FILE"),
        ("t.png", b"", "is no field: expected one of .nii"),
    ],
)
def test_files_that_are_known_by_name_or_beginning(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_transform(tmp_path / name)


def test_values_contradict_a_statement(scene: Any) -> None:
    found = forms(scene)
    for name, stated, message in (
        ("MRtrix deformation", "ras_mm", "holds positions, not displacements: state ras_positions"),
        ("MRtrix deformation", "voxels", "holds positions, not displacements: state ras_positions"),
        ("MRtrix displacement", "ras_positions", "holds no positions"),
        ("NiftyReg displacement", "lps_mm", "displacement field of NiftyReg, but .* state auto or ras_mm"),
        ("SPM y_", "ras_mm", "deformation of SPM, but .* state auto or ras_positions"),
        ("elastix, ANTs", "flirt", "vector image of intent 1007, that is lps_mm"),
        ("elastix, ANTs", "itk", "vector image of intent 1007, that is lps_mm"),
    ):
        with pytest.raises(InputError, match=message):
            read_world(found[name][0], stated)


def test_positions_in_lps_are_named(scene: Any) -> None:
    path = scene.save("a.nii", scene.positions * (-1, -1, 1), axes=4)
    with pytest.raises(InputError, match="positions in LPS"):
        read_transform(path)


def test_worlds_that_are_turned_far_against_each_other(scene: Any) -> None:
    turn = np.array([[0.0, -1, 0], [0, 0, 1], [-1, 0, 0]])
    positions = scene.positions @ turn.T + (400, 0, -300)
    transform = read_transform(scene.save("a.nii", positions, axes=4))
    np.testing.assert_allclose(scene.found(transform), positions, atol=1e-3)


def test_our_own_fields_need_no_statement(scene: Any) -> None:
    ddf = torch.randn(3, *scene.fixed.shape)
    write_ddf(scene.folder / "ddf.nii.gz", ddf, scene.fixed.affine)
    (field,) = read_transform(scene.folder / "ddf.nii.gz").stages
    assert isinstance(field, Field) and bool((field.ddf[0] == ddf).all())


def test_images_of_afni_must_be_stated(scene: Any) -> None:
    path = scene.save("a.nii", (scene.positions - scene.places) * (-1, -1, 1))
    file: Any = nibabel.load(path)
    file.header.extensions.append(nibabel.nifti1.Nifti1Extension(4, b"<AFNI_attributes/>"))
    file.header["intent_code"] = 1006
    nibabel.save(file, scene.folder / "b.nii")
    with pytest.raises(InputError, match="image of AFNI, which does not say.*state --convention"):
        read_transform(scene.folder / "b.nii")
    np.testing.assert_allclose(
        scene.found(read_transform(scene.folder / "b.nii", None, "lps_mm")), scene.positions, atol=2e-4
    )


def test_the_documentation_has_every_form() -> None:
    text = (Path(__file__).parents[4] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    section = text.partition("## Files of other tools")[2].partition("\n## ")[0]
    for name in (*MEANINGS, *FORMS):
        assert name == "auto" or f"`{name}`" in section, name
    for suffix in (".m3z", ".mif", ".xfm", ".lta", ".mgz", ".mhd", ".nrrd", ".fcsv", ".mrk.json"):
        assert suffix in section, suffix


def test_each_convention_has_its_line_in_help() -> None:
    assert [line.split()[0] for line in meanings().splitlines()] == list(MEANINGS)
