# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden-dir", help="folder of golden files FAMILY/CASE.npz (default: tests/golden/data)")
