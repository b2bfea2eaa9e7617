# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from common.checks import InputError
from common.io.checkpoints import save_atomically
from common.networks import EOIR
from scripts import package, ship
from scripts.json_style import style

NETWORK: dict[str, Any] = {"spatial_dims": 3, "variant": "plain", "start_channel": 2, "int_steps": 7}
METADATA: dict[str, Any] = {
    "data_license": "CC0",
    "weights_license": "CC0",
    "eval_metrics": {"protocol": "by hand", "dice": 0.1, "seed": 0},
}


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle without weights, of a network of a few hundred parameters."""
    folder = tmp_path / "bundles" / "method_data"
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    config = {"network_def": {"_target_": "common.networks.EOIR", **NETWORK}}
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    (folder / "configs" / "metadata.json").write_text(json.dumps(METADATA))
    monkeypatch.setattr(package, "BUNDLES", tmp_path / "bundles")
    return folder


@pytest.fixture
def state() -> dict[str, Any]:
    return dict(EOIR(**NETWORK).state_dict())


def evaluation(folder: Path, **means: float) -> str:
    """What an evaluation of two pairs leaves, the first of which has a Dice of 0.7."""
    folder.mkdir()
    metrics = {name: {"mean": value, "before": 0.51111} for name, value in means.items()}
    (folder / "summary.json").write_text(json.dumps({"pairs": 2, "metrics": metrics}))
    (folder / "cases.csv").write_text("moving_id,fixed_id,dice\na,b,0.700012\nb,a,0.8\n")
    return str(folder)


def metrics_of(bundle: Path) -> dict[str, Any]:
    text = (bundle / "configs" / "metadata.json").read_text()
    assert text == style(json.loads(text))
    found: dict[str, Any] = json.loads(text)["eval_metrics"]
    return found


def test_weights_and_figures_come_into_the_bundle(bundle: Path, state: dict[str, Any], tmp_path: Path) -> None:
    save_atomically(state, tmp_path / "model.pt")
    checkpoint = {"settings": {"seed": 3}, "iteration": 440, "cpu_seconds": 5400.0}
    save_atomically(checkpoint, tmp_path / "train" / "checkpoint.pt")
    evaluated = evaluation(tmp_path / "e", dice=0.75004, hd95=1.23456, fold_fraction=0.00312, cpu_seconds=0.914)
    words = ["method_data", str(tmp_path / "model.pt"), "--trained", str(tmp_path / "train")]
    ship.main([*words, "--evaluated", evaluated, "--optimised", evaluation(tmp_path / "o", dice=0.80006)])
    assert (bundle / "models" / "model.pt").read_bytes() == (tmp_path / "model.pt").read_bytes()
    assert metrics_of(bundle) == {
        "protocol": "by hand", "seed": 3, "dice": 0.75, "dice_first_pair": 0.7, "dice_before": 0.5111, "hd95": 1.235,
        "fold_percent": 0.0031, "cpu_seconds": 0.91, "dice_io50": 0.8001, "steps": 440, "train_cpu_hours": 1.5,
    }  # fmt: skip


def test_those_with_labels_stand_beside_them(bundle: Path, state: dict[str, Any], tmp_path: Path) -> None:
    half = {name: value.half() for name, value in state.items()}
    save_atomically(half, tmp_path / "model_labels.pt")
    ship.main(["method_data", str(tmp_path / "model_labels.pt"), "--evaluated", evaluation(tmp_path / "e", dice=0.81)])
    found = metrics_of(bundle)
    assert found["dice"] == 0.1 and found["dice_labels"] == 0.81 and found["dice_first_pair_labels"] == 0.7
    assert found["dice_before"] == 0.5111 and (bundle / "models" / "model_labels.pt").is_file()


def test_weights_that_are_there_are_replaced_only_when_asked(
    bundle: Path, state: dict[str, Any], tmp_path: Path
) -> None:
    (bundle / "models" / "model.pt").write_bytes(b"earlier")
    save_atomically(state, tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"models/model\.pt exists: replace it with --overwrite true"):
        ship.main(["method_data", str(tmp_path / "model.pt")])
    assert (bundle / "models" / "model.pt").read_bytes() == b"earlier"
    ship.main(["method_data", str(tmp_path / "model.pt"), "--overwrite", "true"])
    ship.main(["method_data", str(tmp_path / "model.pt")])
    assert (bundle / "models" / "model.pt").stat().st_size > 1000


def test_terms_are_said_beside_those_of_the_data(bundle: Path, state: dict[str, Any], tmp_path: Path) -> None:
    save_atomically(state, tmp_path / "model.pt")
    file = bundle / "configs" / "metadata.json"
    file.write_text(json.dumps({"data_license": "CC BY-NC; theirs", "eval_metrics": {}}))
    with pytest.raises(InputError, match="does not say under which terms the weights are: add --license TEXT"):
        ship.main(["method_data", str(tmp_path / "model.pt")])
    assert not any((bundle / "models").iterdir())
    for terms in ("CC BY-NC", "CC BY"):
        ship.main(["method_data", str(tmp_path / "model.pt"), "--license", terms])
        assert [*json.loads(file.read_text()).items()][:2] == [
            ("data_license", "CC BY-NC; theirs"),
            ("weights_license", terms),
        ]


def test_counters_of_steps_may_be_whole_numbers(bundle: Path, tmp_path: Path) -> None:
    config = {"network_def": {"_target_": "torch.nn.BatchNorm1d", "num_features": 2}}
    (bundle / "configs" / "inference.json").write_text(json.dumps(config))
    counted = torch.nn.BatchNorm1d(2).state_dict()
    save_atomically(counted, tmp_path / "model.pt")
    ship.check_weights(bundle, tmp_path / "model.pt")
    save_atomically({**counted, "running_mean": torch.zeros(2, dtype=torch.int64)}, tmp_path / "model.pt")
    with pytest.raises(InputError, match="model.pt holds torch.int64"):
        ship.check_weights(bundle, tmp_path / "model.pt")


def spoilt(kind: str, state: dict[str, Any]) -> Any:
    first = next(iter(state))
    return {
        "checkpoint": {"network": state, "iteration": 1},
        "double": {**state, first: state[first].double()},
        "infinite": {**state, first: torch.full_like(state[first], torch.inf)},
        "wide": EOIR(**{**NETWORK, "start_channel": 4}).state_dict(),
        "large": {**state, "more": torch.zeros(ship.LARGEST // 4 + 1)},
    }[kind]


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("checkpoint", "model.pt", "is the checkpoint of a training: give the weights alone"),
        ("double", "model.pt", r"model.pt holds torch.float64: weights in the box are float32 or float16"),
        ("infinite", "model.pt", "model.pt has NaN or infinite values in 1 of"),
        ("wide", "model.pt", "model.pt does not fit the network"),
        ("large", "model.pt", r"model.pt has 6.1 MB, and 6 are the most .* train a narrower network, or halve"),
        ("double", "best.pt", "best.pt is not called model.pt or model_labels.pt: name the file as it will be"),
    ],
)
def test_what_does_not_belong_into_the_box(
    kind: str, name: str, message: str, bundle: Path, state: dict[str, Any], tmp_path: Path
) -> None:
    save_atomically(spoilt(kind, state), tmp_path / name)
    with pytest.raises(InputError, match=message):
        ship.main(["method_data", str(tmp_path / name)])
    assert (
        not any((bundle / "models").iterdir())
        and json.loads((bundle / "configs" / "metadata.json").read_text()) == METADATA
    )


def test_folders_without_an_evaluation_are_named(bundle: Path, state: dict[str, Any], tmp_path: Path) -> None:
    save_atomically(state, tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"There is no .*out/summary\.json: give a folder that evaluate wrote"):
        ship.main(["method_data", str(tmp_path / "model.pt"), "--evaluated", str(tmp_path / "out")])
    assert not any((bundle / "models").iterdir())
