# SPDX-License-Identifier: Apache-2.0
"""Images of random contrast from label maps, pair by pair."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor
from torch.utils.data import DataLoader

from common.checks import InputError
from common.data import (
    ImageRecipe,
    PairDataset,
    PairSampler,
    PairSynthesis,
    RandomShapesd,
    ShapesRecipe,
    label_map_listing,
)
from common.data.synthesis_image import ImageDraws, image_of_labels
from common.data.synthesis_noise import along_axis, draw_grids, enlarged
from common.data.synthesis_shapes import draw_shapes
from common.engine import PrepareRegistrationBatch

SMALL = ShapesRecipe((12, 10, 8), 5, (4.0, 8.0), (4.0,), 2.0)
SYNTHESIS = PairSynthesis(ImageRecipe(1.0, (4, 8)), 5)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(size: int = 2) -> dict[str, Tensor]:
    label = torch.stack([draw_shapes(generator(seed), SMALL) for seed in range(size)])
    draw = torch.tensor([[7, 0, index] for index in range(size)])
    return {"moving_label": label.int(), "fixed_label": label.int(), "draw": draw}


def steps(workers: int, seed: int = 0) -> list[Any]:
    listing = label_map_listing(4, "nowhere")
    data = PairDataset(listing.subjects, RandomShapesd(SMALL, seed), progress=False)
    sampler = PairSampler(data, "random_partner", listing.pairs, seed=seed, flip_axes=[0, 1, 2])
    sampler.set_epoch(2)
    prepare = PrepareRegistrationBatch(SYNTHESIS)
    return [prepare(item, "cpu") for item in DataLoader(data, 2, sampler=sampler, num_workers=workers)]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_pairs_of_a_seed_are_the_same_with_any_number_of_workers(workers: int) -> None:
    for (inputs, targets), (inputs_there, targets_there) in zip(steps(0), steps(workers), strict=True):
        assert torch.equal(inputs, inputs_there)
        for name in ("moving_label", "fixed_label"):
            assert torch.equal(targets[name], targets_there[name])


def test_another_seed_makes_other_shapes_and_images() -> None:
    (inputs, targets), (others, other_targets) = steps(0)[0], steps(0, seed=1)[0]
    assert not torch.equal(targets["moving_label"], other_targets["moving_label"])
    assert (inputs - others).abs().mean() > 0.05


def test_a_pair_does_not_depend_on_its_batch() -> None:
    both = SYNTHESIS(batch())
    alone = SYNTHESIS({name: value[1:] for name, value in batch().items()})
    for name, value in alone.items():
        # Where convolutions of another batch size sum in another order: a few float32 roundings of numbers up to 1.
        torch.testing.assert_close(both[name][1:], value, rtol=0, atol=5e-7)


def test_both_sides_of_a_pair_are_unlike_and_in_range() -> None:
    made = SYNTHESIS(batch())
    assert not torch.equal(made["moving_label"], made["fixed_label"])
    for side in ("moving", "fixed"):
        image = made[side]
        assert image.shape == (2, 1, 12, 10, 8) and image.dtype == torch.float32
        assert image.amin((1, 2, 3, 4)).tolist() == [0, 0] and image.amax((1, 2, 3, 4)).tolist() == [1, 1]


@pytest.mark.parametrize("size", [(11, 9), (7, 12, 9)])
def test_an_image_is_what_its_random_numbers_say(size: tuple[int, ...]) -> None:
    """Against a plain form: SciPy's interpolation, convolution one voxel after the other."""
    dims = len(size)
    label = torch.from_numpy(np.random.default_rng(0).integers(0, 3, size).astype(np.uint8))[None, None]
    draws = ImageRecipe(1.0, (4,), black_background=1.0).draw([generator(3)], size, 3)
    made = image_of_labels(label, draws)

    def zoomed(grid: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        places = np.meshgrid(*[np.linspace(0, o - 1, n) for o, n in zip(grid.shape, shape, strict=True)], indexing="ij")
        return ndimage.map_coordinates(grid, places, order=1)

    velocity = np.stack([zoomed(grid, made.velocity.shape[2:]) for grid in draws.velocity[0][0].numpy()])
    # float32 against float64: 1e-9 for velocities up to 0.013.
    np.testing.assert_allclose(made.velocity[0].numpy(), velocity, rtol=0, atol=1e-8)
    identity = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij")).astype(np.float32)
    places = identity + made.ddf[0].numpy()
    inside = np.all([(p >= 0) & (p <= n - 1) for p, n in zip(places, size, strict=True)], axis=0)
    nearest = tuple(np.clip(np.rint(p), 0, n - 1).astype(int) for p, n in zip(places, size, strict=True))
    moved = np.where(inside, label[0, 0].numpy()[nearest], 0)
    np.testing.assert_array_equal(made.label[0, 0].numpy(), moved)
    mean, deviation = draws.mean[0].numpy() * [0, 1, 1], draws.deviation[0].numpy() * [0, 1, 1]
    image = mean[moved] + deviation[moved] * draws.noise[0, 0].numpy()
    for axis in range(dims):
        window = np.exp(-0.5 * (np.arange(-3, 4) / float(draws.blur[0, axis])) ** 2)
        image = ndimage.convolve1d(image, window / window.sum(), axis, mode="constant")
    image = np.clip(image * np.exp(zoomed(draws.bias[0][0, 0].numpy(), size)), 0, 255)
    image = (image - image.min()) / np.ptp(image)
    # float32 against float64: 2e-7 after two or three sums of seven, of intensities up to 1.
    np.testing.assert_allclose(made.image[0, 0].numpy(), image ** np.exp(float(draws.gamma[0])), rtol=0, atol=1e-6)


def test_a_constant_image_is_zero() -> None:
    label = torch.zeros((1, 1, 6, 6), dtype=torch.uint8)
    image = image_of_labels(label, ImageRecipe(black_background=1.0).draw([generator()], (6, 6), 1)).image
    assert torch.count_nonzero(image) == 0


def test_enlarged_numbers_are_interpolated_corner_to_corner() -> None:
    grid = torch.randn(2, 3, 2, 4, 1, generator=generator())
    wanted = torch.nn.functional.interpolate(grid, (5, 9, 3), mode="trilinear", align_corners=True)
    torch.testing.assert_close(enlarged(grid, (5, 9, 3)), wanted)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_lines_are_multiplied_by_a_matrix_of_each_item(axis: int) -> None:
    values = torch.randn(2, 1, 4, 5, 6, generator=generator())
    matrix = torch.randn(2, 1, 3, values.shape[2 + axis], generator=generator(1))
    wanted = torch.einsum("bij,bc...j->bc...i", matrix[:, 0], values.movedim(2 + axis, -1)).movedim(-1, 2 + axis)
    torch.testing.assert_close(along_axis(values, matrix, axis), wanted)


def test_grids_have_the_size_of_their_scale() -> None:
    grids = draw_grids(generator(), (12, 9), (4.0, 100.0), 1.0, 2)
    assert [tuple(grid.shape) for grid in grids] == [(1, 2, 3, 3), (1, 2, 1, 1)]


def test_shapes_are_larger_where_their_noise_is_coarser() -> None:
    def borders(scale: float) -> float:
        shapes = draw_shapes(generator(), ShapesRecipe((48, 48), 8, (scale,), (16.0,), 2.0))[0].int()
        return float((shapes.diff(dim=0) != 0).float().mean())

    assert borders(6.0) > 1.5 * borders(24.0)


@pytest.mark.parametrize("size", [(40, 32), (20, 16, 24)])
def test_shapes_may_lie_within_a_ball(size: tuple[int, ...]) -> None:
    recipe = ShapesRecipe(size, 8, (4.0, 8.0), (8.0,), 2.0)
    everywhere, inside = (draw_shapes(generator(), replace(recipe, within=within))[0] for within in (None, 0.5))
    rim = torch.ones(size, dtype=torch.bool)
    rim[tuple(slice(2, -2) for _ in size)] = False
    assert (inside[rim] == 0).float().mean() > 0.95 > 0.5 > (everywhere[rim] == 0).float().mean()
    centre = tuple(n // 2 for n in size)
    assert len(inside.unique()) > 4 and inside[centre] == everywhere[centre]


def test_label_maps_of_a_data_set_come_without_images(datalist: Path) -> None:
    listing = label_map_listing(None, datalist)
    assert [set(subject) for subject in listing.subjects] == [{"id", "label"}] * len(listing.subjects)
    assert all(Path(subject["label"]).is_file() for subject in listing.subjects)


def test_what_cannot_be_made_is_refused() -> None:
    with pytest.raises(InputError, match="number of maps of random shapes is 1"):
        label_map_listing(1, "nowhere")
    with pytest.raises(InputError, match="no moving_label"):
        SYNTHESIS({})
    with pytest.raises(InputError, match="labels of shapes is 1"):
        ShapesRecipe((8, 8), 1)
    with pytest.raises(InputError, match=r"labels of shapes is 2\.5"):
        ShapesRecipe((8, 8), 2.5)  # type: ignore[arg-type]  # as JSON may have it
    with pytest.raises(InputError, match="size of shapes"):
        ShapesRecipe((8,))
    with pytest.raises(InputError, match="warp_scales is"):
        ImageRecipe(warp_scales=(0,))
    with pytest.raises(InputError, match="warp_std -1"):
        ImageRecipe(warp_std=-1)


def test_images_are_made_where_the_label_maps_lie_without_asking_for_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    # torch has no autocast for this device.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    label = torch.zeros((1, 1, 12, 10, 8), dtype=torch.uint8, device="meta")
    drawn = ImageRecipe(1.0, (4, 8)).draw([generator()], label.shape[2:], 5)
    parts: dict[str, Any] = {
        name: [grid.to("meta") for grid in value] if isinstance(value, list) else value.to("meta")
        for name, value in vars(drawn).items()
    }
    made = image_of_labels(label, ImageDraws(**parts))
    assert made.image.is_meta and made.image.shape == made.label.shape == label.shape
