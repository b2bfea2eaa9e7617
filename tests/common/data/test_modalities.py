# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from common.checks import InputError
from common.data.modalities import ScaleModalityd, scale_modality

RAMP = torch.arange(-1500.0, 1501.0, 10)


def test_windows_cut_off_what_lies_outside() -> None:
    ct, lung = scale_modality(RAMP, "ct"), scale_modality(RAMP, "lung_ct")
    for hounsfield, expected in ((-1500, (0, 0)), (-1000, (0, 0)), (-500, (0.25, 0.5)), (0, (0.5, 1)), (1200, (1, 1))):
        where = RAMP == hounsfield
        assert (ct[where].item(), lung[where].item()) == pytest.approx(expected)


def test_bright_values_are_those_of_a_rank_and_of_the_maximum() -> None:
    values = torch.arange(250.0).flip(0).view(5, 50) + 3
    scaled = scale_modality(values, "mri")
    # Of 250 values the 247th is the bright one.
    assert scaled.min() == 0 and (scaled == 1).sum() == 4 and scaled[0, 4].item() == pytest.approx(245 / 246)
    torch.testing.assert_close(scale_modality(values, "brain_mri"), values * (0.9 / 252))


def test_a_subject_gets_its_images_in_scale_and_masked() -> None:
    subject = {"image": MetaTensor(RAMP[None]), "mask": (RAMP[None] > 100).float(), "id": "a"}
    made = ScaleModalityd(modality="ct", mask_key="mask")(subject)
    assert isinstance(made["image"], MetaTensor) and made["id"] == "a"
    torch.testing.assert_close(made["image"].as_tensor(), scale_modality(RAMP[None], "ct") * (RAMP[None] > 100))


def test_a_mask_covers_what_is_not_0_where_there_is_one() -> None:
    scale = ScaleModalityd(modality="lung_ct", mask_key="label")
    whole = scale_modality(RAMP[None], "lung_ct")
    sides = 3 * (RAMP[None] > -700).to(torch.uint8)
    made = scale({"image": MetaTensor(RAMP[None]), "label": MetaTensor(sides)})["image"].as_tensor()
    torch.testing.assert_close(made, whole * (RAMP[None] > -700))
    torch.testing.assert_close(scale({"image": MetaTensor(RAMP[None])})["image"].as_tensor(), whole)


def test_constant_images_and_unknown_modalities_are_refused() -> None:
    for modality, image in (("ct", RAMP - 5000), ("mri", torch.ones(9)), ("brain_mri", torch.zeros(9))):
        with pytest.raises(InputError, match="constant by the rule for"):
            scale_modality(image, modality)
    with pytest.raises(InputError, match="lung.nii: The image is constant by the rule for lung_ct"):
        ScaleModalityd(modality="lung_ct")({"image": MetaTensor(RAMP + 5000, meta={"filename_or_obj": "lung.nii"})})
    with pytest.raises(InputError, match="The modality is 'pet'; choose one of ct, lung_ct, mri, brain_mri"):
        scale_modality(RAMP, "pet")
