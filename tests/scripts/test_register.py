# SPDX-License-Identifier: Apache-2.0
"""Two scans from the command line: what is chosen, told, written and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from monai.bundle import ConfigParser

from common.api import register
from common.api.choice import CHOICES
from common.checks import InputError
from common.data.shapes3d import generate_shapes3d
from common.io.checkpoints import save_atomically
from scripts.register import main, parser

BUNDLES = Path(__file__).parents[2] / "bundles"
NAME = "SHAPES_0002_0000_to_SHAPES_0001_0000"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("register") / "shapes"
    return generate_shapes3d(folder, num_subjects=2, size=(24, 28, 24), validation=0, test=0, progress=False)


@pytest.fixture
def pair(shapes: Path) -> list[str]:
    """Fixed and moving scan."""
    return [str(shapes / "imagesTr" / f"SHAPES_{number:04d}_0000.nii.gz") for number in (1, 2)]


@pytest.fixture
def labels(pair: list[str]) -> dict[str, Any]:
    fixed, moving = (path.replace("imagesTr", "labelsTr") for path in pair)
    return {"fixed_label": fixed, "moving_label": moving}


def words(**options: object) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def test_two_scans_are_registered_and_told_of(
    pair: list[str], labels: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*pair, *words(io_steps=4, output=tmp_path / "out", **labels)])
    told = capsys.readouterr().out
    same = register(pair[1], pair[0], "instance_any", similarity="lncc", affine=True, io_steps=4, **labels)
    warped = nibabel.load(tmp_path / "out" / f"{NAME}_warped.nii.gz")
    assert np.array_equal(warped.get_fdata(dtype=np.float32), same.warped.array)
    dice = same.figures["dice"]
    assert dice["registered"] > dice["affine"]
    assert ", ".join(f"{dice[stage]:.4f}" for stage in dice) in told.replace(" by header", "").replace(
        " after the affine alignment", ""
    )
    assert f"folding   {same.figures['folded_percent']:.4f} %" in told and "seconds" in told
    for kind in ("warped.nii.gz", "warped_label.nii.gz", "transform.h5", "panel.png", "record.json"):
        assert (tmp_path / "out" / f"{NAME}_{kind}").is_file() and f"{NAME}_{kind}" in told
    record = json.loads((tmp_path / "out" / f"{NAME}_record.json").read_text())
    assert record["dice"] == dice and record["options"]["io_steps"] == 4 and record["cpu_seconds"] > 0


@pytest.mark.parametrize("contrast", ["same", "unlike"])
def test_brains_go_through_the_network_of_brains(
    contrast: str, pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choice = CHOICES["brain", contrast]
    config = ConfigParser(ConfigParser.load_config_file(str(BUNDLES / choice.bundle / "configs" / "inference.json")))
    weights = tmp_path / "weights.pt"
    save_atomically(config.get_parsed_content("network_def").state_dict(), weights)
    given = words(anatomy="brain", contrast=contrast, affine="false", io_steps=0, ckpt_path=weights)
    main([*pair, *given, *words(output=tmp_path)])
    record = json.loads((tmp_path / f"{NAME}_record.json").read_text())
    assert record["bundle"] == choice.bundle and record["working_spacing"] == [2, 2, 2]
    assert choice.why in capsys.readouterr().out and "optimisation" not in record and record["affine"] == {}


def test_what_is_chosen_exists_and_stands_in_the_help() -> None:
    text = " ".join(parser().format_help().split())
    for (anatomy, contrast), choice in CHOICES.items():
        config = ConfigParser.load_config_file(str(BUNDLES / choice.bundle / "configs" / "inference.json"))
        assert set(choice.options) <= set(config)
        rule = f"--anatomy {anatomy} --contrast {contrast} {choice.bundle}, {choice.options['similarity']}"
        assert rule in text


def test_nothing_is_replaced_unasked(pair: list[str], tmp_path: Path) -> None:
    (tmp_path / f"{NAME}_panel.png").write_text("mine")
    with pytest.raises(InputError, match="panel.png exists: choose another --output, or replace it with --overwrite"):
        main([*pair, *words(output=tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == [f"{NAME}_panel.png"]
    main([*pair, *words(output=tmp_path, overwrite="true", io_steps=0, affine="false", spacing=1.5)])
    record = json.loads((tmp_path / f"{NAME}_record.json").read_text())
    assert record["working_spacing"] == [1.5] * 3
    assert (tmp_path / f"{NAME}_panel.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"fixed": "absent.nii.gz"}, "The fixed image absent.nii.gz does not exist"),
        ({"moving_label": "absent.nii.gz"}, "The moving label map absent.nii.gz does not exist"),
        ({"fixed_label": "{fixed}"}, "--fixed_label is for the overlap with --moving_label"),
        ({"label_groups": "groups.json"}, "--label_groups is for the Dice: give --fixed_label and --moving_label"),
        ({"ckpt_path": "model.pt"}, "--ckpt_path is for the network of --anatomy brain"),
        ({"anatomy": "brain", "ckpt_path": "absent.pt"}, "There are no weights at absent.pt"),
        ({"anatomy": "brain", "fixed": "flat.nii.gz"}, "flat.nii.gz is 2D, .* use --anatomy any"),
        ({"output": "flat.nii.gz"}, "Cannot write to the folder flat.nii.gz: .*; choose another --output"),
        ({"fixed": "flat.nii.gz"}, "a pair is two images or two volumes"),
    ],
)
def test_mistakes_end_as_a_sentence(
    changed: dict[str, str], sentence: str, pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    nibabel.save(nibabel.Nifti1Image(np.eye(20, dtype=np.float32), np.eye(4)), "flat.nii.gz")
    options = {name: value.format(fixed=pair[0]) for name, value in changed.items()}
    fixed = options.pop("fixed", pair[0])
    with pytest.raises(InputError, match=sentence):
        main([fixed, pair[1], *words(**options)])
    assert not [*tmp_path.glob("registered/*")]
