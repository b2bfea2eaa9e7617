# SPDX-License-Identifier: Apache-2.0
"""Renaming the entries of an official state dict."""

from __future__ import annotations

import pytest

from common.checks import InputError
from common.io.state_dicts import rename_keys

KEY_MAP: dict[str, str | None] = {r"grid$": None, r"^enc\.(\d)\.": r"encoder.\1.", r"^(?:head|flow)\.": "flow."}


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
