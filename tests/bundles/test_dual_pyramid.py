# SPDX-License-Identifier: Apache-2.0
"""The bundles of the dual-pyramid networks: recipes as published, and abdominal CT as their pages say."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser

from common.engine.command_line import read_command_line

from .conftest import PUBLISHED, run_workflow, tiny

DUAL_PYRAMIDS = [bundle for bundle in PUBLISHED if bundle.name.startswith(("dp_", "dpvfa_"))]
CT = next(bundle for bundle in PUBLISHED if bundle.name == "dp_conv_c_lumir")


def config(bundle: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((bundle / "configs" / f"{name}.json").read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize("bundle", DUAL_PYRAMIDS, ids=lambda path: path.name)
def test_recipe_is_the_published_one(bundle: Path) -> None:
    train, variant = config(bundle, "train"), bundle.name.rpartition("_")[0].removeprefix("dp").removeprefix("_")
    assert train["network_def"]["variant"] == variant
    symmetric = variant.startswith("convic")
    sampler, terms = train["train"]["dataloader"]["sampler"], train["loss"]["terms"]
    # One update for a pair both ways, or one each way.
    assert sampler.get("both_ways", False) != symmetric and sampler["strategy"] == "in_turn"
    assert train["max_epochs"] * train["pairs_per_epoch"] == (75_000 if symmetric else 150_000)
    ways = [name for name in terms if name.startswith("lncc")]
    assert len(ways) == 1 + symmetric
    assert all(
        sum(term["weight"] for name, term in terms.items() if name.startswith(kind)) == 1
        for kind in ("lncc", "smoothness")
    )
    restarts = [train["lr_scheduler"]["T_0"] * (2**k - 1) for k in range(1, 5)]
    assert restarts == [100, 300, 700, 1500] and train["lr_scheduler"]["T_mult"] == 2


def test_bundles_of_one_data_set_differ_in_network_and_recipe_alone() -> None:
    for dataset in ("oasis", "lumir"):
        alike = []
        for bundle in DUAL_PYRAMIDS:
            if bundle.name.endswith(dataset):
                train = config(bundle, "train")
                for own in ("_desc_", "loss", "pairs_per_epoch"):
                    del train[own]
                del train["network_def"]["variant"]
                train["train"]["dataloader"]["sampler"].pop("both_ways", None)
                alike.append([train, {**config(bundle, "evaluate"), "network_def": 0}])
        assert len(alike) == 6 and alike[1:] == alike[:-1]


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> Path:
    """Tiny scans under BTCV's own numbers: three people to train with, of one without labels; a pair of each kind."""
    folder = tmp_path_factory.mktemp("abdomen")
    for place, number in enumerate((6, 7, 61, 2, 3, 1, 4), start=1):
        half = folder / ("Training" if number < 61 else "Testing")
        image, label = (
            nibabel.load(phantoms / kind / f"SHAPES_{place:04d}_0000.nii.gz") for kind in ("imagesTr", "labelsTr")
        )
        hu = (2600 * image.get_fdata() - 1200).astype(np.int16)
        for name, array in (("img", hu), ("label", np.asarray(label.dataobj))):
            if name == "img" or number < 61:
                (half / name).mkdir(parents=True, exist_ok=True)
                nibabel.save(nibabel.Nifti1Image(array, image.affine), half / name / f"{name}{number:04d}.nii.gz")
    return folder


def commands(bundle: Path, scans: Path) -> dict[str, list[str]]:
    """What the page's block on CT calls python with, by workflow; variables and quotes are bash's own."""
    page = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"## Abdominal CT.*?```bash\n(.*?)```", page, re.DOTALL)
    script = "python() { printf '%s\\0' \"$@\"; printf '\\n'; }\n" + block.replace("DIR", str(scans))
    said = subprocess.run(["bash", "-eu"], input=script, capture_output=True, text=True, check=True).stdout
    calls = [line.split("\0")[:-1] for line in said.splitlines()]
    return {call[3]: call[2:] for call in calls}


def options_of(call: list[str]) -> dict[str, Any]:
    """The values that fire, MONAI's command line, would make of the words."""
    given = read_command_line(call)
    assert given is not None
    return {name: DefaultParseValue(value) for name, value in given.changes().items()}


def test_abdominal_ct_as_the_page_says(
    scans: Path,
    tmp_path: Path,
    command_line: Callable[..., subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = commands(CT, scans)
    small = {**tiny(CT), "ckpt_path": str(tmp_path / "model.pt")}
    options = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    options += ["--max_epochs", "1", "--val_interval", "1", "--pairs_per_epoch", "3", "--num_workers", "0"]
    result = command_line(*calls["train"], *options, "--output_dir", str(tmp_path / "train"), cwd=CT)
    assert result.returncode == 0, result.stderr[-3000:]
    (row,) = csv.DictReader((tmp_path / "train" / "history.csv").open())
    assert {"lncc", "smoothness"} <= set(row) and float(row["val_dice"]) > 0

    monkeypatch.chdir(CT)
    for name, workflow in (("evaluate", "evaluate"), ("infer", "inference")):
        run_workflow(CT, workflow, output_dir=str(tmp_path / name), **options_of(calls[name]), **small)
    summary = json.loads((tmp_path / "evaluate" / "summary.json").read_text())
    assert summary["pairs"] == 1 and summary["metrics"]["dice"]["before"] > 0
    assert (tmp_path / "infer" / "0001_to_0004_warped.nii.gz").is_file()

    parser = ConfigParser(config(CT, "train"))
    parser.update(options_of(calls["train"]))
    prepare = parser.get_parsed_content("preprocessing")
    subject = prepare({"image": str(scans / "Training" / "img" / "img0006.nii.gz")})
    hu = nibabel.load(scans / "Training" / "img" / "img0006.nii.gz").get_fdata()
    # Values of float32 in [0, 1]: ten times their rounding.
    np.testing.assert_allclose(subject["image"][0].numpy(), (hu.clip(-1000, 1000) + 1000) / 2000, atol=1e-6)
