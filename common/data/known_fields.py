# SPDX-License-Identifier: Apache-2.0
"""A data set out of one scan: copies deformed by known random fields, for experiments in which the truth is known."""

from __future__ import annotations

import json
import logging
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.checks import InputError
from common.data.dataset import plain_affine, plain_tensor
from common.data.phantom import random_diffeomorphism
from common.data.transforms import LoadSubjectd
from common.io.nifti import write_ddf, write_image
from common.spatial import warp, warp_labels
from common.spatial.lengths import lengths

_logger = logging.getLogger(__name__)
DATALIST = "dataset.json"


def make_known_fields(
    output_dir: Path, image: Path, label: Path | None = None, training: int = 12, validation: int = 2, test: int = 6,
    largest: float = 8.0, seed: int = 0,
) -> Path:  # fmt: skip
    """Write a scan and deformed copies of it with the reader ``datalist``'s names.

    Copy n is ``copy(x) = scan(x + ddf(x))``, sampled linearly, labels at the nearest voxel. The fields are random
    diffeomorphisms, zero at the border of the scan, so that nothing is lost. The first subject is the scan itself. It
    trains with the first copies; each of the others is the fixed image of one pair in which the scan is moving, and
    whose true displacement is the field of that copy.

    Args:
        output_dir: new folder: ``dataset.json``, ``imagesTr``, ``labelsTr`` if there are labels, and ``fields`` with
            the true displacements in voxels.
        image: NIfTI volume.
        label: its label map.
        training: number of copies to train with.
        validation: number of pairs for the section "validation".
        test: number of pairs for the section "test".
        largest: voxels; a field with a longer displacement is scaled down until its longest has this length.
        seed: with the number of a copy it determines the field.

    Returns:
        The folder.

    Raises:
        InputError: the folder exists and is not empty, ``largest`` is not above 0, or a file cannot be used.
    """
    if output_dir.exists() and any(output_dir.iterdir()):
        raise InputError(f"The folder {output_dir} is not empty; give a new one, or remove it.")
    if not largest > 0:
        raise InputError(f"The largest displacement is {largest} voxels; give a number above 0.")
    scan = LoadSubjectd()({"image": str(image), **({} if label is None else {"label": str(label)})})
    if scan["image"].ndim != 4 or ("label" in scan and scan["label"].shape != scan["image"].shape):
        raise InputError(f"{image} must be a volume, and the label map {label} must lie on its grid.")
    copies = range(1, 1 + training + validation + test)
    for number in (0, *copies):
        _write_copy(output_dir, scan, number, _known_field(scan["image"].shape[1:], number, largest, seed))
        _logger.info("%s of %d copies written.", number, len(copies))
    sections = {
        "training": (0, *copies[:training]),
        "validation": (0, *copies[training : training + validation]),
        "test": (0, *copies[training + validation :]),
    }
    content: dict[str, object] = {name: [_entry(scan, n) for n in numbers] for name, numbers in sections.items()}
    for section, key in (("validation", "registration_val"), ("test", "registration_test")):
        content[key] = [{"fixed": _file("imagesTr", n), "moving": _file("imagesTr", 0)} for n in sections[section][1:]]
    (output_dir / DATALIST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return output_dir


def _file(folder: str, number: int) -> str:
    name = f"COPY_{number:04d}" if number else "SCAN"
    return f"{folder}/{name}_0000.nii.gz"


def _entry(scan: Mapping[Hashable, Any], number: int) -> dict[str, str]:
    entry = {"image": _file("imagesTr", number)}
    return {**entry, "label": _file("labelsTr", number)} if "label" in scan else entry


def _known_field(size: tuple[int, ...], number: int, largest: float, seed: int) -> torch.Tensor:
    """(1, 3, *size), zero for number 0."""
    if number == 0:
        return torch.zeros(1, 3, *size)
    ddf = torch.from_numpy(random_diffeomorphism(np.random.default_rng([seed, number]), tuple(size)))[None]
    # Scaling up could fold it.
    return ddf * min(1.0, largest / float(lengths(ddf).max()))


def _write_copy(output_dir: Path, scan: Mapping[Hashable, Any], number: int, ddf: torch.Tensor) -> None:
    affine = plain_affine(scan["image"])
    image = plain_tensor(scan["image"])[None]
    write_image(output_dir / _file("imagesTr", number), warp(image, ddf)[0], affine)
    if "label" in scan:
        label = warp_labels(plain_tensor(scan["label"])[None], ddf)
        write_image(output_dir / _file("labelsTr", number), label[0], affine)
    if number:
        write_ddf(output_dir / field_file(number), ddf[0], affine)


def field_file(number: int) -> str:
    """Path of a true field inside the data set."""
    return f"fields/COPY_{number:04d}_ddf.nii.gz"
