# SPDX-License-Identifier: Apache-2.0
"""Pairs that cannot be made are known before the first one is."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, MapTransform

from common.checks import InputError
from common.data import LoadSubjectd, PairDataset, PairSampler, ScanPairDataset
from common.data.dataset import plain_affine
from common.data.outlines import Outlines

PLAIN, TURNED = np.eye(4), np.diag([-1.0, 1, 1, 1])


class Read(MapTransform):
    """Reads and notes what was read."""

    def __init__(self) -> None:
        super().__init__("image")
        self.read: list[str] = []

    def __call__(self, data: Mapping[Any, Any]) -> dict[Hashable, Any]:
        self.read.append(data["id"])
        return LoadSubjectd()(data)


def subjects(folder: Path, *grids: tuple[tuple[int, ...], np.ndarray]) -> list[dict[str, Any]]:
    found = []
    for number, (shape, affine) in enumerate(grids):
        path = folder / f"s{number}.nii.gz"
        nib.save(nib.Nifti1Image(np.random.default_rng(number).random(shape, np.float32), affine), path)
        found.append({"id": f"s{number}", "image": str(path)})
    return found


def sampler(
    data: list[dict[str, Any]], transform: Callable[..., Any], cache_rate: float, **options: Any
) -> PairSampler:
    return PairSampler(PairDataset(data, transform, cache_rate, progress=False), **options)


@pytest.mark.parametrize("cache_rate", [1.0, 0.5, 0.0])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strategy": "all"},
        {"strategy": "atlas"},
        {"strategy": "listed", "pairs": [(0, 1), (1, 2), (3, 1)]},
        {"strategy": "either_way", "pairs": [(0, 1), (3, 2)]},
    ],
    ids=lambda options: options.get("strategy", "default"),
)
@pytest.mark.parametrize(
    ("other", "message"), [(((5, 6, 8), PLAIN), "has shape"), (((5, 6, 7), TURNED), "lie up to .* voxels apart")]
)
def test_one_scan_on_another_grid_is_refused_before_the_first_pair(
    other: Any, message: str, options: dict[str, Any], cache_rate: float, tmp_path: Path
) -> None:
    data = subjects(tmp_path, *[((5, 6, 7), PLAIN)] * 3, other)
    with pytest.raises(InputError, match=message) as refusal:
        sampler(data, LoadSubjectd(), cache_rate, **options)
    assert "s3.nii.gz" in str(refusal.value)


def test_pairs_that_are_not_asked_for_need_not_fit(tmp_path: Path) -> None:
    data = subjects(tmp_path, *[((5, 6, 7), PLAIN)] * 2, *[((4, 6, 8), TURNED)] * 2)
    within: dict[str, Any] = {"pairs": [(0, 1), (3, 2)]}
    for strategy in ("listed", "either_way"):
        assert len(sampler(data, LoadSubjectd(), 1.0, strategy=strategy, **within)) == 2
    head = [(0, 1), (1, 2)]
    assert len(sampler(data, LoadSubjectd(), 1.0, strategy="listed", pairs=head, num_samples=1)) == 1
    with pytest.raises(InputError, match="resample them first"):
        sampler(data, LoadSubjectd(), 1.0)


def test_what_counts_is_the_grid_after_the_preprocessing(tmp_path: Path) -> None:
    def crop(subject: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**subject, "image": subject["image"][:, :4, :4, :4]}

    data = subjects(tmp_path, ((5, 6, 7), PLAIN), ((6, 5, 4), PLAIN))
    for cache_rate in (1.0, 0.0):
        assert len(sampler(data, Compose([LoadSubjectd(), crop]), cache_rate)) == 2


def test_scans_that_are_read_anew_are_known_by_their_headers(tmp_path: Path) -> None:
    data = subjects(tmp_path, *[((5, 6, 7), PLAIN)] * 6)
    reader = Read()
    sampler(data, reader, 0.0)
    assert reader.read == ["s1"]


def test_scans_apart_are_refused_before_the_first_is_registered(tmp_path: Path) -> None:
    far = np.eye(4)
    far[:3, 3] = 100
    data = subjects(tmp_path, ((8, 8, 8), PLAIN), ((6, 8, 9), TURNED), ((8, 8, 8), far))
    pairs = [(0, 1), (1, 0), (2, 0)]
    for cache_rate in (1.0, 0.0):
        dataset = ScanPairDataset(data, LoadSubjectd(), cache_rate=cache_rate)
        with pytest.raises(InputError, match=r"s2.nii.gz and .*s0.nii.gz do not overlap; align"):
            PairSampler(dataset, "listed", pairs, drop_last=False)
    assert len(PairSampler(ScanPairDataset(data, LoadSubjectd(), affine=True), "listed", pairs)) == 3


def test_an_outline_takes_no_memory_and_keeps_its_place(tmp_path: Path) -> None:
    dataset = PairDataset(subjects(tmp_path, ((5, 6, 7), TURNED)), LoadSubjectd(), progress=False)
    outline = Outlines(dataset.data, dataset.subjects)[0]
    assert outline is not None and outline.shape == (1, 5, 6, 7)
    assert outline.untyped_storage().nbytes() == 4
    assert torch.equal(plain_affine(outline), torch.as_tensor(TURNED))


def test_one_affine_in_two_units_is_two_grids(tmp_path: Path) -> None:
    data = subjects(tmp_path, *[((5, 6, 7), PLAIN)] * 2)
    file = nib.load(data[1]["image"])
    file.header.set_xyzt_units("micron")
    nib.save(nib.Nifti1Image(np.asarray(file.dataobj), file.affine, file.header), data[1]["image"])
    for cache_rate in (0.0, 1.0):
        with pytest.raises(InputError, match="voxels apart"):
            sampler(data, LoadSubjectd(), cache_rate)
