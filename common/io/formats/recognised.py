# SPDX-License-Identifier: Apache-2.0
"""What a header says of a file of vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.spatial.transform import Transform
from common.spatial.world import Grid

Reader = Callable[[Path, Any, Grid | None, Grid | None], Transform]
"""Path, opened file, grids of the fixed and the moving scan."""


@dataclass(frozen=True)
class Recognised:
    """What a file is.

    Attributes:
        what: in words.
        conventions: it can be read in; the first one where nothing is stated and its values do not say otherwise.
        read: for what is no vector per voxel of its grid.
    """

    what: str
    conventions: tuple[str, ...]
    read: Reader | None = None
