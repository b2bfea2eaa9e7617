# SPDX-License-Identifier: Apache-2.0
"""Blurred half-size pyramids of images and of label maps, on whose levels a loss is evaluated."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from common.checks import InputError
from common.losses.closed_form import computing_dtype
from common.losses.dice import check_labels

_TAPS = 5
# Standard deviation of the blur per axis; infinity is the box. The published 3D kernel is a slip of its authors that
# their weights were trained with: Gaussians of variance 1 and 1/2 along the first and the last axis, flat along the
# middle one.
PUBLISHED_SIGMAS = (1.0, math.inf, math.sqrt(0.5))


class ImagePyramid:
    """The pyramid of one training recipe: :func:`image_pyramid` and :func:`label_pyramid` with fixed settings.

    Args:
        kernel: as in :func:`image_pyramid`.
        axes: as in :func:`image_pyramid`.
        num_classes: number of classes of the label maps, background included; only :meth:`labels` needs it.
    """

    def __init__(
        self, kernel: str = "published", axes: Sequence[int] | None = None, num_classes: int | None = None
    ) -> None:
        self.kernel = kernel
        self.axes = None if axes is None else tuple(axes)
        self.num_classes = num_classes

    def __call__(self, image: Tensor, levels: int) -> list[Tensor]:
        """Return ``levels`` levels of an image (B, C, *spatial), finest first."""
        return image_pyramid(image, levels, self.kernel, self.axes)

    def labels(self, label: Tensor, levels: int) -> list[Tensor]:
        """Return the label map (B, 1, *spatial) itself, then the coarser levels as maps (B, num_classes, ...)."""
        if self.num_classes is None:
            raise InputError("ImagePyramid got a label map but has no num_classes; give it the number of classes.")
        return [label, *label_pyramid(label, self.num_classes, levels, self.kernel, self.axes)]


def image_pyramid(
    image: Tensor, levels: int, kernel: str = "published", axes: Sequence[int] | None = None
) -> list[Tensor]:
    """Repeatedly blur and halve an image; can be differentiated.

    Level i + 1 is the corner-aligned linear resampling to ``n // 2`` voxels per axis of level i blurred by a separable
    five-tap kernel with zero padding (which dims the border). Per axis both are one small matrix.

    Args:
        image: (B, C, *spatial), 2D or 3D.
        levels: number of levels, the image itself included.
        kernel: ``"published"``, EOIR's anisotropic kernel (standard deviations 1, infinite, sqrt(1/2) along the three
            axes), or ``"isotropic"``, standard deviation 1 along each. In 2D, where nothing is published, both mean
            isotropic.
        axes: spatial axes to blur and halve (default: all); ``(0, 1)`` with ``"isotropic"`` is the in-plane form for
            ACDC.

    Returns:
        ``levels`` tensors (B, C, *spatial / 2**i), finest first; the first is ``image`` itself, the others are float32
        (float64 for a float64 image).

    Raises:
        InputError: for an unknown kernel or axis, or if the image is too small for that many levels.
    """
    sigmas = _sigmas(image.ndim - 2, kernel, axes)
    _check_levels(image.shape[2:], levels, sigmas)
    pyramid = [image]
    level = image.to(computing_dtype(image))
    with torch.autocast(image.device.type, enabled=False):
        for _ in range(levels - 1):
            level = _reduce(level, _matrices(level, sigmas))
            pyramid.append(level)
    return pyramid


def label_pyramid(
    label: Tensor, num_classes: int, levels: int, kernel: str = "published", axes: Sequence[int] | None = None
) -> list[Tensor]:
    """Coarse levels of the pyramid of the one-hot form of a label map, without a full-size one-hot volume.

    Args:
        label: (B, 1, *spatial), integer dtype, values 0 .. num_classes - 1.
        num_classes: number of channels of the result, background included.
        levels: number of levels including the full-size one, which is not part of the result.
        kernel: as in :func:`image_pyramid`.
        axes: as in :func:`image_pyramid`.

    Returns:
        ``levels - 1`` float32 tensors (B, num_classes, *spatial / 2**i), i = 1, 2, ...; no gradient.

    Raises:
        InputError: as :func:`image_pyramid`, and for labels out of range.
    """
    sigmas = _sigmas(label.ndim - 2, kernel, axes)
    _check_levels(label.shape[2:], levels, sigmas)
    check_labels(label, num_classes, "label")
    if levels == 1:
        return []
    matrices = _matrices(label.new_empty((0, *label.shape[1:]), dtype=torch.float32), sigmas)
    with torch.no_grad(), torch.autocast(label.device.type, enabled=False):
        first = torch.stack([_reduce_classes(volume[0], num_classes, matrices) for volume in label])
        return [first, *image_pyramid(first, levels - 1, kernel, axes)[1:]]


def _reduce_classes(label: Tensor, num_classes: int, matrices: Sequence[Tensor | None]) -> Tensor:
    """Reduced indicator of every class of one volume, each computed inside the bounding box of the class."""
    sizes = [n if matrix is None else matrix.shape[0] for n, matrix in zip(label.shape, matrices, strict=True)]
    reduced = torch.zeros((num_classes, *sizes), device=label.device)
    boxes = _bounding_boxes(label, num_classes)
    for index, box in enumerate(boxes):
        if box is None:
            continue
        indicator = (label[box] == index).to(reduced.dtype)
        columns = [None if matrix is None else matrix[:, part] for matrix, part in zip(matrices, box, strict=True)]
        target = tuple(part if matrix is None else slice(None) for matrix, part in zip(matrices, box, strict=True))
        reduced[index][target] = _reduce(indicator[None, None], columns)[0, 0]
    return reduced


def _bounding_boxes(label: Tensor, num_classes: int) -> list[tuple[slice, ...] | None]:
    """Per class the slices that hold it, or ``None`` if it is absent."""
    bounds = []
    for axis, n in enumerate(label.shape):
        shape = [-1 if k == axis else 1 for k in range(label.ndim)]
        code = label.to(torch.int32) * n + torch.arange(n, dtype=torch.int32, device=label.device).view(shape)
        present = torch.bincount(code.flatten(), minlength=num_classes * n).view(num_classes, n) > 0
        bounds.append([row.nonzero().flatten() for row in present.cpu()])
    boxes: list[tuple[slice, ...] | None] = []
    for rows in zip(*bounds, strict=True):
        absent = rows[0].numel() == 0
        boxes.append(None if absent else tuple(slice(int(row[0]), int(row[-1]) + 1) for row in rows))
    return boxes


def _reduce(image: Tensor, matrices: Sequence[Tensor | None]) -> Tensor:
    """Multiply each spatial axis of (B, C, *spatial) by its matrix, the last (contiguous) axis first."""
    for axis in reversed(range(len(matrices))):
        matrix = matrices[axis]
        if matrix is not None:
            tail = image.shape[axis + 3 :]
            if not tail:
                image = image @ matrix.T
            else:
                image = (matrix @ image.flatten(axis + 3).contiguous()).unflatten(-1, tail)
    return image


def _matrices(image: Tensor, sigmas: Sequence[float | None]) -> list[Tensor | None]:
    return [
        None if sigma is None else _blur_and_halve(n, sigma, image.dtype, image.device)
        for n, sigma in zip(image.shape[2:], sigmas, strict=True)
    ]


def blur_taps(sigma: float) -> Tensor:
    """The five weights of the blur along one axis, float64, of sum 1; a Gaussian, flat for an infinite ``sigma``."""
    steps = torch.arange(_TAPS, dtype=torch.float64) - _TAPS // 2
    taps = torch.exp(-(steps**2) / (2 * sigma**2))
    return taps / taps.sum()


@functools.lru_cache(maxsize=64)
def _blur_and_halve(size: int, sigma: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Matrix (size // 2, size): five-tap blur with zero padding, then corner-aligned linear resampling."""
    identity = torch.eye(size, dtype=torch.float64)[:, None]
    blurred = F.conv1d(identity, blur_taps(sigma)[None, None], padding=_TAPS // 2)
    halved = F.interpolate(blurred, size=size // 2, mode="linear", align_corners=True)
    return halved[:, 0].T.to(device, dtype).contiguous()


def _sigmas(dims: int, kernel: str, axes: Sequence[int] | None) -> list[float | None]:
    """Standard deviation of the blur per spatial axis, ``None`` for an axis that is left alone."""
    if dims not in (2, 3):
        raise InputError(
            f"A pyramid got a tensor with {dims} spatial axes; pass (batch, channels, *spatial), 2D or 3D."
        )
    if kernel not in ("published", "isotropic"):
        raise InputError(f"A pyramid got kernel={kernel!r}; choose 'published' or 'isotropic'.")
    chosen = range(dims) if axes is None else axes
    if any(axis not in range(dims) for axis in chosen):
        raise InputError(
            f"A pyramid got axes={tuple(chosen)} for {dims} spatial axes; number them from 0 to {dims - 1}."
        )
    sigmas = PUBLISHED_SIGMAS if kernel == "published" and dims == 3 else (1.0,) * dims
    return [sigma if axis in chosen else None for axis, sigma in enumerate(sigmas)]


def _check_levels(sizes: Sequence[int], levels: int, sigmas: Sequence[float | None]) -> None:
    reduced = [n for n, sigma in zip(sizes, sigmas, strict=True) if sigma is not None]
    if levels < 1 or min(reduced, default=1) >> max(levels - 1, 0) == 0:
        raise InputError(
            f"A pyramid of {levels} levels of a volume of size {tuple(sizes)} is impossible; "
            "ask for one level or more, and for fewer than would halve an axis to nothing."
        )
