# SPDX-License-Identifier: Apache-2.0
"""Training without acquired images: label maps, of random shapes or of people, become new pairs of images in each step.

Hoffmann et al., SynthMorph, IEEE TMI 41 (2022) 543-558. A bundle makes its training one of this kind by three items:
:func:`label_map_listing` for the subjects, :class:`RandomShapesd` where these are shapes, and :class:`PairSynthesis` as
``synthesis`` of the trainer's :class:`common.engine.PrepareRegistrationBatch`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from common.checks import InputError
from common.data.readers import Listing
from common.data.subjects import read_section
from common.data.synthesis_image import ImageRecipe, image_of_labels
from common.data.synthesis_shapes import ShapesRecipe, draw_shapes

_SHAPES, _IMAGES = 0, 1
"""First words of the seeds, so that shapes and images have different random numbers."""


def _generator(device: torch.device | str, *words: int) -> torch.Generator:
    """Whose numbers follow from whole numbers of 0 or more, and from the kind of the device."""
    state = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])
    # torch takes 63 bits of a positive number.
    return torch.Generator(device).manual_seed(state >> 1)


def label_map_listing(
    shapes: int | None, dataset_dir: str | Path, reader: str = "datalist", first: int | None = None
) -> Listing:
    """The label maps that images are made of: random shapes, or those of the training section of a data set.

    Args:
        shapes: number of maps of random shapes, which :class:`RandomShapesd` makes; each is deformed twice to be the
            moving and the fixed one of a pair. None for the label maps of a data set, paired as ever.
        dataset_dir: see :func:`common.data.read_section`; with shapes, nothing is read.
        reader: as there.
        first: as there; None for shapes.

    Returns:
        Subjects {"id", "label"} without images.

    Raises:
        InputError: fewer than two shapes, or ``first`` of them, subjects without label maps, or as
            :func:`common.data.read_section`.
    """
    if shapes is not None:
        if shapes < 2:
            raise InputError(f"The number of maps of random shapes is {shapes}; give 2 or more, or None for no shapes.")
        if first is not None:
            raise InputError(
                f"--train_subjects is {first}, but shapes are no subjects; give --num_shapes, or None for it to train "
                "on label maps of a data set."
            )
        names = [{"id": f"shapes_{number:04d}", "label": str(number)} for number in range(shapes)]
        return Listing(names, [(number, number) for number in range(shapes)])
    listing = read_section(dataset_dir, reader, "training", first=first)
    bare = [subject["id"] for subject in listing.subjects if "label" not in subject]
    if bare:
        raise InputError(
            f"{len(bare)} training subjects of {dataset_dir} have no label map to make images of, such as {bare[0]}; "
            "leave them out of the list, or train on random shapes."
        )
    return Listing([{"id": subject["id"], "label": subject["label"]} for subject in listing.subjects], listing.pairs)


class RandomShapesd(MapTransform):
    """Make the map of random shapes that a subject names by its number.

    Args:
        recipe: of the shapes.
        seed: with the number it determines the shapes.
        keys: entries with the number, as :func:`label_map_listing` has it.
    """

    def __init__(self, recipe: ShapesRecipe, seed: int = 0, keys: KeysCollection = "label") -> None:
        super().__init__(keys)
        self.recipe, self.seed = recipe, seed

    def __call__(self, data: Mapping[Any, Any]) -> dict[Hashable, Any]:
        """Return the subject with (1, *size) uint8 in place of the number."""
        subject = dict(data)
        for key in self.key_iterator(subject):
            subject[key] = draw_shapes(_generator("cpu", _SHAPES, self.seed, int(subject[key])), self.recipe)
        return subject


class PairSynthesis:
    """Two images of random contrast, and their labels, of the two label maps of each pair of a batch.

    Everything random about a pair follows from its ``draw`` and the kind of the device: not from the batch that it is
    in, nor from how many processes read or train.

    Args:
        recipe: of the images.
        labels: number of labels, background included.
    """

    def __init__(self, recipe: ImageRecipe, labels: int) -> None:
        self.recipe, self.labels = recipe, labels

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Make a batch.

        Args:
            batch: "moving_label" and "fixed_label" (B, 1, *spatial), integers 0 to labels - 1, and "draw" (B, 3), seed,
                epoch and index of each pair.

        Returns:
            "moving" and "fixed" (B, 1, *spatial), float32 in [0, 1], and "moving_label" and "fixed_label", deformed.

        Raises:
            InputError: the batch has no label maps.
        """
        missing = [name for name in ("moving_label", "fixed_label", "draw") if name not in batch]
        if missing:
            raise InputError(
                f"Images are made of label maps, but the pairs have no {missing[0]}; give scans with labels."
            )
        label = torch.cat([batch["moving_label"], batch["fixed_label"]])
        draws = batch["draw"].tolist()
        generators = [_generator(label.device, _IMAGES, *map(int, draw), side) for side in (0, 1) for draw in draws]
        made = image_of_labels(label, self.recipe.draw(generators, label.shape[2:], self.labels), self.recipe.blur_std)
        moving, fixed = made.image.split(len(draws))
        moving_label, fixed_label = made.label.split(len(draws))
        return {"moving": moving, "fixed": fixed, "moving_label": moving_label, "fixed_label": fixed_label}
