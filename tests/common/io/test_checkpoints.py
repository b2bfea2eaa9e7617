# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from common.checks import InputError
from common.io.checkpoints import load_checkpoint, load_weights, save_atomically


class Malicious:
    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


def network(width: int = 3) -> nn.Linear:
    return nn.Linear(2, width)


ROOT = Path(__file__).parents[3]


def test_saved_weights_come_back_bit_for_bit(tmp_path: Path) -> None:
    first, second = network(), network()
    save_atomically(first.state_dict(), tmp_path / "deep" / "model.pt")
    load_weights(second, tmp_path / "deep" / "model.pt")
    assert torch.equal(first.weight, second.weight)
    assert os.listdir(tmp_path / "deep") == ["model.pt"]


def test_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.pt"
    save_atomically({"a": torch.ones(1)}, path)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="model.pt: the disk is full"):
        save_atomically({"a": torch.zeros(1)}, path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["model.pt"]


def test_write_that_really_breaks_off_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    save_atomically({"a": torch.ones(1)}, path)
    before = path.read_bytes()
    # A process that may write no more than a few kilobytes to a file meets a failing write in the middle of it.
    code = f"""
import resource, torch
from pathlib import Path
from common.engine.checkpoints import save_atomically
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
save_atomically({{"a": torch.zeros(100_000)}}, Path({str(path)!r}))
"""
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode != 0 and f"InputError: Cannot write {path}: File too large" in result.stderr
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["model.pt"]


def test_missing_weights_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There are no weights at .*train first"):
        load_weights(network(), tmp_path / "model.pt")


def test_weights_of_another_width_are_listed(tmp_path: Path) -> None:
    save_atomically(network(5).state_dict(), tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"does not fit the network: weight is \(5, 2\) instead of \(3, 2\)"):
        load_weights(network(), tmp_path / "model.pt")


def test_weights_of_two_dimensions_say_so(tmp_path: Path) -> None:
    save_atomically(nn.Conv2d(1, 2, 3).state_dict(), tmp_path / "model.pt")
    with pytest.raises(InputError, match="the weights are 2D: add --network_def#spatial_dims 2"):
        load_weights(nn.Conv3d(1, 2, 3), tmp_path / "model.pt")


def test_weights_of_another_network_are_listed(tmp_path: Path) -> None:
    save_atomically({"other": torch.ones(1)}, tmp_path / "model.pt")
    with pytest.raises(InputError, match="missing weight; missing bias; unknown other"):
        load_weights(network(), tmp_path / "model.pt")


@pytest.mark.parametrize(("value", "dtype"), [(torch.nan, torch.float32), (-torch.inf, torch.bfloat16)])
def test_weights_that_are_not_finite_are_refused(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    state = {name: tensor.to(dtype) for name, tensor in network().state_dict().items()}
    state["bias"][1] = value
    for name, content in (
        ("model.pt", state),
        ("checkpoint.pt", {"network": state}),
        ("FL_global_model.pt", {"model": state}),
    ):
        save_atomically(content, tmp_path / name)
        with pytest.raises(InputError, match=f"{name} has NaN or infinite values in 1 of 2 entries, the first is bias"):
            load_weights(network(), tmp_path / name)


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.pt").write_bytes(pickle.dumps(Malicious()))
    torch.save(Malicious(), tmp_path / "zip.pt")
    for name in ("model.pt", "zip.pt"):
        with pytest.raises(InputError, match="no checkpoint of tensors"):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    save_atomically(network().state_dict(), tmp_path / "model.pt")
    content = (tmp_path / "model.pt").read_bytes()
    (tmp_path / "model.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="model.pt is no checkpoint"):
        load_checkpoint(tmp_path / "model.pt")
