# SPDX-License-Identifier: Apache-2.0
"""Official checkpoints: containers, names, and what differs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from common.checks import InputError
from common.weights.state_dicts import (
    Converted,
    KeyMap,
    convert_back,
    differing_keys,
    find_place,
    pack_state_dict,
    rename_keys,
    unpack_state_dict,
)

KEY_MAP: KeyMap = {r"grid$": None, r"^enc\.(\d)\.": r"encoder.\1.", r"^(?:head|flow)\.": "flow."}


def test_names_change_and_values_and_order_stay() -> None:
    values = {"head.bias": object(), "enc.1.weight": object(), "enc.0.weight": object()}
    renamed = rename_keys(values, KEY_MAP)
    assert list(renamed) == ["flow.bias", "encoder.1.weight", "encoder.0.weight"]
    assert list(renamed.values()) == list(values.values())


def test_entry_that_maps_to_none_is_dropped() -> None:
    assert rename_keys({"enc.0.grid": 1, "enc.0.bias": 2}, KEY_MAP) == {"encoder.0.bias": 2}


def test_first_expression_that_matches_counts() -> None:
    assert rename_keys({"a.b": 1}, {r"^a\.": "first.", r"b$": "second"}) == {"first.b": 1}
    assert rename_keys({"a.b": 1}, {r"b$": None, r"^a\.": "first."}) == {}


def test_state_dict_is_left_as_it_was() -> None:
    official = {"enc.0.grid": 1, "enc.0.bias": 2}
    rename_keys(official, KEY_MAP)
    assert official == {"enc.0.grid": 1, "enc.0.bias": 2}


def test_unknown_entry_is_named() -> None:
    with pytest.raises(InputError, match="holds 'decoder.weight', which this network does not know"):
        rename_keys({"enc.0.bias": 1, "decoder.weight": 2}, KEY_MAP)


def test_two_entries_of_one_name_are_refused() -> None:
    with pytest.raises(InputError, match="holds 'flow.bias' twice, the second time as 'flow.bias'"):
        rename_keys({"head.bias": 1, "flow.bias": 2}, KEY_MAP)


def test_nothing_gives_nothing() -> None:
    assert rename_keys({}, KEY_MAP) == {}


STATE = {"b.weight": torch.ones(2), "a.bias": torch.zeros(3)}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"model_state_dict": STATE, "optimizer_state_dict": {"state": {}}},
        {"state_dict": STATE, "epoch": 3},
        {f"module.{name}": value for name, value in STATE.items()},
        {"model_state_dict": {f"module.{name}": value for name, value in STATE.items()}},
    ],
)
def test_state_dict_comes_out_of_each_container_in_its_order(content: Any) -> None:
    unpacked = unpack_state_dict(content, "net.pth", "model_state_dict")
    assert list(unpacked) == list(STATE)
    assert all(unpacked[name] is value for name, value in STATE.items())


def test_prefix_that_some_entries_have_is_a_name_and_stays() -> None:
    state = {"module.weight": torch.ones(1), "head.weight": torch.ones(1)}
    assert list(unpack_state_dict(state, "net.pth", "model_state_dict")) == list(state)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"model_state_dict": {"a": 1}}, [torch.ones(1)], 3])
def test_file_without_a_state_dict_is_refused(content: Any) -> None:
    with pytest.raises(InputError, match="net.pth holds .*; expected a state dict, or one under 'model_state_dict'"):
        unpack_state_dict(content, "net.pth", "model_state_dict")


def test_differing_keys_name_what_is_missing_unknown_or_of_another_shape() -> None:
    assert differing_keys(STATE, {"b.weight": (2,), "a.bias": (3,)}) == []
    assert differing_keys(STATE, {"b.weight": (2, 1), "c.bias": (3,)}) == [
        "missing c.bias",
        "unknown a.bias",
        "b.weight is (2,) instead of (2, 1)",
    ]


def test_converted_entries_come_back_as_they_were_stored() -> None:
    turned = Converted(
        r"conv.\1", lambda kernel: kernel.movedim((-1, -2), (0, 1)), lambda kernel: kernel.movedim((0, 1), (-1, -2))
    )
    key_map: KeyMap = {r"^keras/conv(\d)/kernel$": turned, r"^keras/": "plain."}
    official = {"keras/conv3/kernel": torch.rand(3, 3, 3, 2, 5), "keras/bias": torch.rand(5)}
    ours = rename_keys(official, key_map)
    assert list(ours) == ["conv.3", "plain.bias"] and ours["conv.3"].shape == (5, 2, 3, 3, 3)
    for name, value in official.items():
        place = find_place(name, key_map)
        assert place is not None and torch.equal(convert_back(ours[place], name, key_map), value)


def test_parts_of_a_network_come_together_under_their_names_and_apart_again() -> None:
    content = {"encoder": {"module.w": torch.ones(2)}, "head": {"b": torch.zeros(3)}, "epochs": 4}
    state = unpack_state_dict(content, "net.pth", "net", ("encoder", "head"))
    assert list(state) == ["encoder.w", "head.b"]
    packed = pack_state_dict(state, "net", ("encoder", "head"))
    assert list(packed) == ["encoder", "head"] and list(packed["encoder"]) == ["w"] and list(packed["head"]) == ["b"]


@pytest.mark.parametrize("parts", [(), ("a",), ("a", "b", "c")])
def test_what_is_not_of_the_parts_stays_whole(parts: tuple[str, ...]) -> None:
    assert list(pack_state_dict(STATE, "net", parts)) == ["net"]
    assert list(unpack_state_dict({"net": STATE}, "net.pth", "net", parts)) == list(STATE)


def test_a_part_that_is_none_is_named() -> None:
    with pytest.raises(InputError, match="net.pth, entry head, holds int"):
        unpack_state_dict({"encoder": STATE, "head": 3}, "net.pth", "net", ("encoder", "head"))
