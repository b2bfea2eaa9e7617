# SPDX-License-Identifier: Apache-2.0
"""Weights in the box reproduce the Dice that their metadata document, from the clone and out of the zip.

The suite measures the first pair; ``WEIGHTS_ALL=1`` measures all pairs, also out of every zip. Shapes are made here,
all other data lie in ``../shared/data``.
"""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.data.made_sets import save_array, save_image, split_images, write_datalist
from common.data.phantom import make_subject, make_template
from common.data.shapes2d import LABEL_THRESHOLD, draw_shapes, generate_shapes2d, render
from common.data.shapes3d import generate_shapes3d
from scripts.package import pack

from .conftest import ROOT, SHIPPED, metadata_of, run_workflow

ALL = "WEIGHTS_ALL" in os.environ
TOLERANCE = 1e-3
"""What is promised of the documented Dice: processors round differently, and a label is that of the nearest voxel."""
DATA = ROOT.parent / "shared" / "data"
BRAINS = {"dataset_dir": DATA / "brain" / "aligned_2mm", "label_groups": DATA / "brain" / "label_groups.json"}
REAL: dict[str, dict[str, Any]] = {
    "brains": {**BRAINS, "section": "validation"},
    "synthmorph_shapes3d": {**BRAINS, "section": "validation"},
    "acdc": {"dataset_dir": DATA / "cardiac", "section": "test"},
}
"""Where the figures were measured, by the bundle or else by its data set: options of ``evaluate.json``."""
# Of the test's subjects of the whole sets, 24 and 210, the first two.
FIRST = {"shapes3d": (21, 22), "shapes2d": (206, 207)}

FILES = [(bundle, path.name) for bundle in SHIPPED for path in sorted((bundle / "models").glob("model*.pt"))]
QUICK = [bundle for bundle in SHIPPED if bundle.name == "eoir_shapes3d"]
shipped = pytest.mark.parametrize(("bundle", "file"), FILES, ids=[f"{bundle.name}-{file}" for bundle, file in FILES])


def make_pair(kind: str, folder: Path) -> None:
    """The two shapes of the first pair of the test, as the whole set has them."""
    numbers = FIRST[kind]
    names = [f"SHAPES_{number:04d}_0000.nii.gz" for number in numbers]
    if kind == "shapes3d":
        template = make_template((48, 56, 48), 8, 0)
        subjects = [make_subject(template, 0, number) for number in numbers]
        made = [(subject.image, subject.labels) for subject in subjects]
    else:
        shapes = draw_shapes(np.random.RandomState(0), 210)  # noqa: NPY002 - the generator of the published set
        images = [render(type(shapes)(*(values[n - 1 : n] for values in shapes)), 128)[0] for n in numbers]
        made = [(image, (image > LABEL_THRESHOLD).astype(np.uint8)) for image in images]
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for name, (image, labels) in zip(names, made, strict=True):
        save_image(folder / "imagesTr" / name, image)
        save_array(folder / "labelsTr" / name, labels)
    write_datalist(folder, split_images([f"./imagesTr/{name}" for name in names], validation=0, test=2))


@pytest.fixture(scope="module")
def data_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], dict[str, str]]:
    """Options that name the data of a bundle's figures; the test is left out where these are not there."""
    made: dict[str, Path] = {}

    def options(bundle: Path) -> dict[str, str]:
        kind = bundle.name.rpartition("_")[2]
        real = REAL.get(bundle.name, REAL.get(kind))
        if real is not None:
            if not real["dataset_dir"].is_dir():
                pytest.skip(f"the data ({real['dataset_dir']}) are absent")
            return {name: str(value) for name, value in real.items()}
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("made") / kind
            if not ALL:
                make_pair(kind, made[kind])
            elif kind == "shapes3d":
                generate_shapes3d(made[kind])
            else:
                generate_shapes2d(made[kind])
        return {"dataset_dir": str(made[kind])}

    return options


def options_of(bundle: Path, file: str, data: dict[str, str], output: Path) -> dict[str, Any]:
    """Of the evaluation that the documented Dice comes from, without what else it measures."""
    options = {**data, "output_dir": str(output), "ckpt_path": str(bundle / "models" / file), "hd95": None}
    return options if ALL else {**options, "cache_rate": 0.0, "dataloader#sampler#pairs": "$@listing.pairs[:1]"}


def check(bundle: Path, file: str, output: Path) -> None:
    documented = metadata_of(bundle)["eval_metrics"]
    dice = json.loads((output / "summary.json").read_text(encoding="utf-8"))["metrics"]["dice"]["mean"]
    name = ("dice" if ALL else "dice_first_pair") + file.removeprefix("model").removesuffix(".pt")
    assert dice == pytest.approx(documented[name], abs=TOLERANCE), f"{bundle.name}: {name}"


@shipped
def test_documented_dice(bundle: Path, file: str, data_of: Callable[[Path], dict[str, str]], tmp_path: Path) -> None:
    run_workflow(bundle, "evaluate", **options_of(bundle, file, data_of(bundle), tmp_path))
    check(bundle, file, tmp_path)


@pytest.mark.parametrize("bundle", SHIPPED if ALL else QUICK, ids=lambda path: path.name)
def test_documented_dice_out_of_the_zip(
    bundle: Path,
    data_of: Callable[[Path], dict[str, str]],
    command_line: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    with zipfile.ZipFile(pack(bundle, tmp_path)) as archive:
        archive.extractall(tmp_path)
    unpacked = tmp_path / bundle.name
    options = options_of(unpacked, "model.pt", data_of(bundle), tmp_path / "out")
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    ran = command_line("run", "evaluate", "--config_file", "configs/evaluate.json", *words, cwd=unpacked)
    assert ran.returncode == 0, ran.stderr[-3000:]
    check(bundle, "model.pt", tmp_path / "out")
