# SPDX-License-Identifier: Apache-2.0
"""Finding the files of a pair by their names: images, labels, masks, landmarks, and fields under every usual name."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from common.checks import InputError
from common.data.readers.listing import file_stem, subject_id
from common.evaluation.pair_lists import ListedPair, PairList
from common.io.file_kinds import is_dicom
from common.io.formats.reader import REFUSED_SUFFIXES, TRANSFORM_SUFFIXES
from common.io.landmarks import POINT_SUFFIXES
from common.io.nifti import IMAGES, check_is_file
from common.io.png import PNG

# What is refused by name is found, too, so that it can be.
FIELD_SUFFIXES = (*TRANSFORM_SUFFIXES, *REFUSED_SUFFIXES)
# The first that exists is taken: one registration leaves several forms of the same field.
FIELD_NAMES = (
    "{moving}_to_{fixed}_ddf", "{moving}_to_{fixed}_displacement", "{moving}_to_{fixed}_transform",
    "{moving}_to_{fixed}_map", "{moving}_to_{fixed}", "disp_{fixed}_{moving}",
)  # fmt: skip
_NO_FIELD = re.compile(r"_(warped|warped_label|inverse|inverse_ddf|jacobian|panel|fixed|moving|affine)$")
_LABEL_ENDING = re.compile(r"_(labels?|seg|segmentation|mask)$")


@dataclass(frozen=True)
class LandmarkFiles:
    """Landmarks of both images, tables or volumes, and the name of their figure."""

    figure: str
    moving: str
    fixed: str


@dataclass(frozen=True)
class PairFiles:
    """Where everything about one pair lies, as text; None for what was not asked for."""

    moving_id: str
    fixed_id: str
    field: str
    moving: str | None = None
    fixed: str | None = None
    moving_label: str | None = None
    fixed_label: str | None = None
    fixed_mask: str | None = None
    landmarks: tuple[LandmarkFiles, ...] = ()
    inverse: str | None = None
    costs: tuple[tuple[str, float], ...] = ()

    @property
    def name(self) -> str:
        """For people and file names."""
        return f"{self.moving_id}_to_{self.fixed_id}"


class Folder:
    """Files of one folder, found by several forms of their names.

    Args:
        path: the folder; it must exist and hold files of one of ``suffixes``. PNG beside others are views of these.
        what: for messages, such as "images".
        suffixes: endings of the files that count.

    Raises:
        InputError: when the folder is missing, no folder, or holds no such file.
    """

    def __init__(self, path: str | Path, what: str, suffixes: Sequence[str] = IMAGES) -> None:
        self.path, self.what = Path(path).absolute(), what
        if not self.path.is_dir():
            raise InputError(f"The folder of the {what}, {path}, does not exist.")
        files = self._files("*", suffixes) or self._files("**/*", suffixes)
        if not files:
            sentence = f"The folder of the {what}, {path}, holds no file that ends in {', '.join(suffixes)}"
            raise InputError(f"{sentence}{self._dicom()}.")
        self.files: dict[str, list[Path]] = defaultdict(list)
        for file in files:
            self.files[_stem(file.name, suffixes)].append(file)

    def _files(self, pattern: str, suffixes: Sequence[str]) -> list[Path]:
        found = (path for path in self.path.glob(pattern) if path.name.endswith(tuple(suffixes)))
        files = sorted(path for path in found if path.is_file() and not path.name.startswith("."))
        return [path for path in files if path.suffix != PNG] or files

    def _dicom(self) -> str:
        first = next((path for path in sorted(self.path.iterdir()) if path.is_file()), None)
        return ": these are DICOM files, which become NIfTI files with dcm2niix" if first and is_dicom(first) else ""

    def find(self, entry: str, as_path: bool = True) -> Path | None:
        """The file of an image or subject: by path, by whole name, without modality, or by the challenge's number.

        Args:
            entry: id, file name or path.
            as_path: whether a path counts as it is; not for the label map of an image.

        Raises:
            InputError: when several files fit equally well, or only a folder does.
        """
        places = (Path(entry), self.path / entry, self.path.parent / entry) if as_path else ()
        for candidate in filter(Path.is_file, places):
            return candidate
        wanted = {file_stem(entry), subject_id(entry)}
        for form in (str, subject_id, _without_ending, _number_with_modality, _number):
            found = [file for stem, files in self.files.items() if form(stem) in wanted for file in files]
            if len(found) > 1:
                names = ", ".join(str(file.relative_to(self.path)) for file in found[:4])
                raise InputError(f"In the {self.what} folder {self.path} several files fit {entry}: {names}.")
            if found:
                return found[0]
        for candidate in filter(Path.is_dir, places):
            check_is_file(candidate)
        return None


def find_field(folder: Folder, pair: ListedPair, pattern: str | None = None) -> Path | None:
    """The displacement field of a pair.

    Args:
        folder: of the fields.
        pair: images of the pair; its ``field`` counts before everything else.
        pattern: form of the names, with {moving} and {fixed}, in place of the usual ones.

    Raises:
        InputError: when several files fit equally well, or ``pattern`` lacks a place.
    """
    if pair.field is not None:
        given = [path for path in (folder.path / pair.field, Path(pair.field)) if path.is_file()]
        return given[0] if given else None
    if pattern is not None and not ("{moving}" in pattern and "{fixed}" in pattern):
        raise InputError(f'The pattern {pattern!r} must hold {{moving}} and {{fixed}}: "{{moving}}_{{fixed}}.nii.gz".')
    names = [{"moving": moving, "fixed": fixed} for moving, fixed in product(_forms(pair.moving), _forms(pair.fixed))]
    for form in FIELD_NAMES if pattern is None else (pattern,):
        found = [file for name in names for file in _named(folder, form, name)]
        if found:
            return _only(list(dict.fromkeys(found)), pair)
    if pattern is not None:
        return None
    starts = {"{moving}_to_{fixed}_".format(**name) for name in names}
    others = [stem for stem in folder.files if stem.startswith(tuple(starts)) and not _NO_FIELD.search(stem)]
    found = [file for stem in others for file in folder.files[stem]]
    return _only(found, pair) if found else None


def locate(
    listed: PairList,
    fields: str | Path,
    images: str | Path | None,
    labels: str | Path | None,
    landmarks: str | Path | None = None,
    pattern: str | None = None,
) -> tuple[list[PairFiles], list[str]]:
    """Files of all pairs of a list.

    Args:
        listed: the pairs.
        fields: folder of the displacement fields.
        images: folder of the images, or the one that the paths of the list start from.
        labels: the same of the label maps.
        landmarks: folder of landmark tables or volumes that have the images' names.
        pattern: see :func:`find_field`.

    Returns:
        Pairs that have all of their files, and for every other one what is missing.

    Raises:
        InputError: when a folder is missing or empty, or a name fits several files.
    """
    folders = {
        "field": Folder(fields, "fields", FIELD_SUFFIXES),
        "image": None if images is None else Folder(images, "images"),
        "label": None if labels is None else Folder(labels, "labels"),
        "landmarks": None if landmarks is None else Folder(landmarks, "landmarks", (*POINT_SUFFIXES, *IMAGES)),
    }
    complete, missing = [], []
    for pair in listed.pairs:
        files, lacking = _locate_pair(pair, listed, folders, pattern)
        if lacking:
            missing.append(f"{subject_id(pair.moving)} to {subject_id(pair.fixed)} ({', '.join(lacking)})")
        else:
            complete.append(files)
    return complete, missing


def _locate_pair(
    pair: ListedPair, listed: PairList, folders: dict[str, Folder | None], pattern: str | None
) -> tuple[PairFiles, list[str]]:
    found: dict[str, Any] = {}
    field_folder, challenge = folders["field"], listed.challenge
    assert field_folder is not None
    lacking: list[str] = []
    there_and_back = {"field": pair.field} if pair.inverse is None else {"field": pair.field, "inverse": pair.inverse}
    for name, file in there_and_back.items():
        field = find_field(field_folder, replace(pair, field=file), pattern)
        found[name] = str(field.absolute()) if field else ""
        lacking += [] if field else [name]
    for side in ("moving", "fixed"):
        for kind, folder in (("image", folders["image"]), ("label", folders["label"])):
            if folder is None:
                continue
            path = folder.find(getattr(pair, side)) if kind == "image" else _find_label(folder, pair, side)
            found[side if kind == "image" else f"{side}_label"] = None if path is None else str(path.absolute())
            lacking += [] if path else [f"{side} {kind}"]
    points: list[LandmarkFiles] = []
    if challenge is not None and challenge.masked:
        mask = None if folders["image"] is None else _beside(folders["image"], pair.fixed, "masks")
        found["fixed_mask"] = None if mask is None else str(mask)
        lacking += [] if mask else ["fixed mask"]
    for name, sides in _landmarks(pair, listed, folders):
        if None in sides:
            lacking.append(name)
        else:
            points.append(LandmarkFiles(name, *map(str, sides)))
    ids = {"moving_id": subject_id(pair.moving), "fixed_id": subject_id(pair.fixed)}
    return PairFiles(**ids, **found, landmarks=tuple(points), costs=pair.costs), lacking


def _landmarks(
    pair: ListedPair, listed: PairList, folders: dict[str, Folder | None]
) -> Iterator[tuple[str, tuple[Path | None, Path | None]]]:
    """Name of the figure, and the files (moving, fixed), for every set of landmarks that is asked for."""
    if folders["landmarks"] is not None:
        yield "tre", (folders["landmarks"].find(pair.moving), folders["landmarks"].find(pair.fixed))
    wanted = [] if listed.challenge is None else [m for m in listed.challenge.metrics if m.metric == "tre"]
    for metric in wanted:
        folder, dest = folders["image"], metric.dest or "landmarks"
        if folder is not None:
            yield f"tre_{dest}", (_beside(folder, pair.moving, dest), _beside(folder, pair.fixed, dest))


def _beside(images: Folder, entry: str, kind: str) -> Path | None:
    """File of another kind under the rule of the challenges: "images" in the path becomes ``kind``."""
    image = images.find(entry)
    if image is None:
        return None
    folder = image.parent.parent / image.parent.name.replace("images", kind)
    candidates = [folder / image.name, folder / f"{file_stem(image)}.csv"]
    return next((path for path in candidates if path.is_file() and path != image), None)


def _find_label(folder: Folder, pair: ListedPair, side: str) -> Path | None:
    """The label map: as listed, or under the image's path with "images" replaced by "labels", or by its name."""
    entry, listed = getattr(pair, side), getattr(pair, f"{side}_label")
    if listed is not None:
        return folder.find(listed)
    renamed = entry.replace("images", "labels")
    return folder.find(renamed, as_path=renamed != entry)


