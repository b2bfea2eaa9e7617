# SPDX-License-Identifier: Apache-2.0
"""What came of a registration: images, transforms and figures, made when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.api.deformation import Deformation
from common.checks import InputError
from common.data.request import pair_name
from common.engine.pair_handler import PairHandler
from common.engine.registration import Registration
from common.engine.registration_files import chosen_outputs, write_files
from common.io.images import Image
from common.io.map_files import map_transform
from common.spatial.plane import in_plane


class Result:
    """A registered pair, all of it on the grid of the fixed scan.

    Args:
        handler: knows what is recorded of a pair.
        kept: the pair, the seconds of its network, and the device.

    Attributes:
        registration: the tensors that all else is made of.
    """

    def __init__(self, handler: PairHandler, kept: tuple[Registration, float, torch.device]) -> None:
        self.registration = kept[0]
        self._handler, self._kept = handler, kept

    def __repr__(self) -> str:
        return f"Result({self.name!r})"

    @property
    def name(self) -> str:
        """``<moving>_to_<fixed>``, by the names of the files, or "moving" and "fixed" for images without."""
        return pair_name(self.registration.pair["moving_id"], self.registration.pair["fixed_id"])

    @property
    def warped(self) -> Image:
        """The moving scan on the fixed grid, float32."""
        return self._image(self.registration.warped[0], "warped")

    @property
    def warped_label(self) -> Image | None:
        """The moving label map, nearest; None where none was given."""
        label = self.registration.warped_label
        return None if label is None else self._image(label[0], "warped_label")

    @property
    def jacobian(self) -> Image:
        """Jacobian determinant of the whole transform."""
        return self._image(self.registration.determinant[0], "jacobian")

    @property
    def maps(self) -> dict[str, Image | Tensor]:
        """What the network says beside fields, by name, as an image or, of vectors, (d, *spatial)."""
        fields = {name: in_plane(values, self.registration.dims) for name, values in self.registration.maps.items()}
        return {
            name: self._image(f, name) if len(self.registration.maps[name]) == 1 else f for name, f in fields.items()
        }

    @cached_property
    def transform(self) -> Deformation:
        """From the fixed to the moving scan: displacement, then affine map, as ``transform.h5`` has them."""
        pair = self.registration
        return Deformation(pair.transform, pair.fixed, pair.moving, lambda: pair.inverse)

    @cached_property
    def inverse(self) -> Deformation | None:
        """The way back; None where the field folds."""
        return None if self.registration.inverse is None else self.transform.inverse()

    @cached_property
    def map(self) -> Deformation | None:
        """The network's map as a function of points, not sampled on a grid; None of networks that have none."""
        pair = self.registration
        if pair.functions is None:
            return None
        transform = map_transform(*pair.functions, pair.working, pair.alignment)
        return Deformation(transform, pair.fixed, pair.moving, transform.inverse)

    @cached_property
    def figures(self) -> dict[str, Any]:
        """What ``provenance.json`` says of a pair: sizes, alignment, folding, seconds; Dice and distances if known."""
        return self._handler.entry(*self._kept)

    def save(self, folder: str | Path, outputs: str | Sequence[str] = "all", overwrite: bool = False) -> list[Path]:
        """Write the files that inference writes, ``<moving>_to_<fixed>_...``.

        Args:
            folder: made if need be.
            outputs: "all", or some of the names of ``--outputs``, as a list or joined by commas.
            overwrite: whether to replace files of this pair.

        Returns:
            The files.

        Raises:
            InputError: for an unknown output, files of this pair that exist, or a folder that cannot be written to.
        """
        names = chosen_outputs(outputs)
        prefix = Path(folder).expanduser() / self.name
        there = sorted(prefix.parent.glob(f"{prefix.name}_*"))
        if there and not overwrite:
            raise InputError(f"{there[0]} exists: choose another folder, or replace files with overwrite=True.")
        return write_files(self.registration, prefix, names)

    def _image(self, values: Tensor, name: str) -> Image:
        """Of (1, *fixed), of two dimensions as a slice."""
        laid = in_plane(values, self.registration.dims) if values.ndim == 4 else values
        return Image(laid[0].numpy(), self.registration.fixed.affine.numpy(), f"{self.name}_{name}")
