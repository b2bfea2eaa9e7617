# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from typing import Any

import pytest
from monai.bundle import ConfigParser

from common.checks import InputError
from common.engine.option_names import check_names

from ...bundles.conftest import BUNDLES

BASE: dict[str, Any] = {
    "learning_rate": 0.1,
    "network_def": {"_target_": "common.networks.EOIR", "start_channel": 8},
    "optimizer": {"_target_": "torch.optim.Adam", "params": "$@network_def.parameters()", "lr": "@learning_rate"},
    "run": "$@optimizer",
}


def merged(**more: Any) -> dict[str, Any]:
    parser = ConfigParser(json.loads(json.dumps({**BASE, **more})))
    parser.parse()
    return dict(parser.get())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"learnig_rate": 0.2}, "no option --learnig_rate. Did you mean 'learning_rate'"),
        ({"my_note": 1}, "no option --my_note. Nothing in the configuration refers to it"),
        ({"optimizer_": {"_target_": "torch.optim.SGD"}}, "Did you mean 'optimizer'"),
        (
            {"network_def": {"_target_": "common.networks.EOIR", "start_chanel": 8}},
            "network_def#start_chanel: .*start_c",
        ),
        (
            {"run": ["@optimizer", {"_target_": "Compose", "transform": []}]},
            "run#1#transform: .*'transforms'",
        ),
    ],
)
def test_what_has_no_effect_is_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_names(merged(**more))


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"width": 4, "network_def": {"_target_": "common.networks.EOIR", "start_channel": "@width"}},
        {"width": 4, "depth": "$@width + 1", "run": ["@optimizer", "$print(@depth)"]},
        {"steps": {"a": 1}, "run": ["@optimizer", "@steps::a"]},
        {"mine": {"_target_": "torch.optim.SGD", "params": []}, "run": ["@optimizer", "%mine"]},
        {"_note": "for me alone", "imports": ["$import os"], "finalize": "$print()"},
        {"run": ["@optimizer", {"_target_": "functools.partial", "anything": 3}]},
        {"run": ["@optimizer", {"_target_": "no.such.thing", "_disabled_": True, "anything": 3}]},
    ],
)
def test_what_is_used_passes(more: dict[str, Any]) -> None:
    check_names(merged(**more))


def test_known_names_may_stand_unused() -> None:
    check_names(merged(my_note=1), {"my_note"})


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_every_option_of_the_bundles_is_used(bundle: Any) -> None:
    for path in bundle.glob("configs/*.json"):
        content = json.loads(path.read_text())
        # Neither the metadata nor what changes another configuration is one that runs.
        if "run" in content:
            check_names(content)