def _forms(entry: str) -> list[str]:
    """Names under which a subject may stand in a file name, the most complete first."""
    stem = file_stem(entry)
    whole = stem if _number_with_modality(stem) else f"{stem}_0000"
    forms = [stem, whole, subject_id(entry), _number_with_modality(whole), _number(stem)]
    return list(dict.fromkeys(form for form in forms if form))


def _named(folder: Folder, form: str, name: dict[str, str]) -> list[Path]:
    stem = form.format(**name)
    files = folder.files.get(_stem(stem, FIELD_SUFFIXES), [])
    return [file for file in files if file.name == stem] if stem.endswith(FIELD_SUFFIXES) else files


def _only(found: list[Path], pair: ListedPair) -> Path:
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:4])
        raise InputError(
            f"Several files fit the pair moving {pair.moving}, fixed {pair.fixed}: {names}; choose with --pattern or a "
            "column field in the pair list."
        )
    return found[0]


def _stem(name: str, suffixes: Sequence[str]) -> str:
    ending = next((suffix for suffix in suffixes if name.endswith(suffix)), "")
    return name[: len(name) - len(ending)]


def _without_ending(stem: str) -> str:
    return subject_id(_LABEL_ENDING.sub("", stem))


def _number_with_modality(stem: str) -> str:
    """``0395_0000`` of ``OASIS_0395_0000``."""
    found = re.search(r"(\d+_\d{4})$", stem)
    return found[1] if found else ""


def _number(stem: str) -> str:
    """``0395`` of ``OASIS_0395_0000``."""
    found = re.search(r"(\d+)(_\d{4})?$", _LABEL_ENDING.sub("", stem))
    return found[1] if found else ""
