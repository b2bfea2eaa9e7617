# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import builtins
import os
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import loky.backend.context
import pytest

from common.threads import NUMBER, SPINS, WAITING, share_cores

ROOT = Path(__file__).parents[2]
SHOW = (
    "import os, sys; from common.threads import share_cores; assert not share_cores() and 'torch' not in sys.modules; "
    "import torch; print(torch.get_num_threads(), os.environ.get('GOMP_SPINCOUNT'))"
)


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who has set nothing."""
    for name in (*NUMBER, *WAITING):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize("loaded", [True, False])
def test_the_environment_is_set_once(loaded: bool, undecided: None, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {name: module for name, module in sys.modules.items() if name != "torch"}
    monkeypatch.setattr(sys, "modules", {**modules, "torch": sys} if loaded else modules)
    assert share_cores() is loaded
    assert os.environ["OMP_NUM_THREADS"] == str(loky.cpu_count(only_physical_cores=True))
    assert os.environ["GOMP_SPINCOUNT"] == str(SPINS)
    assert not share_cores()


@pytest.mark.parametrize("name", NUMBER)
def test_the_users_number_wins(name: str, undecided: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "7")
    share_cores()
    assert [os.environ.get(other) for other in NUMBER] == ["7" if other == name else None for other in NUMBER]


@pytest.mark.parametrize("name", WAITING)
def test_the_users_way_of_waiting_wins(name: str, undecided: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "ACTIVE")
    share_cores()
    assert [os.environ.get(other) for other in WAITING] == ["ACTIVE" if other == name else None for other in WAITING]


@pytest.mark.parametrize(
    "files",
    [
        {"cpu.max": "100000 100000"},
        {"cpu.max": "50000 100000"},
        {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"},
    ],
)
def test_a_container_with_one_processor_computes_in_one_thread(
    files: dict[str, str], undecided: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {f"/sys/fs/cgroup/{name}": text for name, text in files.items()}
    read: Callable[..., Any] = builtins.open
    monkeypatch.setattr(os.path, "exists", lambda path: path in found)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(
        loky.backend.context,
        "open",
        lambda path, *args: StringIO(found[path]) if path in found else read(path, *args),
        raising=False,
    )
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    share_cores()
    assert os.environ["OMP_NUM_THREADS"] == "1"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity of processes here")
def test_torch_follows_the_affinity(undecided: None) -> None:
    core = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, [{core}]); {SHOW}"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.split() == ["1", str(SPINS)], run.stderr
