# SPDX-License-Identifier: Apache-2.0
"""Whether a displacement field was read in the right convention, by what it does to the images.

The header of a file may say nothing about units, order of components, orientation or direction. The right reading makes
the moving image look like the fixed one; a wrong one is worse than no registration, while another reading is better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from common.spatial import Grid, sample_at, sample_labels_at
from common.spatial.foreground import foreground as image_foreground

POINTS = 20_000
"""Voxels of the fixed foreground that are looked at, about."""
MARGIN = 0.1
"""Share of the way from no registration to perfect similarity that another reading must go to count."""
SHARE = 0.5
"""The stated reading is refused below this share of the other one's gain."""
LENGTH_MARGIN = 0.5
LENGTH_SHARE = 0.85
"""The same for readings that only change the lengths of displacements. Noise gets better when it is shortened, and an
honest method may fall short: only a very good result, and the best of all lengths, is taken for a matter of units."""
LENGTHS = (0.75, 1.3)
GUESS_MARGIN = 0.02
"""Share of that way by which millimetres must be better than voxels where the file says neither."""
FAR = 5.0
SAME = 0.05
"""Readings whose displacements differ by less than this factor are one."""
_LPS = torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64))
_FRAMES: dict[tuple[int, ...], str] = {(1, 1, 1): "RAS", (-1, -1, 1): "LPS", (-1, 1, 1): "LAS", (1, -1, 1): "RPS"}


@dataclass(frozen=True)
class Reading:
    """One way to understand the numbers of a file.

    Attributes:
        name: for people.
        matrix: (3, 3), what makes voxels of the fixed grid of a vector of the file.
        convention: value of ``convention`` that reads a file so, None where there is none.
        complexity: how far-fetched it is; the simplest of equally good ones is named.
    """

    name: str
    matrix: Tensor
    convention: str | None
    complexity: int


@dataclass(frozen=True)
class Sides:
    """What a field is judged by: one kind of picture of both sides, or their label maps.

    Attributes:
        moving: (1, *moving grid).
        fixed: (1, *fixed grid).
        is_label: whether values are compared for equality rather than correlated.
    """

    moving: Tensor
    fixed: Tensor
    is_label: bool = False


def diagnose(
    path: str | Path,
    ddf: Tensor,
    sides: list[Sides],
    fixed: Grid,
    between: Tensor,
    convention: str,
    foreground: Tensor | None = None,
    guessed: bool = False,
) -> str | None:
    """Say what a field looks like, if that is something else than what it was taken for.

    A field of zeros, or one that simply registers badly, passes: there is no other reading that does well.

    Args:
        path: of the field, for the sentence.
        ddf: (1, 3, *fixed.shape), as it was read.
        sides: what to judge by; all of them must speak for another reading.
        fixed: grid of the fixed image.
        between: (4, 4), voxels of the fixed grid to voxels of the moving grid.
        convention: how the file was read, as :func:`common.io.fields.read_field` says.
        foreground: (1, *fixed.shape), label map of where to look; default: the foreground of the first fixed side.
        guessed: whether the file may as well hold millimetres; then the better one of the two must have been read.

    Returns:
        A sentence for the user, None when there is nothing to say.
    """
    shown = sides[0].fixed if foreground is None else foreground
    points = _points(shown != 0 if foreground is not None or sides[0].is_label else image_foreground(shown))
    if points.shape[1] < 100:
        return None
    vectors = ddf[0][:, points[0], points[1], points[2]].double()
    stated = _matrix_of(convention, fixed)
    raw = torch.linalg.inv(stated) @ vectors
    judges = [_judge(side, points, between) for side in sides]
    score = judges[0]
    before, now = score(torch.zeros_like(vectors)), score(vectors)
    good: list[tuple[float, Reading]] = []
    for reading in plausible_readings(fixed, halved=convention == "learn2reg_half"):
        kind = _change(reading.matrix @ torch.linalg.inv(stated))
        if kind != "none":
            found = reading.matrix @ raw
            value = score(found)
            is_rival = guessed and reading.convention in ("ras_mm", "lps_mm")
            if _is_better(value, now, before, kind, is_rival) and (
                kind == "turn" or value >= max(score(factor * found) for factor in LENGTHS)
            ):
                good.append((value, reading))
    if not good:
        return None
    best = max(value for value, _ in good)
    good = [item for item in good if item[0] - before > 0.9 * (best - before)]
    value, reading = min(good, key=lambda item: item[1].complexity)
    if any(judge(reading.matrix @ raw) <= judge(vectors) for judge in judges[1:]):
        return None
    can_state = reading.convention is not None and convention in ("voxels", "lps_mm", "ras_mm")
    advice = f"state --convention {reading.convention}" if can_state else "write it in a known convention"
    if torch.allclose(reading.matrix, -stated):
        advice = "exchange moving and fixed in the pair list"
    return (
        f"{path}, read as {convention}, takes the {'labels' if sides[0].is_label else 'images'} from a similarity of "
        f"{before:.3f} to {now:.3f}, but to {value:.3f} if its values were {reading.name}, which is what it looks "
        f"like: {advice}, or evaluate it as it is with --trust true."
    )


