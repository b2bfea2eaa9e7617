# SPDX-License-Identifier: Apache-2.0
"""What the tasks ask of MONAI Label's stores, a folder of NIfTI files and DICOMweb alike."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

_READ = (".nii.gz", ".nii", ".png")
"""Endings of files that the bundles read."""
_ENDINGS = (*_READ, ".seg.nrrd", ".nrrd")


class Scan(NamedTuple):
    """A labelled scan of a store: id, and the files of image and label map."""

    name: str
    image: str
    label: str


def labelled(store: Datastore) -> list[Scan]:
    """The scans with a final label map, by id; those of DICOMweb are fetched where the cache lacks them."""
    found = []
    for entry in store.datalist():
        name = identity(entry["image"])
        found.append(Scan(name, entry["image"], label_on_image(entry["label"], entry["image"])))
    return sorted(found)


def unlabelled(store: Datastore) -> dict[str, str]:
    """Files of the scans without a final label map, by id."""
    names = store.get_unlabeled_images(DefaultLabelTag.FINAL)
    return {name: store.get_image_uri(name) for name in sorted(names)}


def identity(file: str) -> str:
    """Id of a scan by its file: ids of DICOM have points, so that the ending alone is taken off."""
    name = os.path.basename(file)
    ending = next((end for end in _ENDINGS if name.endswith(end)), "")
    return name[: len(name) - len(ending)]


def label_on_image(label: str, image: str) -> str:
    """A label map as a file that bundles read, on the grid of its image; what a DICOM SEG leaves out is background.

    Programs submit label maps in an orientation of their own, too.
    """
    import SimpleITK

    there = _header(image)
    if label.endswith(_READ) and _place(there) == _place(_header(label)):
        return label
    changed = f"{label} {os.stat(label).st_mtime_ns}"
    file = Path(tempfile.gettempdir()) / f"label_{hashlib.sha256(changed.encode()).hexdigest()[:16]}.nii.gz"
    if not file.exists():
        grid = SimpleITK.ResampleImageFilter()
        grid.SetSize(there.GetSize())
        grid.SetOutputSpacing(there.GetSpacing())
        grid.SetOutputOrigin(there.GetOrigin())
        grid.SetOutputDirection(there.GetDirection())
        grid.SetInterpolator(SimpleITK.sitkNearestNeighbor)
        SimpleITK.WriteImage(grid.Execute(SimpleITK.ReadImage(label)), str(file))
    return str(file)


def _header(file: str) -> Any:
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(file)
    reader.ReadImageInformation()
    return reader


def _place(header: Any) -> list[tuple[float, ...]]:
    """Where the voxels lie, to a thousandth of a millimetre."""
    numbers = (header.GetSize(), header.GetSpacing(), header.GetOrigin(), header.GetDirection())
    return [tuple(round(value, 3) for value in values) for values in numbers]


def renumbering(info: Mapping[str, Any], names: Mapping[str, int]) -> dict[str, int]:
    """How the values of a submitted label map are to be changed to those of the app.

    3D Slicer numbers segments anew, 1, 2, 3 and so on, when it submits them, and says which name each of them has.

    Args:
        info: of the label map, with ``label_info``, a list of ``{"name": ..., "idx": ...}``.
        names: the app's labels.

    Returns:
        New value by old one; empty where nothing changes, or where not all names are known.
    """
    given = info.get("label_info") or []
    if not given or not all(isinstance(one, Mapping) and "idx" in one and one.get("name") in names for one in given):
        return {}
    values = {str(one["idx"]): names[one["name"]] for one in given}
    return values if any(int(old) != new for old, new in values.items()) else {}


def as_atlases(store: Datastore, scans: Iterable[Scan], names: Mapping[str, int]) -> list[dict[str, Any]]:
    """Labelled scans as the worker takes them."""
    return [
        {**scan._asdict(), "values": renumbering(store.get_label_info(scan.name, DefaultLabelTag.FINAL), names)}
        for scan in scans
    ]
