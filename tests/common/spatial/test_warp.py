# SPDX-License-Identifier: Apache-2.0
"""Warping and composing against SciPy, MONAI, finite differences and closed forms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.blocks import Warp
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from torch import Tensor

from common.spatial import compose, identity_grid, warp
from common.spatial.warp import _scatters

Shape = tuple[int, ...]
PADDINGS = ["zeros", "border"]
SCIPY_PADDING = {"zeros": "grid-constant", "border": "nearest"}


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Run the test with that many CPU threads; work is split among them along the first axis."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def off_grid_field(batch: int, shape: Sequence[int], reach: int = 2, seed: int = 0) -> Tensor:
    """Displacements that end 0.2 to 0.8 voxels past a voxel centre, where interpolation can be differentiated."""
    generator = torch.Generator().manual_seed(seed)
    size = (batch, len(shape), *shape)
    whole = torch.randint(-reach, reach + 1, size, generator=generator)
    return whole + 0.2 + 0.6 * torch.rand(size, generator=generator, dtype=torch.float64)


def random_image(batch: int, channels: int, shape: Sequence[int], seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((batch, channels, *shape), generator=generator, dtype=torch.float64)


def scipy_warp(image: Tensor, ddf: Tensor, order: int, padding_mode: str) -> NDArray[np.float64]:
    positions = np.indices(ddf.shape[2:]) + ddf.numpy()
    mode = SCIPY_PADDING[padding_mode]
    pairs = zip(image.numpy(), positions, strict=True)
    return np.stack([[map_coordinates(c, x, order=order, mode=mode) for c in one] for one, x in pairs])


@pytest.mark.parametrize("shape", [(5, 8), (4, 6, 3)])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_warp_of_zero_displacement_is_identity(shape: Shape, mode: str, padding_mode: str) -> None:
    image = random_image(2, 3, shape)
    warped = warp(image, torch.zeros(2, len(shape), *shape), mode, padding_mode)
    torch.testing.assert_close(warped, image, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize(
    ("position", "shift"), [((6, 2), (3, -1)), ((1, 5), (-2, 2)), ((5, 2, 6), (3, -1, 2)), ((2, 4, 3), (-1, 2, -3))]
)
def test_translation_pulls_content_from_where_it_points(
    position: tuple[int, ...], shift: tuple[int, ...], mode: str
) -> None:
    shape = (9, 7, 8)[: len(position)]
    image = torch.zeros(1, 1, *shape)
    image[(0, 0, *position)] = 1
    ddf = torch.tensor(shift, dtype=torch.float32).view(1, -1, *[1] * len(shape)).expand(1, -1, *shape)
    warped = warp(image, ddf, mode)
    assert np.unravel_index(int(warped.argmax()), shape) == tuple(p - s for p, s in zip(position, shift, strict=True))
    torch.testing.assert_close(warped.sum(), torch.tensor(1.0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize(("mode", "order"), [("bilinear", 1), ("nearest", 0)])
@pytest.mark.parametrize(
    ("image_shape", "shape", "batch"),
    [((7, 9), (7, 9), 2), ((7, 9), (6, 5), 1), ((5, 7, 6), (5, 7, 6), 1), ((5, 7, 6), (8, 4, 9), 1)],
)
def test_warp_equals_scipys_map_coordinates(
    image_shape: Shape, shape: Shape, batch: int, mode: str, order: int, padding_mode: str, threads: int
) -> None:
    image, ddf = random_image(batch, 2, image_shape), off_grid_field(batch, shape, reach=3)
    if order == 0:
        ddf = ddf.floor() + torch.where(ddf - ddf.floor() > 0.5, 0.7, 0.3)  # at 0.5 the two round differently
    warped = warp(image, ddf, mode, padding_mode)
    np.testing.assert_allclose(warped.numpy(), scipy_warp(image, ddf, order, padding_mode), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(9, 6), (6, 5, 7)])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_warp_equals_monais(shape: Shape, mode: str, padding_mode: str) -> None:
    image, ddf = random_image(2, 2, shape).float(), off_grid_field(2, shape, reach=3).float()
    expected = Warp(mode=mode, padding_mode=padding_mode)(image, ddf)
    torch.testing.assert_close(warp(image, ddf, mode, padding_mode), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize(("batch", "shape"), [(1, (4, 3)), (1, (5, 3)), (2, (3, 4)), (1, (4, 3, 2)), (1, (3, 2, 3))])
def test_gradients_for_image_and_field_are_those_of_finite_differences(
    batch: int, shape: Shape, channels: int, padding_mode: str, threads: int
) -> None:
    image = random_image(batch, channels, [n + 1 for n in shape]).requires_grad_()
    ddf = off_grid_field(batch, shape).requires_grad_()
    # Many tiny calls on two threads are slow: there only along random directions.
    fast = threads > 1
    assert torch.autograd.gradcheck(lambda i, u: warp(i, u, padding_mode=padding_mode), (image, ddf), fast_mode=fast)


@pytest.mark.parametrize("threads", [3], indirect=True)
@pytest.mark.parametrize("depth", [6, 10, 7])
def test_no_thread_is_idle_whatever_the_depth(depth: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = []
    sample = torch.grid_sampler_3d

    def counted(image: Tensor, grid: Tensor, *options: Any) -> Tensor:
        parts.append(grid.shape[0])
        return sample(image, grid, *options)

    monkeypatch.setattr(torch, "grid_sampler_3d", counted)
    image, ddf = random_image(1, 1, (depth, 4, 5)), off_grid_field(1, (depth, 4, 5))
    warped = warp(image, ddf)
    assert parts[0] >= threads
    # Double precision: rounding only.
    np.testing.assert_allclose(warped.numpy(), scipy_warp(image, ddf, 1, "border"), rtol=0, atol=1e-12)


@pytest.mark.parametrize("threads", [8], indirect=True)
def test_gradients_of_an_image_are_few_where_it_is_large(threads: int) -> None:
    small, large = torch.zeros(1, 3, 12, 8, 8), torch.zeros(1).expand(1, 3, 160, 224, 192)
    assert _scatters(small, small) == 6
    assert _scatters(large, large) == 2


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("shape", [(7, 5), (7, 4, 5)])
@pytest.mark.parametrize("slab", [1, 45])
def test_value_and_gradient_do_not_depend_on_the_slabs(
    slab: int, shape: Shape, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, ddf = random_image(batch, 2, [n + 1 for n in shape]), off_grid_field(batch, shape).requires_grad_()
    weights = torch.rand((batch, 2, *shape), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole = warp(image, ddf)
    (expected,) = torch.autograd.grad(whole, ddf, weights)
    monkeypatch.setattr("common.spatial.slabs._SLAB_VOXELS", slab)
    parts = warp(image, ddf)
    (found,) = torch.autograd.grad(parts, ddf, weights)
    assert torch.equal(parts, whole)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize("wanted", ["image", "ddf"])
def test_gradient_for_one_input_alone_is_that_of_finite_differences(wanted: str, threads: int) -> None:
    image = random_image(1, 2, (4, 3, 3)).requires_grad_(wanted == "image")
    ddf = off_grid_field(1, (4, 3, 3)).requires_grad_(wanted == "ddf")
    assert torch.autograd.gradcheck(warp, (image, ddf), fast_mode=threads > 1)


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
def test_nearest_differentiates_for_the_image_and_is_flat_in_the_field(threads: int) -> None:
    image, ddf = random_image(1, 2, (4, 3, 3)).requires_grad_(), off_grid_field(1, (4, 3, 3)) + 0.11
    assert torch.autograd.gradcheck(lambda i: warp(i, ddf, mode="nearest"), (image,), fast_mode=threads > 1)
    ddf.requires_grad_()
    (gradient,) = torch.autograd.grad(warp(image.detach(), ddf, mode="nearest").sum(), ddf)
    assert not gradient.any()


@pytest.mark.parametrize("threads", [2], indirect=True)
@pytest.mark.parametrize("shape", [(6, 4), (6, 3, 4)])
def test_gradient_does_not_depend_on_memory_layout(shape: Shape, threads: int) -> None:
    layout = torch.channels_last if len(shape) == 2 else torch.channels_last_3d
    image, ddf, weight = random_image(1, 3, shape), off_grid_field(1, shape), random_image(1, 3, shape, seed=2)
    results = []
    for convert in (torch.contiguous_format, layout):
        i, u = (x.contiguous(memory_format=convert).requires_grad_() for x in (image, ddf))
        results.append(torch.autograd.grad(warp(i, u), (i, u), weight.contiguous(memory_format=convert)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-13)


def test_batch_equals_its_members() -> None:
    image, ddf = random_image(3, 2, (5, 4, 6)), off_grid_field(3, (5, 4, 6))
    singles = torch.cat([warp(image[b : b + 1], ddf[b : b + 1]) for b in range(3)])
    torch.testing.assert_close(warp(image, ddf), singles, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_image_is_sampled_in_float32_under_autocast(dtype: torch.dtype) -> None:
    image, ddf = random_image(1, 2, (6, 5, 7)).to(dtype), off_grid_field(1, (6, 5, 7)).float()
    image.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        warped = warp(image, ddf)
    assert warped.dtype == torch.float32
    torch.testing.assert_close(warped, warp(image.float(), ddf), rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(warped.sum(), image)
    assert gradient.dtype == dtype


def test_float64_stays_float64() -> None:
    image, ddf = random_image(1, 1, (3, 4)), off_grid_field(1, (3, 4))
    assert warp(image, ddf).dtype == warp(image.float(), ddf).dtype == torch.float64
    assert warp(image.float(), ddf.float()).dtype == torch.float32


@pytest.mark.parametrize("shape", [(1, 5), (4, 1), (1, 4, 5), (4, 5, 1), (1, 1, 1)])
@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_axis_of_one_voxel_is_finite_and_cannot_move(shape: Shape, padding_mode: str) -> None:
    image, ddf = random_image(1, 1, shape).requires_grad_(), off_grid_field(1, shape)
    ddf[:, [n > 1 for n in shape]] = 0
    ddf.requires_grad_()
    warped = warp(image, ddf, padding_mode=padding_mode)
    torch.testing.assert_close(warped, image, rtol=0, atol=1e-12)
    for gradient in torch.autograd.grad(warped.sum(), (image, ddf)):
        assert gradient.isfinite().all()


@pytest.mark.filterwarnings("ignore:.*jit.* is deprecated", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("shape", [(6, 5), (4, 6, 5)])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_traced_warp_equals_eager_on_other_values(shape: Shape, mode: str, padding_mode: str) -> None:
    def function(image: Tensor, ddf: Tensor) -> Tensor:
        return warp(image, ddf, mode, padding_mode)

    first = (random_image(1, 2, shape).float(), off_grid_field(1, shape).float())
    second = (random_image(1, 2, shape, seed=5).float(), off_grid_field(1, shape, seed=6).float())
    with torch.no_grad():
        traced = torch.jit.trace(function, first, check_trace=False)
        torch.testing.assert_close(traced(*second), function(*second), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("image", "ddf", "message"),
    [
        ((1, 1, 4, 5), (1, 3, 4, 5), "expected"),
        ((1, 1, 4, 5, 6), (1, 2, 4, 5, 6), "expected"),
        ((2, 1, 4, 5), (1, 2, 4, 5), "batch size or dimension"),
        ((1, 1, 4, 5), (1, 3, 4, 5, 6), "batch size or dimension"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(image: tuple[int, ...], ddf: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        warp(torch.zeros(image), torch.zeros(ddf))


@pytest.mark.parametrize("arguments", [{"mode": "linear"}, {"mode": "bicubic"}, {"padding_mode": "reflection"}])
def test_unknown_mode_or_padding_is_refused(arguments: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="mode must be one of"):
        warp(torch.zeros(1, 1, 3, 3), torch.zeros(1, 2, 3, 3), **arguments)


def affine_field(matrix: NDArray[np.float64], shift: Sequence[float], shape: Sequence[int]) -> Tensor:
    """``x -> c + M (x - c) + shift - x`` about the centre c, (1, d, *shape) float64."""
    centre = (np.array(shape) - 1).reshape(-1, *[1] * len(shape)) / 2
    x = np.indices(shape) - centre
    moved = np.tensordot(matrix, x, 1) + np.reshape(shift, centre.shape)
    return torch.from_numpy(moved - x)[None]


def sampled(mask: Tensor, ddf: Tensor) -> Tensor:
    """Voxels that the field takes to a place all of whose neighbours are in the mask (1, 1, *spatial) float64."""
    return (warp(mask, ddf, padding_mode="zeros") > 1 - 1e-9).double()


AFFINE = {
    2: [
        np.array([[0.9, 0.2], [-0.1, 0.95]]),
        np.array([[1.0, -0.15], [0.1, 0.9]]),
        np.array([[0.85, 0.0], [0.2, 1.0]]),
    ],
    3: [
        np.array([[0.9, 0.1, 0.0], [-0.1, 0.95, 0.05], [0.0, 0.1, 1.0]]),
        np.array([[1.0, 0.0, 0.1], [0.1, 0.9, 0.0], [0.05, 0.0, 0.95]]),
        np.array([[0.95, -0.1, 0.0], [0.0, 1.0, 0.1], [-0.1, 0.0, 0.9]]),
    ],
}
SHAPES = {2: (15, 13), 3: (13, 11, 12)}


@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("shape", [(5, 7), (4, 6, 5)])
def test_zero_is_neutral_in_composition(shape: Shape, padding_mode: str) -> None:
    ddf = off_grid_field(2, shape)
    zero = torch.zeros_like(ddf)
    torch.testing.assert_close(compose(ddf, zero, padding_mode), ddf, rtol=0, atol=1e-12)
    torch.testing.assert_close(compose(zero, ddf, padding_mode), ddf, rtol=0, atol=0)


def test_composition_of_translations_adds_them() -> None:
    a, b = (torch.tensor(t).view(1, 3, 1, 1, 1).expand(1, 3, 5, 6, 4) for t in ([1.5, -2.0, 0.25], [-0.5, 0.75, 3.0]))
    torch.testing.assert_close(compose(a, b), a + b)


@pytest.mark.parametrize("dims", [2, 3])
def test_composition_of_affine_fields_is_the_product_of_their_matrices(dims: int) -> None:
    shape, (outer, inner, _) = SHAPES[dims], AFFINE[dims]
    shifts = [0.5, -0.4, 0.2][:dims], [0.4, 0.1, -0.3][:dims]
    first, second = affine_field(outer, shifts[0], shape), affine_field(inner, shifts[1], shape)
    expected = affine_field(outer @ inner, (outer @ shifts[1] + shifts[0]).tolist(), shape)
    valid = sampled(torch.ones(1, 1, *shape).double(), second)[0, 0] > 0
    assert valid.float().mean() > 0.4
    torch.testing.assert_close(compose(first, second)[..., valid], expected[..., valid], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dims", [2, 3])
def test_composition_is_associative_on_affine_fields(dims: int) -> None:
    a, b, c = (affine_field(m, [0.3] * dims, SHAPES[dims]) for m in AFFINE[dims])
    everywhere = torch.ones(1, 1, *SHAPES[dims]).double()
    left, right = compose(compose(a, b), c), compose(a, compose(b, c))
    valid = (sampled(sampled(everywhere, b), c) * sampled(everywhere, compose(b, c)))[0, 0] > 0
    assert valid.float().mean() > 0.3
    torch.testing.assert_close(left[..., valid], right[..., valid], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dims", [2, 3])
def test_warping_by_a_composition_is_warping_by_outer_and_then_by_inner(dims: int) -> None:
    shape = SHAPES[dims]
    outer, inner = (affine_field(m, [0.2] * dims, shape) for m in AFFINE[dims][:2])
    ramp = torch.einsum(
        "k,k...->...", torch.arange(1.0, dims + 1).double(), identity_grid(shape, dtype=torch.float64)[0]
    )
    image = ramp[None, None]
    everywhere = torch.ones_like(image)
    valid = sampled(sampled(everywhere, outer), inner)[0, 0] > 0
    assert valid.float().mean() > 0.3
    both, wrong = warp(image, compose(outer, inner)), warp(image, compose(inner, outer))
    torch.testing.assert_close(both[..., valid], warp(warp(image, outer), inner)[..., valid], rtol=0, atol=1e-10)
    assert (both - wrong)[..., valid].abs().max() > 0.1


def test_outer_field_vanishes_outside_with_zeros_and_continues_with_border() -> None:
    outer, inner = torch.full((1, 2, 4, 4), 0.5), torch.full((1, 2, 4, 4), 100.0)
    torch.testing.assert_close(compose(outer, inner, "zeros"), inner, rtol=0, atol=0)
    torch.testing.assert_close(compose(outer, inner, "border"), inner + 0.5, rtol=0, atol=0)


@pytest.mark.parametrize("padding_mode", ["border", "zeros"])
@pytest.mark.parametrize("shape", [(16, 17), (6, 7, 8)])
@pytest.mark.parametrize("channels", [1, 9])
def test_a_field_that_is_nan_somewhere_has_a_gradient_that_is_nan_there(
    shape: tuple[int, ...], channels: int, padding_mode: str
) -> None:
    """Torch's own backward pass in two dimensions ends the process."""
    image, ddf = torch.rand(1, channels, *shape, requires_grad=True), torch.zeros(1, len(shape), *shape)
    ddf[0, 0, 3, 3] = torch.nan
    ddf.requires_grad_()
    warp(image, ddf, padding_mode=padding_mode).sum().backward()
    assert ddf.grad is not None and image.grad is not None
    if len(shape) == 2:
        assert torch.equal(ddf.grad.isnan(), ddf.isnan())
