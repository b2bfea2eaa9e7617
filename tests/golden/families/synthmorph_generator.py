# SPDX-License-Identifier: Apache-2.0
"""SynthMorph's images of label maps: with the recorded random numbers exactly, with own ones in distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.stats import ks_2samp
from torch import Tensor

from common.data.synthesis_image import ImageDraws, ImageRecipe, MadeImage, half, image_of_labels, label_values
from common.data.synthesis_noise import Grids
from common.data.synthesis_shapes import ShapesRecipe, draw_shapes
from common.spatial import jacobian_determinant

Arrays = dict[str, np.ndarray]
STATISTICS = "generator_stats"
_DRAWS = 40
# Own numbers are fixed by their seeds, so that this decides nothing by chance from run to run.
_LEAST_P = 0.02
# The file's own mean is not settled: an independent build of the same page is brighter by half of this.
_BRIGHTNESS = 0.08
# Of voxels where the field of any draw folds; the file has at most 0.0003 of them.
_FOLDING = 0.001


def compute(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    """Images, one-hot labels and fields of a file; nothing of the statistics, which are compared here."""
    if meta["case"] == STATISTICS:
        _compare_distributions(meta["constructor"], arrays)
        return {}
    constructor = meta["constructor"]
    values = torch.tensor(constructor["in_label_list"])
    label = torch.searchsorted(values, torch.from_numpy(arrays["in/labels"]).long())
    made = image_of_labels(label.to(torch.uint8), _recorded(constructor, arrays), constructor.get("blur_std", 1))
    shown = torch.tensor(constructor.get("out_label_list", constructor["in_label_list"]))
    one_hot = values[made.label.long()] == shown.view(1, -1, *[1] * (label.ndim - 2))
    results = {"image": made.image, "one_hot": one_hot.float(), "velocity": made.velocity, "displacement": made.ddf}
    return {f"out/{name}": value.numpy() for name, value in results.items()}


def _recorded(constructor: dict[str, Any], arrays: Arrays) -> ImageDraws:
    size, dims = constructor["in_shape"], len(constructor["in_shape"])

    def draw(*name: Any) -> Tensor:
        parts = ("x".join(map(str, part)) if isinstance(part, list) else str(part) for part in name)
        return torch.from_numpy(arrays["in/draw/" + "_".join(parts)])

    def grids(of: list[int], scales: list[float], largest: float, channels: int) -> Grids:
        coarse = ([-int(-n // scale) for n in of] for scale in scales)
        noise = (draw("normal", [*shape, channels], "unit").movedim(-1, 0)[None] for shape in coarse)
        return [largest * draw("uniform", "scalar", f"max{largest:g}") * grid for grid in noise]

    one = [1] * (dims + 2)
    labels = draw("uniform", [1, 1, len(constructor["in_label_list"])], "maxvec").view(1, -1)
    warp_scales = [scale / 2 for scale in constructor["warp_res"]]
    black = draw("uniform", one, "max1").flatten() < constructor.get("zero_background", 0.2)
    return ImageDraws(
        velocity=grids(half(size), warp_scales, constructor["warp_std"], dims),
        mean=label_values(labels, 25, 225),
        deviation=label_values(labels, 5, 25),
        noise=draw("normal", [1, *size, 1], "unit").movedim(-1, 1),
        black=black.float(),
        blur=(constructor.get("blur_std", 1) * draw("uniform", 1, "max1")).expand(1, dims),
        bias=grids(size, constructor["bias_res"], constructor.get("bias_std", 0.3), 1),
        gamma=constructor.get("gamma_std", 0.25) * draw("normal", one, "unit").flatten(),
    )


def _compare_distributions(constructor: dict[str, Any], arrays: Arrays) -> None:
    """Own draws against those of the file, number by number."""
    shapes = ShapesRecipe(
        tuple(constructor["in_shape"]),
        constructor["num_label"],
        tuple(constructor["shape_scales"]),
        tuple(constructor["shape_warp_scales"]),
        constructor["shape_warp_max_std"],
    )
    recipe = ImageRecipe(constructor["warp_std"], tuple(constructor["warp_res"]))
    drawn = []
    for seed in range(_DRAWS):
        generator = torch.Generator().manual_seed(seed)
        label = draw_shapes(generator, shapes)[None]
        made = image_of_labels(label, recipe.draw([generator], label.shape[2:], shapes.labels))
        drawn.append(_statistics(label, made))
    found = {name: np.array([numbers[name] for numbers in drawn]) for name in drawn[0]}
    assert {f"out/{name}" for name in found} == set(arrays), "other statistics than those of the file"
    brightness, folding = found.pop("image_mean"), found.pop("jac_neg")
    assert abs(brightness.mean() - arrays["out/image_mean"].mean()) <= _BRIGHTNESS
    assert folding.max() <= _FOLDING
    for name, numbers in found.items():
        p = float(ks_2samp(numbers, arrays[f"out/{name}"]).pvalue)
        assert p >= _LEAST_P, f"{name}: {numbers.mean():.4g} against {arrays[f'out/{name}'].mean():.4g}, p {p:.2g}"


def _statistics(label: Tensor, made: MadeImage) -> dict[str, float]:
    lengths = made.ddf.square().sum(1).sqrt()
    numbers = {
        "image_mean": made.image.mean(),
        "image_std": made.image.std(),
        "frac_zero": (made.image == 0).float().mean(),
        "disp_rms": lengths.square().mean().sqrt(),
        "disp_max": lengths.max(),
        "jac_neg": (jacobian_determinant(made.ddf) <= 0).float().mean(),
        "label_frac_changed": (made.label != label).float().mean(),
    }
    return {name: float(value) for name, value in numbers.items()}
