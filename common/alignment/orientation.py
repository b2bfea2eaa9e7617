# SPDX-License-Identifier: Apache-2.0
"""Which way up: rotations all over the sphere tried at low resolution, for scans that their headers turn.

Mutual information has an optimum near many rotations, so that gradient ascent from the header's ends in the wrong one
and calls it settled. How much better the best orientation is than any other one is a verdict of another kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor

from common.alignment.mutual_information import ScanPair

_STEPS = 2
"""Quaternions of whole numbers up to here: 272 rotations, none farther than 40 degrees from all, 19 on average."""
_APART = 35.0
"""Degrees between two rotations that count as different orientations."""
_REFINED = 6
CLEAR = 0.05
"""Nats by which one orientation has to be better than another one. The right one of two scans of one kind leads by 0.2
(heads of two people, with necks) to 1."""


@dataclass(frozen=True, eq=False)
class Orientation:
    """A rigid map with the best orientation that is known.

    Attributes:
        matrix: (4, 4) float64, fixed world to moving world.
        lead: how much better it is than any other orientation, nats per point.
        rival: rotation in degrees that leads to the best other one.
    """

    matrix: Tensor
    lead: float
    rival: float


def best_orientation(pair: ScanPair, known: Tensor, refined: Callable[[Tensor], Tensor]) -> Orientation:
    """The map that is known, unless another orientation is clearly better.

    Args:
        pair: at the coarsest resolution.
        known: (4, 4), the best map near the headers' orientation.
        refined: makes a better map of a rigid one.
    """
    found = [refined(start) for start in _likely(pair)]
    scores = [_score(pair, matrix) for matrix in found]
    best, score = known, _score(pair, known)
    if max(scores) > score + CLEAR:
        score = max(scores)
        best = found[scores.index(score)]
    others = [(_score(pair, known), known), *zip(scores, found, strict=True)]
    apart = ((value, degrees_between(best, matrix)) for value, matrix in others)
    rival, angle = max((entry for entry in apart if entry[1] > _APART), default=(0.0, 0.0))
    return Orientation(best, score - rival, angle)


def _likely(pair: ScanPair) -> list[Tensor]:
    """The best rotations about the centres of mass, no two of them alike."""
    centres = pair.fixed.centre_of_mass(), pair.moving.centre_of_mass()
    starts = [rigid(turn, *centres) for turn in (turns_in_plane() if pair.flat else rotations())]
    scores = [_score(pair, start) for start in starts]
    chosen: list[Tensor] = []
    for k in sorted(range(len(starts)), key=lambda k: -scores[k]):
        if all(degrees_between(starts[k], other) > _APART for other in chosen):
            chosen.append(starts[k])
        if len(chosen) == _REFINED:
            break
    return chosen


@lru_cache(maxsize=1)
def rotations() -> Tensor:
    """(272, 3, 3) float64, spread over all rotations; the 24 that turn a cube onto itself are among them."""
    whole = range(-_STEPS, _STEPS + 1)
    found: dict[tuple[int, ...], None] = {}
    for quaternion in product(whole, repeat=4):
        divisor = math.gcd(*quaternion)
        # Opposite quaternions are one rotation, and so are multiples.
        if divisor and next(x for x in quaternion if x) > 0:
            found[tuple(x // divisor for x in quaternion)] = None
    unit = torch.tensor(list(found), dtype=torch.float64)
    return torch.stack(list(_matrices(unit / unit.norm(dim=1, keepdim=True))))


def turns_in_plane() -> Tensor:
    """(36, 3, 3) float64, the turns of an image of two dimensions, ten degrees apart."""
    halves = torch.arange(36, dtype=torch.float64) * (math.pi / 36)
    still = torch.zeros_like(halves)
    return torch.stack(list(_matrices(torch.stack([halves.cos(), still, still, halves.sin()], dim=1))))


def _matrices(quaternions: Tensor) -> Iterator[Tensor]:
    for w, x, y, z in quaternions.tolist():
        yield torch.tensor(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ],
            dtype=torch.float64,
        )


def rigid(turn: Tensor, fixed: Tensor, moving: Tensor) -> Tensor:
    """(4, 4) map that turns about the point ``fixed`` and carries it to ``moving``."""
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3], matrix[:3, 3] = turn, moving - turn @ fixed
    return matrix


def degrees_between(one: Tensor, other: Tensor) -> float:
    """Angle of the rotation that leads from one map (4, 4) to another one; of affine maps their rotations count."""
    turns = []
    for matrix in (one, other):
        left, _, right = torch.linalg.svd(matrix[:3, :3])
        turns.append(left @ right)
    return math.degrees(math.acos(max(-1.0, min(1.0, (float(torch.trace(turns[0].T @ turns[1])) - 1) / 2))))


def _score(pair: ScanPair, matrix: Tensor) -> float:
    """Information in nats about all points: the few that are left where scans hardly meet resemble anything."""
    with torch.no_grad():
        information, overlap = pair.information(matrix)
    return float(information) * overlap
