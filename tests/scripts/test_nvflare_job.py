# SPDX-License-Identifier: Apache-2.0
"""Jobs for NVFlare, without NVFlare: what the server and the sites are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from common.checks import InputError
from scripts.nvflare.job import main
from scripts.package import find_bundle

SITES = ["--site", "north=/data/north", "--site", "south=/data/south"]
SMALL = ["--option", "network_def#start_channel=4", "--option", "loss#terms#lncc#weight=2.0"]


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def arguments(component: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = component["args"]
    return found


def test_a_job_holds_all_that_server_and_sites_need(tmp_path: Path) -> None:
    job = tmp_path / "job"
    main(["eoir_oasis", *SITES, *SMALL, "--rounds", "3", "--local_epochs", "2", "--output_dir", str(job)])
    meta = read(job / "meta.json")
    assert meta["deploy_map"] == {"app_server": ["server"], "app_north": ["north"], "app_south": ["south"]}
    server = read(job / "app_server" / "config" / "config_fed_server.json")
    assert arguments(server["workflows"][0])["num_rounds"] == 3 and meta["min_clients"] == 2
    (client,) = read(job / "app_south" / "config" / "config_fed_client.json")["components"]
    training, evaluation = (arguments(client)[f"{name}_kwargs"] for name in ("train", "eval"))
    # A schedule looks at the epochs of all rounds; the loss of the optimisation on a pair has no such term.
    assert training["max_epochs"] == 6 and training["dataset_dir"] == "/data/south"
    assert training.keys() - evaluation.keys() == {"loss#terms#lncc#weight"}
    bundle = job / "app_south" / "config" / arguments(client)["bundle_root"].removeprefix("config/")
    assert (bundle / "configs" / "train.json").is_file() and len([*bundle.glob("*/engine/start.py")]) == 1


def test_the_first_weights_are_those_of_the_seed(tmp_path: Path) -> None:
    weights = []
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        more = ["--option", f"seed={seed}", "--output_dir", str(tmp_path / name)]
        main(["eoir_oasis", *SITES, *SMALL, *more])
        weights.append(torch.load(tmp_path / name / "app_server" / "custom" / "first_weights.pt", weights_only=True))
    same, other = ([torch.equal(weights[0][key], held[key]) for key in weights[0]] for held in weights[1:])
    assert all(same) and not all(other)
    config = ConfigParser(read(find_bundle("eoir_oasis") / "configs" / "train.json"))
    config["network_def::start_channel"] = 4
    config.get_parsed_content("network_def").load_state_dict(weights[0])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--option", "network_def#start_chanel=4"], "Did you mean 'start_channel'"),
        (["--option", "epochs=4"], "has no option epochs"),
        (["--site", "north=/again"], "each name once"),
        (["--site", "east=data"], "absolute path"),
        (["--site", "server=/data"], "is not 'server'"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(words: list[str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=sentence):
        main(["eoir_oasis", *SITES, *words, "--output_dir", str(tmp_path / "job")])
    assert not (tmp_path / "job").exists()


def test_a_bundle_without_a_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="instance_any has no network that is trained"):
        main(["instance_any", *SITES, "--output_dir", str(tmp_path / "job")])
