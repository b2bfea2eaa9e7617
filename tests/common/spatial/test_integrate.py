# SPDX-License-Identifier: Apache-2.0
"""Scaling and squaring against matrix exponentials and MONAI."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from monai.networks.blocks import DVF2DDF
from numpy.typing import NDArray
from scipy.linalg import expm
from torch import Tensor

from common.spatial import compose, integrate


def waves(shape: Sequence[int], amplitude: float, batch: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """Smooth velocities, different in each channel, that vanish at the border."""
    axes = [torch.linspace(0, torch.pi, n, dtype=dtype) for n in shape]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    envelope = grid.sin().prod(0)
    channels = [envelope * (grid[k - 1] + (b + 1) * grid[k]).cos() for b in range(batch) for k in range(len(shape))]
    return amplitude * torch.stack(channels).view(batch, len(shape), *shape)


@pytest.mark.parametrize("shape", [(22, 24), (22, 24, 21)])
def test_constant_velocity_is_its_own_displacement_away_from_the_border(shape: tuple[int, ...]) -> None:
    speed = torch.tensor([1.5, -0.75, 2.0])[: len(shape)].view(1, -1, *[1] * len(shape))
    velocity = speed.expand(1, -1, *shape)
    # Each squaring may carry what is missing outside one voxel further in.
    interior = torch.zeros(shape, dtype=torch.bool)
    interior[tuple(slice(9, -9) for _ in shape)] = True
    torch.testing.assert_close(integrate(velocity)[..., interior], velocity[..., interior])
    torch.testing.assert_close(integrate(velocity, padding_mode="border"), velocity)


LINEAR = [
    np.array([[-0.2, 0.5], [-0.3, -0.1]]),
    np.array([[-0.2, 0.3, 0.1], [-0.3, -0.1, 0.2], [0.0, -0.3, -0.2]]),
]


@pytest.mark.parametrize("matrix", LINEAR)
@pytest.mark.parametrize("steps", [4, 7])
def test_linear_velocity_gives_the_matrix_exponential(matrix: NDArray[np.float64], steps: int) -> None:
    dims, size = len(matrix), 29
    x = np.indices((size,) * dims) - (size - 1) / 2
    ddf = integrate(torch.from_numpy(np.tensordot(matrix, x, 1))[None], steps)[0].numpy()
    margin = (slice(None), *(slice(10, -10) for _ in range(dims)))
    expected = (np.tensordot(expm(matrix), x, 1) - x)[margin]
    # |exp(A) - (1 + A / n)^n| <= |A|^2 exp(|A|) / (2 n) in the spectral norm, times the largest |x|.
    norm = np.linalg.norm(matrix, 2)
    bound = norm**2 * np.exp(norm) / 2 ** (steps + 1) * np.linalg.norm(x[margin], axis=0).max()
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(ddf[margin], expected, rtol=0, atol=bound)
    power = np.linalg.matrix_power(np.eye(dims) + matrix / 2**steps, 2**steps)
    np.testing.assert_allclose(ddf[margin], (np.tensordot(power, x, 1) - x)[margin], rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(24, 28), (20, 24, 22)])
def test_negated_velocity_gives_the_inverse(shape: tuple[int, ...]) -> None:
    velocity = waves(shape, amplitude=1.5)
    there, back = integrate(velocity), integrate(-velocity)
    assert there.abs().max() > 1
    # Composing naively, there - back, leaves an order of magnitude more than interpolation does.
    residual = compose(there, back).abs().max()
    assert residual < 0.03
    assert residual < 0.1 * (there + back).abs().max()


def test_zero_steps_return_the_velocity() -> None:
    velocity = waves((6, 7, 5), amplitude=2)
    torch.testing.assert_close(integrate(velocity, steps=0), velocity, rtol=0, atol=0)


def test_integration_leaves_the_velocity_as_it_was() -> None:
    velocity = waves((6, 7), amplitude=2)
    before = velocity.clone()
    integrate(velocity)
    assert torch.equal(velocity, before)


def test_negative_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="steps is -1; expected 0 or more"):
        integrate(torch.zeros(1, 2, 4, 4), steps=-1)


@pytest.mark.parametrize("shape", [(12, 9), (9, 8, 10)])
@pytest.mark.parametrize("steps", [1, 7])
def test_integration_equals_monais(shape: tuple[int, ...], steps: int) -> None:
    velocity = waves(shape, amplitude=4, batch=2, dtype=torch.float32) + 0.7
    expected = DVF2DDF(num_steps=steps, mode="bilinear", padding_mode="zeros")(velocity)
    torch.testing.assert_close(integrate(velocity, steps), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 3)])
@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_gradient_is_that_of_finite_differences(shape: tuple[int, ...], padding_mode: str) -> None:
    generator = torch.Generator().manual_seed(2)
    velocity = torch.randn((1, len(shape), *shape), generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: integrate(v, 3, padding_mode), (velocity,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("amplitude", [3, 1e-3])
def test_half_precision_velocity_is_integrated_in_float32(dtype: torch.dtype, amplitude: float) -> None:
    velocity = waves((8, 9, 7), amplitude, dtype=torch.float32).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ddf = integrate(velocity)
    assert ddf.dtype == torch.float32
    torch.testing.assert_close(ddf, integrate(velocity.float()), rtol=0, atol=0)
