# SPDX-License-Identifier: Apache-2.0
"""Weights in the box: which bundles have some, what the files hold, and what is said of them; see test_weights.py."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from common.cli import sentence_of
from scripts.ship import NAMES, check_weights

from .conftest import ROOT, SHIPPED, metadata_of, phantom_options, run_workflow

FIGURES = {"protocol", "dice", "dice_before", "dice_first_pair", "seed", "steps", "train_cpu_hours"}
EXAMPLE = ROOT / "bundles" / "eoir_shapes3d"

shipped = pytest.mark.parametrize("bundle", SHIPPED, ids=lambda path: path.name)
every_file = pytest.mark.parametrize(
    "path",
    [bundle / "models" / name for bundle in SHIPPED for name in NAMES if (bundle / "models" / name).exists()],
    ids=lambda path: f"{path.parent.parent.name}-{path.stem}",
)
in_a_checkout = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout: git has nothing to say here")


def git(*arguments: str) -> list[str]:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()


@in_a_checkout
def test_a_clone_has_the_weights_of_bundles_that_say_under_which_terms_and_no_others() -> None:
    tracked = {ROOT / name for name in git("ls-files", "bundles/*/models/*") if not name.endswith(".gitkeep")}
    assert tracked == {path for path in tracked if path.name in NAMES and path.parents[1] in SHIPPED}
    assert {bundle / "models" / "model.pt" for bundle in SHIPPED} <= tracked


@in_a_checkout
def test_weights_that_a_user_trains_elsewhere_are_not_noticed_by_git() -> None:
    others = [str(EXAMPLE / "models" / name) for name in ("mine.pt", "model.ts", "model.pt2")]
    others += [str(EXAMPLE / "own.pt"), str(ROOT / "bundles" / "eoir_oasis" / "models" / "model.pt")]
    assert git("check-ignore", *others) == others


@every_file
def test_weights_are_small_plain_and_fit_the_network_without_an_option(path: Path) -> None:
    check_weights(path.parents[1], path)


@shipped
def test_card_and_metadata_say_what_the_weights_are(bundle: Path) -> None:
    metadata = metadata_of(bundle)
    assert FIGURES - set(metadata["eval_metrics"]) == set()
    card = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    _, found, section = card.partition("## Weights in the box\n")
    section = section.partition("\n## ")[0]
    assert found and any(f"{metadata['eval_metrics']['dice']:.{digits}f}" in card for digits in (3, 4))
    terms = re.split(r"[,;]", metadata["weights_license"])[0]
    data_license = (bundle / "docs" / "data_license.txt").read_text(encoding="utf-8")
    assert terms in section and terms in data_license
    assert terms == "CC0" or "weights" in data_license.lower()


@shipped
def test_commands_of_the_card_that_train_write_beside_them(bundle: Path) -> None:
    card = (bundle / "docs" / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    trainings = [line for line in card.splitlines() if re.match(r"(python|torchrun) .*configs/train\.json", line)]
    assert trainings and [line for line in trainings if not re.search("--ckpt_path|--overwrite true", line)] == []


def test_training_does_not_replace_them_unasked(phantoms: Path, tmp_path: Path) -> None:
    bundle = tmp_path / EXAMPLE.name
    (bundle / "models").mkdir(parents=True)
    for name in ("common", "configs"):
        (bundle / name).symlink_to((EXAMPLE / name).resolve())
    weights = bundle / "models" / "model.pt"
    weights.write_bytes(b"in the box")
    with pytest.raises(RuntimeError) as error:
        run_workflow(bundle, "train", output_dir=str(tmp_path / "out"), **phantom_options(EXAMPLE, phantoms))
    said = str(sentence_of(error.value))
    assert f"There are weights at {weights} already: " in said
    assert said.endswith("choose another --ckpt_path, or replace them with --overwrite true.")
    assert weights.read_bytes() == b"in the box" and not (tmp_path / "out" / "checkpoint.pt").exists()
