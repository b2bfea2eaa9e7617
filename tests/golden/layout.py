# SPDX-License-Identifier: Apache-2.0
"""Reading a golden file and comparing with it.

A golden file is one ``.npz`` with what a published implementation computes: ``meta`` (JSON: constructor, weights by
rule, tolerances), inputs ``in/...``, and results ``out/``, ``loss/``, ``grad/``, ``traj/``, ``stat/``, ``f64/``.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

INPUTS = "in/"


def load(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(meta, arrays) of a file; what is stored in half precision comes back as float32."""
    with np.load(path, allow_pickle=False) as file:
        meta = json.loads(str(file["meta"]))
        arrays = {name: file[name] for name in file.files if name != "meta"}
    halves = (np.float16,)
    return meta, {name: a.astype(np.float32) if a.dtype in halves else a for name, a in arrays.items()}


def fill(entries: list[list[Any]], seed: int = 0, scale: Mapping[str, float] | None = None) -> dict[str, np.ndarray]:
    """Weights by rule: normal numbers from a seed that the entry's name gives, scaled by what kind of entry it is.

    Args:
        entries: [official name, shape, type] of each entry of the state dict.
        seed: added to the checksum of the name.
        scale: regular expression to factor; the first that matches a name counts.
    """
    weights = {}
    for name, shape, *_ in entries:
        values = _rule(name, tuple(shape), seed)
        factor = next((f for pattern, f in (scale or {}).items() if re.search(pattern, name)), 1)
        weights[name] = (values * factor).astype(values.dtype)
    return weights


def _rule(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    leaf = name.split(".")[-1]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    normal = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32).standard_normal(shape)  # noqa: NPY002
    if leaf == "running_var":
        normal = 1 + 0.1 * np.abs(normal)
    elif len(shape) > 1:
        normal = normal / np.sqrt(np.prod(shape[1:]))
    elif leaf == "weight":
        normal = 1 + 0.1 * normal
    else:
        normal = 0.05 * normal
    return np.asarray(normal, np.float32)


def blobs(shape: Sequence[int], seed: int, count: int = 12) -> np.ndarray:
    """An image of Gaussian spots in [0, 1], rounded to half precision, that a file names instead of storing it."""
    random = np.random.RandomState(seed)  # noqa: NPY002
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    image = np.zeros(tuple(shape))
    for _ in range(count):
        centre = random.uniform(-0.7, 0.7, len(shape))
        width, height = random.uniform(0.15, 0.45), random.uniform(0.3, 1)
        distance = sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True))
        image += height * np.exp(-distance / (2 * width**2))
    return (image / image.max()).astype(np.float16).astype(np.float32)


def tolerance(meta: Mapping[str, Any], name: str) -> tuple[str, float]:
    """(kind, value) of the longest entry of the file's tolerances that ``name`` starts with."""
    matching = [prefix for prefix in meta["tolerance"] if name.startswith(prefix)]
    if matching:
        kind, value = meta["tolerance"][max(matching, key=len)]
        return kind, value
    # The files state none where rounding alone decides: whole numbers exactly, a round-trip error to three digits.
    return ("rel", 1e-3) if name.startswith("f64/max_") else ("abs", 0.0)


def difference(computed: np.ndarray, stored: np.ndarray, kind: str) -> float:
    """Largest absolute difference, for ``rel`` over the largest stored value; inf when shapes, NaN or inf disagree."""
    computed, stored = np.asarray(computed, np.float64), np.asarray(stored, np.float64)
    if computed.shape != stored.shape:
        return float("inf")
    finite = np.isfinite(stored)
    if (
        not np.array_equal(computed[~finite], stored[~finite], equal_nan=True)
        or not np.isfinite(computed[finite]).all()
    ):
        return float("inf")
    if not finite.any():
        return 0.0
    error, size = np.abs(computed[finite] - stored[finite]).max(), np.abs(stored[finite]).max()
    return float(error / size) if kind == "rel" and size > 0 else float(error)
