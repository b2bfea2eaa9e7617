# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from common.checks import InputError
from common.engine.option_values import BUILT, OPTIONS, check_values

from ...bundles.conftest import BUNDLES

WRONG: dict[str, list[Any]] = {
    "max_epochs": [0, -3, 1.5, "ten", math.nan, math.inf, [1], None, True],
    "batch_size": [0, -1, 2.0, "2", None, True],
    "pairs_per_epoch": [0, -1, "all", math.inf, False],
    "train_subjects": [1, 0, 2.5, "ten", True],
    "num_shapes": [1, 0, 2.5, "ten", True],
    "max_cpu_seconds": [0, -1, math.inf, "1 h", True],
    "val_interval": [0, "2", None],
    "num_workers": [-1, "two", 0.5, None],
    "learning_rate": [0, -1, "1e-4x", math.nan, math.inf, [0.1], None, True],
    "checkpoint_seconds": [-1, math.inf, "5 min", None],
    "cache_rate": [-0.1, 1.1, math.nan, "all", True],
    "seed": [-1, 2**32, 0.5, None, "0"],
    "labels": [[], [1, 1], 4, "1,2", [1, "2"], [1.0], {1, 2}, [[1]]],
    "spacing": [0, [1], [1, 1, 1, 1], [1, 1, 0], [1, 1, -1], [1, 1, math.nan], "1,1,1", [1, 1, None], True],
    "spatial_size": [[0, 1, 1], [8], 8, [8, 8, 8.5], None],
    "orientation": ["RA", "RLS", "ras", 3, ["R", "A", "S"]],
    "image_shape": [[], [[8, 8, 8], 8], "8"],
    "window": [0, [1], [1, 0], [0, 0], [0, 1, 2], [0, "1"], True],
    "zoom": [0, -0.5, math.inf, "half", None],
    "device": ["gpu", "cuda:99", "cpu:x", "meta", 3.5, None, ""],
    "reader": ["nifti", None, 3, ["oasis"]],
    "section": ["val", 3, True],
    "hd95": ["mm", 95, True],
    "label_numbering": ["id", None],
    "naming": ["tiny", None],
    "similarity": ["ncc", None, 3],
    "landmark_coordinates": ["mm", None],
    "io_steps": [-1, 1.5, "ten", [5, -1], [], None, True],
    "levels": [[], 4, [2, 0], [1.5], None],
    "label_weight": [-1, "much", math.inf, None, True],
    "fixed_mask": [True, 3, ""],
    "amp": ["maybe", 1, None],
    "resume": ["yes", 0],
    "output_dir": ["", 2024, None, True, ["a"], "  "],
    "moving": [True, 3, ""],
    "moving_series": [1.2, "T1", "1.2.03", ""],
    "start_from": ["none/here.pt", str(Path(__file__).parent), True, ""],
}
RIGHT: dict[str, list[Any]] = {
    "fixed_series": [None, "1.2.840.10008.0"],
    "max_epochs": [1, 301],
    "pairs_per_epoch": [None, 1],
    "train_subjects": [None, 2],
    "max_cpu_seconds": [None, 0.5],
    "learning_rate": [1e-4, 1],
    "seed": [0, 2**32 - 1],
    "labels": [None, [1], [-5, 614454277], (1, 2), "$range(1, 9)", "$[1] + [2]"],
    "spacing": [None, [1.8, 1.8, 10], [1, 1]],
    "spatial_size": [[8, 8], [8, 8, 8]],
    "orientation": ["RAS", "LIA", None],
    "io_steps": [0, 50, [10, 5, 0]],
    "window": [None, [-1000, 0], [0.5, 1]],
    "levels": [[1], [4, 2, 1]],
    "landmark_weight": [0, 0.5],
    "image_shape": [[8, 8, 8], [[8, 8, 8], [8, 9, 8]]],
    "device": ["cpu", "$torch.device('cpu')", torch.device("cpu")],
    "section": [None, "test"],
    "hd95": [None, "millimetres"],
    "moving": [None, "a.nii.gz"],
    "start_from": [None, __file__],
    "output_dir": ["2024", "a b", "$'a' + 'b'"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_values_that_cannot_be_used_are_named(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^--{name} is {re.escape(repr(value))}[;,] .*give"):
        check_values(ConfigParser({name: value}), {})


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in RIGHT.items() for value in values])
def test_values_that_can_be_used_pass(name: str, value: Any) -> None:
    check_values(ConfigParser({name: value}), {})


def test_an_expression_that_fails_is_named() -> None:
    with pytest.raises(
        InputError, match=r"--dataset_dir \$HOME/scans cannot be evaluated \(name 'HOME' is not defined"
    ):
        check_values(ConfigParser({"dataset_dir": "$HOME/scans"}), {})


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("variant", "large", "variant is 'large'"),
        ("start_channel", 0, "start_channel is 0; give a whole number from 1"),
        ("start_channel", "8", "start_channel is '8'"),
        ("int_steps", -1, "int_steps is -1"),
        ("kernel_size", 4, "kernel_size is 4; expected an odd number"),
        ("spatial_dims", 4, "spatial_dims is 4"),
    ],
)
def test_arguments_of_a_network_are_named_with_their_option(name: str, value: Any, reason: str) -> None:
    network = {"_target_": "common.networks.EOIR", "variant": "oasis", "start_channel": 2, name: value}
    changes = {"network_def#search_radius": 1, f"network_def::{name}": value, "network": "x"}
    with pytest.raises(InputError, match=f"^--network_def::{name} {value} cannot be used: {reason}"):
        check_values(ConfigParser({"network_def": network}), changes)
    with pytest.raises(InputError, match=f"^{reason}"):
        check_values(ConfigParser({"network_def": network}), {})


def test_a_class_of_the_users_fails_in_the_run_with_its_own_story() -> None:
    check_values(ConfigParser({"loss": {"_target_": "torch.nn.Linear", "in_features": -1, "out_features": "x"}}), {})
    with pytest.raises(InputError, match="^--loss#out_features x cannot be used: "):
        check_values(
            ConfigParser({"loss": {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": "x"}}),
            {"loss#out_features": "x"},
        )


def test_checks_leave_the_random_numbers_as_they_are() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    check_values(ConfigParser({"network_def": {"_target_": "common.networks.EOIR", "start_channel": 2}}), {})
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_the_options_of_the_bundles_pass_and_those_that_are_numbers_have_a_check(bundle: Path) -> None:
    for path in bundle.glob("configs/*.json"):
        content = json.loads(path.read_text())
        # Neither the metadata nor what changes another configuration is one that runs.
        if "run" not in content:
            continue
        numbers = {name for name, value in content.items() if isinstance(value, (int, float, bool))}
        assert numbers <= set(OPTIONS)
        check_values(ConfigParser({name: value for name, value in content.items() if name not in BUILT}), {})
