# SPDX-License-Identifier: Apache-2.0
"""What scanners do to a scan that a registration should not feel: pose, intensities, field of view, voxel size.

Each is a pure function of a scan and a seed. A pose is a matter of the header, as of a scanner that has turned its
coordinates: no voxel is interpolated. Values are changed where there is no background, as of a brain that is cut out
afterwards. Noise and bias field are those of BrainWeb's worst scans (Cocosco et al., NeuroImage 5 (1997) S425; Collins
et al., IEEE TMI 17 (1998) 463-468).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from common.checks import InputError
from common.data.synthesis_noise import enlarged
from common.io.images import Image
from common.spatial import resample, working_grid
from common.spatial.foreground import background, foreground
from common.spatial.plane import lifted
from common.spatial.upright import closest_axes

NOISE = 0.09
"""Standard deviation of Rician noise, as a part of the bright value."""
BIAS = 0.2
"""How far the field of a coil lies from 1 where it is farthest, in the object."""
CUT = 0.2
"""Part of the object's height that the field of view leaves out, from below."""
_COARSE = 4
"""Numbers per axis of the coil's field, which is linear between them."""
_BRIGHT = 0.999


class Perturbation(NamedTuple):
    """One way to change a scan.

    Attributes:
        apply: the scan and a seed to the changed scan.
        moves: whether it lies elsewhere then, and its label map with it; otherwise this stays true as it is.
    """

    apply: Callable[[Image, int], Image]
    moves: bool = False

    def of_label(self, label: Image, seed: int) -> Image:
        """The label map of the changed scan, on the grid of the scan as it was, so that none of it is lost."""
        return self.apply(label, seed) if self.moves else label


def turned(scan: Image, seed: int, degrees: float) -> Image:
    """Turned about the centre of its grid, and an axis that the seed chooses; of two dimensions in the plane."""
    axis = _direction(seed, 3) if scan.grid.dims == 3 else torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    x, y, z = axis.tolist()
    cross = torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]], dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.linalg.matrix_exp(math.radians(degrees) * cross)
    grid = scan.grid
    middle = torch.tensor([(size - 1) / 2 for size in grid.shape], dtype=torch.float64)
    centre = grid.affine[:3, :3] @ middle + grid.affine[:3, 3]
    pose[:3, 3] = centre - pose[:3, :3] @ centre
    return _posed(scan, pose)


def shifted(scan: Image, seed: int, millimetres: float) -> Image:
    """Shifted by so much in a direction that the seed chooses."""
    dims = scan.grid.dims
    pose = torch.eye(4, dtype=torch.float64)
    pose[:dims, 3] = millimetres * _direction(seed, dims)
    return _posed(scan, pose)


def rescaled(scan: Image, seed: int, factor: float, offset: float) -> Image:
    """Every value times ``factor``, plus ``offset`` times the span from background to bright; the seed has no say."""
    values = _values(scan)
    return _with(scan, factor * values + offset * _span(values))


def biased(scan: Image, seed: int) -> Image:
    """Times a smooth field from 1 - ``BIAS`` to 1 + ``BIAS`` inside the object, as of a coil near it."""
    values = _values(scan)
    coarse = torch.randn((1, 1, *[_COARSE] * values.ndim), generator=_generator(seed), dtype=values.dtype)
    field, there = enlarged(coarse, values.shape)[0, 0], foreground(values)
    low, high = field[there].aminmax()
    field = 1 + BIAS * (2 * (field - low) / (high - low) - 1)
    dark = background(values)
    return _with(scan, torch.where(there, dark + field * (values - dark), values))


def noisy(scan: Image, seed: int) -> Image:
    """With Rician noise of ``NOISE`` times the bright value, which a magnitude image has."""
    values = _values(scan)
    noise = torch.randn((2, *values.shape), generator=_generator(seed), dtype=values.dtype)
    real, imaginary = NOISE * _span(values) * noise
    dark = background(values)
    return _with(scan, torch.where(foreground(values), dark + torch.hypot(values - dark + real, imaginary), values))


def cut(scan: Image, seed: int) -> Image:
    """Without the lowest ``CUT`` of the object, of two dimensions along the second axis; the seed has no say."""
    values, grid = lifted(_values(scan), scan.grid.dims), scan.grid
    axis = 1 if grid.flat else closest_axes(grid.affine[:3, :3])[2]
    others = tuple(k for k in range(3) if k != axis)
    there = foreground(values).any(others[1]).any(others[0]).nonzero()
    first, last = int(there.min()), int(there.max()) + 1
    lost = round(CUT * (last - first))
    start, stop = [0, 0, 0], [*grid.shape]
    upwards = grid.flat or bool(grid.affine[2, axis] > 0)
    (start if upwards else stop)[axis] = first + lost if upwards else last - lost
    part = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))[: scan.array.ndim]
    return Image(scan.array[part], grid.cropped(start, stop).affine.numpy(), scan.name)


def with_voxels(scan: Image, seed: int, millimetres: float) -> Image:
    """Sampled with isotropic voxels of another size, after a blur where these are larger; the seed has no say."""
    source = scan.grid
    target = working_grid(source, [millimetres] * source.dims)
    values = resample(_values(scan).reshape(1, 1, *source.shape), source, target)[0, 0]
    return Image(values.reshape(target.shape[: source.dims]).numpy(), target.affine.numpy(), scan.name)


PERTURBATIONS: dict[str, Perturbation] = {
    "as they are": Perturbation(lambda scan, seed: scan),
    "turned by 5°": Perturbation(partial(turned, degrees=5), moves=True),
    "turned by 10°": Perturbation(partial(turned, degrees=10), moves=True),
    "shifted by 5 mm": Perturbation(partial(shifted, millimetres=5), moves=True),
    "intensities scaled and shifted": Perturbation(partial(rescaled, factor=3, offset=1)),
    "bias field, ±20 %": Perturbation(biased),
    "noise, 9 %": Perturbation(noisy),
    "field of view cut by 20 %": Perturbation(cut),
    "voxels of 1 mm": Perturbation(partial(with_voxels, millimetres=1)),
    "voxels of 3 mm": Perturbation(partial(with_voxels, millimetres=3)),
}
"""By what tables call them, the scan as it is first."""


def _posed(scan: Image, pose: Tensor) -> Image:
    """The same voxels in another place: ``pose`` (4, 4) takes the old world to the new one."""
    return replace(scan, affine=pose.numpy() @ scan.affine)


def _values(scan: Image) -> Tensor:
    return torch.from_numpy(scan.array.copy()).float()


def _with(scan: Image, values: Tensor) -> Image:
    return replace(scan, array=values.numpy())


def _span(values: Tensor) -> Tensor:
    """From background to the value above 99.9 % of the object.

    Raises:
        InputError: for an image of one value.
    """
    there = values[foreground(values)]
    if not there.numel():
        raise InputError("A scan of one value alone cannot be perturbed; leave it out.")
    rank = max(1, round(_BRIGHT * there.numel()))
    return there.kthvalue(rank).values - background(values)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _direction(seed: int, dims: int) -> Tensor:
    """A vector of length 1, (dims,) float64, all directions alike."""
    vector = torch.randn(dims, generator=_generator(seed), dtype=torch.float64)
    return vector / vector.norm()
