# SPDX-License-Identifier: Apache-2.0
"""Labels of many labelled scans brought onto one that has none, and fused there.

Each atlas is registered to the target and its label map warped; where they disagree the vote decides. With the vote
"similarity" an atlas counts as much as its warped scan resembles the target around the voxel (locally weighted voting,
Artaechevarria et al. 2009), with "majority" each counts alike (Heckemann et al. 2006).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.checks import InputError
from common.metrics import dice_per_label
from common.spatial.foreground import foreground

VOTES = ("similarity", "majority")
_BLOCK = 2
"""Voxels averaged along each axis of images before they are compared locally: a vote's weight is smooth."""
_WINDOW = 5
"""Blocks along each axis of the window of the local correlation."""
_FLOOR = 1e-3
"""Weight of an atlas that resembles the target nowhere near: where all do, each has one voice."""


class Atlas(NamedTuple):
    """A labelled scan; image and label map are anything that the bundle registers, best files."""

    name: str
    image: Any
    label: Any


class Registers(Protocol):
    """What is asked of a bundle, see :func:`common.api.load_bundle`."""

    def register(self, moving: Any, fixed: Any, **options: Any) -> Any:
        """Return a :class:`common.api.Result`."""


@dataclass(frozen=True, eq=False)
class Propagation:
    """Labels on the target's grid.

    Attributes:
        label: (*spatial), integers, the fused label map.
        confidence: (*spatial) float32 in [0, 1], share of the votes that the label got; 1 where there is one atlas.
        affine: (4, 4), voxels to millimetres RAS+.
        similarities: per atlas, correlation of its warped scan with the target in the foreground, in [-1, 1].
        agreement: mean Dice of each two atlases' label maps on the target, in [0, 1]: where atlases agree, the labels
            can be trusted. None for one atlas.
    """

    label: np.ndarray
    confidence: np.ndarray
    affine: np.ndarray
    similarities: dict[str, float]
    agreement: float | None


def propagate(bundle: Registers, atlases: Sequence[Atlas], target: Any, vote: str = "similarity") -> Propagation:
    """Register each atlas to the target and fuse their labels there.

    Only what is needed is made: no inverse, no Jacobian, no files.

    Args:
        bundle: has a method ``register(moving, fixed, moving_label=...)``.
        atlases: at least one; each is the moving image of its pair.
        target: the fixed image.
        vote: "similarity" or "majority".

    Returns:
        Labels, confidence and figures.

    Raises:
        InputError: without atlases, for two of one name or an unknown vote, and as the bundle's ``register``.
    """
    if vote not in VOTES:
        raise InputError(f"The vote is {vote!r}; it is one of {', '.join(VOTES)}.")
    if not atlases:
        raise InputError("There is no atlas: labels come from at least one scan with a label map.")
    names = [atlas.name for atlas in atlases]
    if len(set(names)) < len(names):
        raise InputError(f"Two atlases have one name ({', '.join(sorted(names))}): each needs a name of its own.")
    labels, warped = [], []
    for atlas in atlases:
        result = bundle.register(atlas.image, target, moving_label=atlas.label)
        labels.append(torch.from_numpy(np.asarray(result.warped_label.array)))
        warped.append(torch.from_numpy(np.asarray(result.warped.array, dtype=np.float32)))
    fixed = torch.as_tensor(result.registration.pair["fixed_scan"]).float().reshape(warped[0].shape)
    label, confidence = fuse(labels, _weights(warped, fixed, vote))
    inside = foreground(fixed)
    return Propagation(
        label.numpy(),
        confidence.numpy(),
        np.asarray(result.warped_label.affine),
        {name: correlation(image, fixed, inside) for name, image in zip(names, warped, strict=True)},
        agreement(labels),
    )


def _weights(warped: Sequence[Tensor], fixed: Tensor, vote: str) -> list[Tensor] | None:
    if vote == "majority" or len(warped) == 1:
        return None
    return [local_similarity(image, fixed) for image in warped]


