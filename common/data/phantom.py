# SPDX-License-Identifier: Apache-2.0
"""One random anatomy and deformed copies of it, as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from common.checks import InputError

# Chosen so that the mean Dice between two subjects of the default size is about 0.65 before registration.
_DISPLACEMENT = 0.033
_SQUARINGS = 6
_FIELD_STEP = 1 / 16
_LEAST_DETERMINANT = 0.1
_ATTEMPTS = 50
_LEAST_VOXELS = 20


@dataclass
class Phantom:
    """Arrays of one phantom.

    Attributes:
        image: (*spatial), float64 in [0, 1], background exactly 0.
        labels: (*spatial), uint8, 0 = background.
        ddf: (d, *spatial) float32, voxels; ``phantom(x) = template(x + ddf(x))``, zero for the template.
        texture: (*spatial) float64, intensity variation that moves with the anatomy.
        means: intensity of each label, background first.
    """

    image: np.ndarray
    labels: np.ndarray
    ddf: np.ndarray
    texture: np.ndarray
    means: np.ndarray


def make_template(size: tuple[int, ...], num_labels: int, seed: int) -> Phantom:
    """Draw an anatomy: an ellipsoidal body (label 1) with ``num_labels - 1`` compact structures that touch or overlap.

    Args:
        size: voxels per axis, 2 or 3 numbers.
        num_labels: number of labels without background.
        seed: determines the result.

    Raises:
        InputError: so many structures do not fit.
    """
    rng = np.random.default_rng([seed, 0])
    labels = _draw_all_labels(rng, size, num_labels)
    texture = 0.04 * smooth_noise(rng, size, 0.05)
    # Shuffled even steps: neighbours differ by at least one step, whichever structures happen to touch.
    means = np.concatenate([[0.0], 0.2 + 0.6 * rng.permutation(num_labels) / (num_labels - 1)])
    ddf = np.zeros((len(size), *size), np.float32)
    return Phantom(_render(labels, texture, means), labels, ddf, texture, means)


def make_subject(template: Phantom, seed: int, number: int) -> Phantom:
    """Deform the anatomy and image it with its own contrast, bias field and noise.

    Args:
        template: result of :func:`make_template`.
        seed: seed of the data set.
        number: number of the subject, from 1; with the seed it determines the result.
    """
    rng = np.random.default_rng([seed, number])
    size = template.labels.shape
    ddf = random_diffeomorphism(rng, size)
    labels = _sample(template.labels, ddf, order=0).astype(np.uint8)
    texture = _sample(template.texture, ddf, order=1)
    means = template.means.copy()
    means[1:] += rng.uniform(-0.03, 0.03, len(means) - 1)
    image = _render(labels, texture, means)
    image *= 1 + 0.06 * smooth_noise(rng, size, 0.3)
    image += 0.015 * rng.standard_normal(size)
    image = np.where(labels > 0, np.clip(image, 0, 1), 0)
    return Phantom(image, labels, ddf, texture, means)


def random_diffeomorphism(rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """Displacement (d, *spatial) float32 in voxels without folding: the exponential of a smooth Gaussian velocity.

    The values are multiples of 1/16 voxel, so that the files stay small; the phantoms are made with the rounded field.
    """
    velocity = np.stack([smooth_noise(rng, size, 0.14) + 0.5 * smooth_noise(rng, size, 0.08) for _ in size])
    velocity *= _DISPLACEMENT * np.mean(size) / np.sqrt(1.25)
    velocity *= _fade_out(size)
    while True:
        ddf = np.round(_exponential(velocity) / _FIELD_STEP) * _FIELD_STEP
        if _determinant(ddf).min() > _LEAST_DETERMINANT:
            return ddf.astype(np.float32)
        velocity *= 0.9


def smooth_noise(rng: np.random.Generator, size: tuple[int, ...], sigma: float) -> np.ndarray:
    """Gaussian noise (*spatial), smoothed with ``sigma`` times the axis length, mean 0, standard deviation 1."""
    noise = ndimage.gaussian_filter(rng.standard_normal(size), [sigma * n for n in size], mode="wrap")
    return (noise - noise.mean()) / noise.std()


def _unit_grid(size: tuple[int, ...]) -> np.ndarray:
    """Coordinates (d, *spatial) from -1 to 1."""
    return np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in size], indexing="ij"))


def _fade_out(size: tuple[int, ...]) -> np.ndarray:
    """1 inside, 0 at the border of the grid: nothing is pulled in from outside."""
    return np.prod(np.clip((1 - np.abs(_unit_grid(size))) / 0.2, 0, 1), axis=0)


def _draw_all_labels(rng: np.random.Generator, size: tuple[int, ...], num_labels: int) -> np.ndarray:
    """An anatomy in which no structure is hidden by the others."""
    for _ in range(_ATTEMPTS):
        labels = _draw_labels(rng, size, num_labels)
        if np.bincount(labels.ravel(), minlength=num_labels + 1).min() >= _LEAST_VOXELS:
            return labels
    raise InputError(f"{num_labels} structures do not fit into the size {size}; ask for fewer or for a larger size.")


def _draw_labels(rng: np.random.Generator, size: tuple[int, ...], num_labels: int) -> np.ndarray:
    grid = _unit_grid(size)
    column = (-1,) + (1,) * len(size)
    body = np.sum((grid / 0.86) ** 2, axis=0) + 0.12 * smooth_noise(rng, size, 0.1) < 1
    centres = _spread_centres(rng, num_labels - 1, len(size))
    spacing = 1.3 * (num_labels - 1) ** (-1 / len(size))
    scores = []
    for centre in centres:
        radius = spacing * rng.uniform(0.45, 0.85) * rng.uniform(0.8, 1.25, len(size))
        distance = np.sqrt(np.sum(((grid - centre.reshape(column)) / radius.reshape(column)) ** 2, axis=0))
        scores.append(1 - distance + 0.15 * smooth_noise(rng, size, 0.07))
    inside = np.where(np.max(scores, axis=0) > 0, np.argmax(scores, axis=0) + 2, 1)
    return np.where(body, inside, 0).astype(np.uint8)


def _spread_centres(rng: np.random.Generator, count: int, dimensions: int) -> np.ndarray:
    """``count`` points well apart from each other inside the body: each time the farthest of many random points."""
    candidates = rng.uniform(-1, 1, (400, dimensions))
    candidates = 0.62 * candidates[np.sum(candidates**2, axis=1) < 1]
    chosen = [candidates[0]]
    while len(chosen) < count:
        distances = np.linalg.norm(candidates[:, None] - np.stack(chosen)[None], axis=-1).min(axis=1)
        chosen.append(candidates[np.argmax(distances)])
    return np.stack(chosen)[:count]


def _render(labels: np.ndarray, texture: np.ndarray, means: np.ndarray) -> np.ndarray:
    image = ndimage.gaussian_filter(means[labels], 0.5) + texture
    return np.where(labels > 0, np.clip(image, 0, 1), 0)


def _sample(array: np.ndarray, ddf: np.ndarray, order: int) -> np.ndarray:
    grid = np.stack(np.meshgrid(*[np.arange(n, dtype=np.float64) for n in array.shape], indexing="ij"))
    return ndimage.map_coordinates(array, grid + ddf, order=order, mode="nearest")


def _exponential(velocity: np.ndarray) -> np.ndarray:
    """Scaling and squaring."""
    ddf = velocity / 2**_SQUARINGS
    for _ in range(_SQUARINGS):
        ddf = ddf + np.stack([_sample(component, ddf, order=1) for component in ddf])
    return ddf


def _determinant(ddf: np.ndarray) -> np.ndarray:
    jacobian = np.stack([np.stack(np.gradient(component)) for component in ddf])
    jacobian += np.eye(len(ddf)).reshape((len(ddf), len(ddf)) + (1,) * (ddf.ndim - 1))
    return np.linalg.det(np.moveaxis(jacobian, (0, 1), (-2, -1)))
