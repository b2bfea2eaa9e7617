# SPDX-License-Identifier: Apache-2.0
"""The registering part of MONAI Deploy's operator, without MONAI Deploy."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from common.checks import InputError
from common.data.phantom import make_subject, make_template
from scripts.deploy.registering import as_image, check_selection, register_volumes, selection_rules


def test_the_rules_find_the_series_by_its_description() -> None:
    (selection,) = json.loads(selection_rules("fixed", "baseline|before"))["selections"]
    wanted = selection["conditions"]["SeriesDescription"]
    assert selection["name"] == "fixed"
    assert (
        re.fullmatch(wanted, "T1 Baseline mprage")
        and re.fullmatch(wanted, "before")
        and re.fullmatch(wanted, "T1 followup") is None
    )


def test_no_series_and_one_of_several_are_refused() -> None:
    check_selection("fixed", ["T1 baseline"], ["T1 baseline", "T1 followup"])
    with pytest.raises(InputError, match="No series fits .*'T1', 'T2': set REGISTRATION_MOVING"):
        check_selection("moving", [], ["T1", "T2"])
    with pytest.raises(InputError, match="2 series fit .* the fixed one; there is 'a', 'b'"):
        check_selection("fixed", ["a", "b"], ["a", "b", "c"])


def test_a_volume_has_the_axes_of_its_affine() -> None:
    voxels = np.arange(24).reshape(2, 3, 4)
    affine = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, -7], [0, 0, 3, 1], [0, 0, 0, 1]])
    image = as_image((voxels, {"affine": affine}), "fixed")
    assert image.shape == (4, 3, 2) and image.dataobj[3, 2, 1] == 23 and image.dataobj[1, 0, 0] == 1
    np.testing.assert_array_equal(image.affine, affine)


@pytest.mark.parametrize(
    ("shape", "metadata", "sentence"),
    [((2, 3, 4), {}, "no 4 x 4 affine"), ((1, 3, 4), {"affine": np.eye(4)}, "no volume")],
)
def test_what_is_no_volume_is_refused(shape: tuple[int, ...], metadata: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=f"The moving series .*{sentence}"):
        as_image((np.zeros(shape), metadata), "moving")


def test_two_volumes_become_a_transform_and_a_warped_scan(tmp_path: Path) -> None:
    template = make_template((24, 24, 24), 4, 0)
    fixed, moving = (make_subject(template, 0, number).image.squeeze() for number in (1, 2))
    affine = np.diag([-2.0, -2, 2, 1])
    volumes = [(np.transpose(voxels, (2, 1, 0)), {"affine": affine}) for voxels in (moving, fixed)]
    options = {"spacing": None, "io_steps": 20, "levels": [1]}
    written = register_volumes("instance_any", volumes[0], volumes[1], tmp_path / "out", options)
    names = {path.name for path in written}
    assert any(name.endswith("transform.h5") for name in names)
    (warped,) = (nib.load(path) for path in written if "warped" in path.name)
    np.testing.assert_allclose(warped.affine, affine)
    before, after = (np.mean((image - fixed) ** 2) for image in (moving, warped.get_fdata()))
    assert after < 0.8 * before
