# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

SHIPPED = Path(__file__).parent / "data"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_file" in metafunc.fixturenames:
        folder = Path(metafunc.config.getoption("--golden-dir") or SHIPPED)
        files = sorted(folder.glob("*/*.npz"))
        if not files:
            raise pytest.UsageError(f"--golden-dir {folder} holds no golden files (FAMILY/CASE.npz).")
        metafunc.parametrize("golden_file", files, ids=[f"{file.parent.name}-{file.stem}" for file in files])