def fuse(labels: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """The label with the most votes per voxel; of several with as many the smallest.

    Args:
        labels: label maps (*spatial) of one shape, integers.
        weights: of the votes, (*spatial), not negative; None for one voice each.

    Returns:
        (*spatial) labels, and (*spatial) float32, the share of the votes that they got.

    Raises:
        InputError: for label maps or weights of several shapes.
    """
    if len({tuple(values.shape) for values in (*labels, *(weights or ()))}) != 1:
        raise InputError("The label maps to be fused have several shapes: they have to lie on one grid.")
    kind = labels[0].dtype
    for values in labels[1:]:
        kind = torch.promote_types(kind, values.dtype)
    fused, confidence = labels[0].to(kind, copy=True), torch.ones(labels[0].shape)
    # Most voxels need no vote.
    places = torch.stack([values != labels[0] for values in labels]).any(0)
    voices = [values[places].to(kind) for values in labels]
    if weights is None:
        shares = [torch.ones(len(voices[0]))] * len(voices)
    else:
        shares = [values[places].float().clamp(min=_FLOOR) for values in weights]
    best, votes = voices[0], torch.zeros(len(voices[0]))
    for voice in voices:
        found = sum((share * (other == voice) for other, share in zip(voices, shares, strict=True)), torch.zeros(()))
        wins = (found > votes) | ((found == votes) & (voice < best))
        best, votes = torch.where(wins, voice, best), torch.where(wins, found, votes)
    fused[places] = best
    confidence[places] = votes / torch.stack(shares).sum(0)
    return fused, confidence


def local_similarity(warped: Tensor, fixed: Tensor) -> Tensor:
    """Squared correlation of two images in a window about each voxel, in [0, 1]; 0 where either is constant.

    Args:
        warped: (*spatial) float, two or three axes.
        fixed: likewise.

    Returns:
        (*spatial) float32, smooth: it is measured on means of blocks of two voxels.
    """
    shape = fixed.shape
    images = torch.stack([warped, fixed])[:, None].float()
    pool = F.avg_pool2d if fixed.ndim == 2 else F.avg_pool3d
    block = [min(_BLOCK, n) for n in shape]
    one, other = pool(images, block, ceil_mode=True)
    # Sums of squares lose no digits about 0.
    one, other = ((image - image.mean()) / image.std().clamp(min=1e-6) for image in (one, other))
    maps = torch.stack([one, other, one * one, other * other, one * other])
    for axis in range(len(shape)):
        window = [_WINDOW if k == axis else 1 for k in range(len(shape))]
        maps = pool(maps, window, 1, [n // 2 for n in window], count_include_pad=False)
    mean, mean_other, square, square_other, product = maps
    spread = (square - mean**2).clamp(min=0) * (square_other - mean_other**2).clamp(min=0)
    squared = torch.where(spread > 1e-8, (product - mean * mean_other) ** 2 / spread.clamp(min=1e-8), 0.0)
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    finer = [n * b for n, b in zip(squared.shape[1:], block, strict=True)]
    smooth = F.interpolate(squared[None].clamp(max=1), finer, mode=mode, align_corners=False)[0, 0]
    return smooth[tuple(slice(n) for n in shape)]


def correlation(warped: Tensor, fixed: Tensor, inside: Tensor) -> float:
    """Pearson's correlation of two images (*spatial) in a mask; 0 where either is constant there."""
    one, other = (image[inside].double() for image in (warped, fixed))
    one, other = one - one.mean(), other - other.mean()
    scale = float(one.norm() * other.norm())
    return float(one @ other) / scale if scale > 0 else 0.0


def agreement(labels: Sequence[Tensor]) -> float | None:
    """Mean over each two label maps of their mean Dice, over the labels that either has; None for one map.

    Args:
        labels: (*spatial), integers, of one shape.
    """
    present = [set(values.unique().tolist()) - {0} for values in labels]
    found = []
    for one, other in itertools.combinations(range(len(labels)), 2):
        counted = sorted(present[one] | present[other])
        if counted:
            first, second = (labels[k][None, None] for k in (one, other))
            found.append(float(dice_per_label(first, second, counted, absent="zero").mean()))
    return sum(found) / len(found) if found else None
