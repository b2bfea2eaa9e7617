# SPDX-License-Identifier: Apache-2.0
"""What the published implementations compute, computed here.

``pytest tests/golden --golden-dir DIR`` takes any folder FAMILY/CASE.npz. A family is a module in ``families`` with
``compute(meta, arrays)``, which returns its results under the names that they have in the file, and optionally
``is_input(meta, name)``, which tells inputs that do not carry the prefix of inputs.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import layout  # noqa: E402

FAMILIES = Path(__file__).parent / "families"


def family_of(golden_file: Path) -> ModuleType | None:
    path = FAMILIES / f"{golden_file.parent.name}.py"
    if not path.is_file():
        return None
    name = f"golden_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def expected_of(family: ModuleType, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> list[str]:
    is_input = getattr(family, "is_input", lambda meta, name: False)
    return [name for name in arrays if not name.startswith(layout.INPUTS) and not is_input(meta, name)]


def compare(computed: dict[str, np.ndarray], meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> list[str]:
    failures = []
    for name, value in computed.items():
        kind, allowed = layout.tolerance(meta, name)
        error = layout.difference(value, arrays[name], kind)
        if not error <= allowed:
            failures.append(f"{name}: {kind} difference {error:.3g}, allowed {allowed:.3g}")
    return failures


def test_golden(golden_file: Path, subtests: pytest.Subtests) -> None:
    family = family_of(golden_file)
    if family is None:
        pytest.skip(f"not built: {golden_file.parent.name}")
    meta, arrays = layout.load(golden_file)
    expected = expected_of(family, meta, arrays)
    computed = family.compute(meta, arrays)
    assert set(computed) <= set(expected), f"computed but not in the file: {sorted(set(computed) - set(expected))}"
    failures = compare(computed, meta, arrays)
    assert not failures, "\n".join(failures)
    missing = sorted(set(expected) - set(computed))
    if missing and not computed:
        pytest.skip(f"not built: {golden_file.parent.name}/{golden_file.stem}")
    if missing:
        with subtests.test("not built"):
            pytest.skip(f"not built: {', '.join(missing)}")
