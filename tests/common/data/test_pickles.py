# SPDX-License-Identifier: Apache-2.0
"""Pickles are read as arrays and never run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.checks import InputError
from common.data import load_arrays


class Command:
    """Runs a shell command when it is unpickled the ordinary way."""

    def __init__(self, command: str) -> None:
        """Keep the command."""
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        """Ask the unpickler to call ``os.system``."""
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_every_protocol_come_back(tmp_path: Path, protocol: int, order: Any) -> None:
    image = np.asarray(np.random.default_rng(0).random((3, 4, 5), np.float32), order=order)
    label = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    path = tmp_path / "p_0001.pkl"
    path.write_bytes(pickle.dumps((image, label), protocol=protocol))
    loaded = load_arrays(path)
    np.testing.assert_array_equal(loaded[0], image)
    np.testing.assert_array_equal(loaded[1], label)
    assert loaded[1].dtype == np.int16


@pytest.mark.parametrize("core", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_files_of_numpy_1_and_numpy_2_are_both_read(tmp_path: Path, core: bytes) -> None:
    written = pickle.dumps(np.arange(3.0), protocol=2)
    present = b"numpy._core.multiarray" if b"numpy._core" in written else b"numpy.core.multiarray"
    path = tmp_path / "p_0001.pkl"
    path.write_bytes(written.replace(present, core))
    np.testing.assert_array_equal(load_arrays(path)[0], np.arange(3.0))


def test_a_pickle_with_a_command_is_refused_and_does_not_run(tmp_path: Path) -> None:
    proof, path = tmp_path / "proof", tmp_path / "p_0001.pkl"
    path.write_bytes(pickle.dumps((np.zeros(2), Command(f"touch {proof}"))))
    with pytest.raises(InputError, match=r"p_0001.pkl asks for (posix|nt)\.system, but only NumPy arrays are admitted"):
        load_arrays(path)
    assert not proof.exists()
    pickle.loads(path.read_bytes())
    assert proof.exists(), "the command works, so the test above proves something"


@pytest.mark.parametrize("name", [("builtins", "eval"), ("numpy", "load"), ("numpy._core.multiarray", "fromfile")])
def test_other_functions_are_refused(tmp_path: Path, name: tuple[str, str]) -> None:
    path = tmp_path / "p.pkl"
    path.write_bytes(b"c" + "\n".join(name).encode() + b"\n.")
    with pytest.raises(InputError, match=f"asks for {name[0]}.{name[1]}"):
        load_arrays(path)


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps(np.zeros(1000))[:-20]])
def test_a_damaged_pickle_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "p_0001.pkl"
    path.write_bytes(content)
    with pytest.raises(InputError, match="p_0001.pkl cannot be read"):
        load_arrays(path)


@pytest.mark.parametrize("content", [(), "text", {"image": np.zeros(2)}, (np.zeros(2), "text"), (np.array([{}]),)])
def test_something_else_than_arrays_is_named(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "p_0001.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match="p_0001.pkl does not hold a tuple of numeric NumPy arrays"):
        load_arrays(path)


def test_a_missing_pickle_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent.pkl does not exist"):
        load_arrays(tmp_path / "absent.pkl")