def plausible_readings(grid: Grid, halved: bool = True) -> list[Reading]:
    """All ways to understand vectors on a grid: units, world or array axes, signs, order, scale and direction.

    Args:
        grid: of the fixed image.
        halved: whether the values may be voxels of a grid of half the size. Nothing but a file of that size suggests
            it, and a field that is too short is more often the work of a weak method.

    Returns:
        The simplest first.
    """
    to_voxels = torch.linalg.inv(grid.affine[:3, :3])
    extent = torch.diag((torch.tensor(grid.shape, dtype=torch.float64) - 1) / 2)
    readings: list[Reading] = []
    for reverse, signs in product((False, True), product((1, -1), repeat=3)):
        turn = torch.diag(torch.tensor(signs, dtype=torch.float64))
        order = torch.eye(3, dtype=torch.float64)
        order = order.flip(0) if reverse else order
        for unit, base, known in _units(signs, to_voxels, extent):
            if "half" in unit and not halved:
                continue
            frame, opposite = _frame(signs)
            name, cost = _name(unit, frame, opposite, "zyx"[3 - grid.dims :] if reverse else "")
            readings.append(Reading(name, base @ turn @ order, None if reverse else known, cost))
    return sorted(readings, key=lambda reading: reading.complexity)


def _units(signs: tuple[int, ...], to_voxels: Tensor, extent: Tensor) -> Iterator[tuple[str, Tensor, str | None]]:
    """Unit, matrix to voxels, and convention that reads it with these signs."""
    eye = torch.eye(3, dtype=torch.float64)
    is_ras, is_lps = signs == (1, 1, 1), signs == (-1, -1, 1)
    yield "voxels", eye, "voxels" if is_ras else None
    yield "mm", to_voxels, "ras_mm" if is_ras else "lps_mm" if is_lps else None
    yield "voxels of a grid of half the size", 2 * eye, None
    yield "voxels of a grid of twice the size", 0.5 * eye, None
    yield "fractions of the image, -1 to 1,", extent, None


def _frame(signs: tuple[int, ...]) -> tuple[str, bool]:
    if signs in _FRAMES:
        return _FRAMES[signs], False
    return _FRAMES[tuple(-sign for sign in signs)], True


def _name(unit: str, frame: str, opposite: bool, reverse: str) -> tuple[str, int]:
    """Words for a reading, and how far-fetched it is."""
    axes = {
        "RAS": "",
        "LPS": " with axes 0 and 1 reversed",
        "LAS": " with axis 0 reversed",
        "RPS": " with axis 1 reversed",
    }
    name = f"{frame} millimetres" if unit == "mm" else unit + axes[frame]
    # Millimetres have a world, in which LPS is common; array axes have none.
    cost = {"voxels": 0, "mm": 1}.get(unit, 6) + {"RAS": 0, "LPS": 0 if unit == "mm" else 3}.get(frame, 5)
    if reverse:
        name += f", components in reversed order ({', '.join(reverse)})"
    if opposite:
        name += ", opposite direction (from the moving to the fixed image)"
    return name, cost + 2 * opposite + 3 * bool(reverse)


def _matrix_of(convention: str, grid: Grid) -> Tensor:
    """What made voxels of the file's vectors when it was read."""
    to_voxels = torch.linalg.inv(grid.affine[:3, :3])
    if convention in ("voxels", "learn2reg_half"):
        return torch.eye(3, dtype=torch.float64)
    return to_voxels @ _LPS if convention in ("lps_mm", "itk") else to_voxels


def _change(relative: Tensor) -> str:
    """What another reading does to the displacements: "none", their "length" or a "turn".

    Many times longer counts as a matter of length, too: there noise may gain by any turn.
    """
    diagonal, size = relative.diagonal(), float(torch.linalg.matrix_norm(relative, 2))
    if size < FAR and ((relative - torch.diag(diagonal)).abs().max() > SAME * size or diagonal.min() < 0):
        return "turn"
    return "none" if bool((relative - torch.eye(3)).abs().max() < SAME) else "length"


def _is_better(value: float, now: float, before: float, kind: str, is_rival: bool) -> bool:
    """Whether another reading is so much better than the one taken that it must be meant; less of a rival as likely."""
    if is_rival and value - before > MARGIN * (1 - before) and value - now > GUESS_MARGIN * (1 - before):
        return True
    margin, share = (LENGTH_MARGIN, LENGTH_SHARE) if kind == "length" else (MARGIN, SHARE)
    return value - before > margin * (1 - before) and now - before < share * (value - before)


def _points(foreground: Tensor) -> Tensor:
    """(3, N) voxel indices of a thinned lattice inside the foreground."""
    inside = foreground[0]
    share = float(inside.float().mean())
    if not 0.005 < share < 0.995:
        inside = torch.ones_like(inside)
        share = 1.0
    step = max(1, round((inside.numel() * share / POINTS) ** (1 / 3)))
    # Of an axis of few voxels the middle, not none.
    starts = [min(step // 2, n // 2) for n in inside.shape]
    lattice = inside[tuple(slice(start, None, step) for start in starts)]
    return lattice.nonzero().T * step + torch.tensor(starts, device=inside.device)[:, None]


def _judge(side: Sides, points: Tensor, between: Tensor) -> Callable[[Tensor], float]:
    """Function that says how well displacements (3, N) at the points bring the sides together, at most 1."""
    fixed = side.fixed[0][tuple(points)]

    def score(vectors: Tensor) -> float:
        places = (between[:3, :3] @ (points + vectors) + between[:3, 3:]).T[None]
        if side.is_label:
            return float((sample_labels_at(side.moving[None], places, by_header=True)[0, 0] == fixed).double().mean())
        sampled = sample_at(side.moving[None].float(), places.float())[0, 0]
        return _correlation(fixed.double(), sampled.double())

    return score


def _correlation(one: Tensor, other: Tensor) -> float:
    one, other = one - one.mean(), other - other.mean()
    scale = one.norm() * other.norm()
    return float(one @ other / scale) if float(scale) > 0 else 0.0
