# SPDX-License-Identifier: Apache-2.0
"""CT scans of lungs at inspiration and expiration, in the layouts of Learn2Reg and DIR-Lab.

* Learn2Reg LungCT and NLST: ``imagesTr/LungCT_0001_0000.nii.gz`` is expiration, ``..._0001.nii.gz`` inspiration; lung
  masks, landmarks and keypoints have the image's name in folders where "masks", "landmarks" or "keypoints" stands for
  "images". The release's JSON is read where there is one.
* DIR-Lab COPDgene and 4DCT, its raw files converted to NIfTI under their own names in any folders:
  ``copd1_iBHCT.nii.gz`` with ``copd1_300_iBH_xyz_r1.txt``, ``case1_T00_s.nii.gz`` with ``Case1_300_T00_xyz.txt``, and,
  where somebody has made them, lung masks ``copd1_iBHCT_mask.nii.gz``.

Sources: Hering, Murphy and van Ginneken 2020, doi 10.5281/zenodo.3835682; R. Castillo et al., Phys. Med. Biol. 54,
2009, and 58, 2013 (www.dir-lab.com).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from common.checks import InputError
from common.data.readers.datalist import PAIR_KEYS, find_datalist, image_of, is_pair, load_json, read_content
from common.data.readers.listing import (
    LANDMARK_COORDINATES,
    LANDMARKS,
    MASK,
    SECTIONS,
    Listing,
    Subject,
    distinguish_ids,
    file_stem,
)
from common.data.splits import load_split
from common.io.landmarks import POINT_SUFFIXES

_NIFTI = (".nii.gz", ".nii")
_LEARN2REG = re.compile(r"(?P<case>(?P<set>\w+)_(?P<number>\d{4}))_(?P<phase>000[01])")
_DIR_LAB = {
    re.compile(r"(?P<case>copd\d+)_(?P<phase>[ie])bhct", re.IGNORECASE): ("{case}_300_{phase}bh_xyz_r1.txt",),
    re.compile(r"(?P<case>case\d+)_t(?P<phase>00|50)(_s|-ssm)?", re.IGNORECASE): (
        "{case}_300_t{phase}_xyz.txt",
        "{case}_4d75_t{phase}_xyz.txt",
    ),
}
"""Names of images without their ending, and of their landmarks in small letters, the larger set first."""
_INSPIRATION = ("0001", "i", "00")
_POINTS = ("landmarks", "keypoints")
"""Folders of Learn2Reg; manual points come before automatic ones."""


class _Scan(NamedTuple):
    case: str
    phase: str
    points: tuple[str, ...] = ()


def read_lungct(dataset_dir: Path, dataset_json: str | None = None) -> dict[str, Listing]:
    """Sections of a folder of lung scans; a pair is one person's, inspiration moving and expiration fixed.

    A subject is one scan, "image", with its lung mask as "label" and "mask", and "landmarks", the file of its points,
    where these are there. Pairs of a JSON count as they are listed; where it lists scans alone, both of one person are
    paired. Without a JSON the official validation cases of Learn2Reg are the validation section, ``imagesTs`` is the
    test section and all else is for training; cases of DIR-Lab, for which no one trains, are the test section.

    Args:
        dataset_dir: folder of the data set.
        dataset_json: file name of the list; default: the only JSON with a "training" list, or none.

    Returns:
        Listing per section; sections without subjects are absent.

    Raises:
        InputError: as :func:`common.data.readers.datalist.read_datalist`; no list and no scans of either layout.
    """
    if dataset_json is None and not any(dataset_dir.glob("*.json")):
        path, content = dataset_dir, _list_by_names(dataset_dir)
    else:
        path = find_datalist(dataset_dir, dataset_json)
        content = load_json(path)
    listings = read_content(dataset_dir, path, _paired(path, content))
    texts = {file.name.lower(): file for file in sorted(dataset_dir.rglob("*.txt"))}
    for listing in listings.values():
        listing.subjects = distinguish_ids([_with_mask_and_landmarks(subject, texts) for subject in listing.subjects])
    return listings


def _list_by_names(dataset_dir: Path) -> dict[str, Any]:
    """What a JSON would say of the files that are there."""
    folders = {name: sorted((dataset_dir / name).glob("*.nii*")) for name in ("imagesTr", "imagesTs")}
    images = [file for file in folders["imagesTr"] if _LEARN2REG.fullmatch(file_stem(file))]
    validation = [file for file in images if _is_validation(file_stem(file))]
    sections = {
        "training": [file for file in images if file not in validation],
        "validation": validation,
        "test": [file for file in folders["imagesTs"] if _LEARN2REG.fullmatch(file_stem(file))],
    }
    if not any(sections.values()):
        files = sorted(file for file in dataset_dir.rglob("*.nii*") if file.name.endswith(_NIFTI))
        sections = {"test": [file for file in files if _scan(file) is not None]}
    content = {
        section: [file.relative_to(dataset_dir).as_posix() for file in files] for section, files in sections.items()
    }
    if not any(_pairs(files) for files in content.values()):
        raise InputError(
            f"The folder {dataset_dir} has no two phases of a lung in a known form; expected a JSON of Learn2Reg, "
            "imagesTr/LungCT_NNNN_0000.nii.gz (expiration) and ..._0001.nii.gz (inspiration), or copdN_eBHCT.nii.gz "
            "and copdN_iBHCT.nii.gz, or caseN_T50.nii.gz and caseN_T00.nii.gz of DIR-Lab."
        )
    return content


def _is_validation(stem: str) -> bool:
    """Whether a scan is of the official validation pairs of its set."""
    found = _LEARN2REG.fullmatch(stem)
    official = load_split("l2r_eval_pairs").get(f"{found['set']}_VAL") if found else None
    return official is not None and any(stem.endswith(name) for pair in official["pairs"] for name in pair)


def _paired(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """A list with the pairs of both phases of a person, where a section lists scans and no pairs."""
    added: dict[str, Any] = {}
    for section in SECTIONS:
        entries, key = content.get(section), PAIR_KEYS[section]
        if not isinstance(entries, list) or content.get(key) or not entries or any(map(is_pair, entries)):
            continue
        added[key] = _pairs(str(image_of(path, entry)) for entry in entries)
        if not added[key]:
            raise InputError(
                f"'{section}' in the data list {path} has no two phases of a lung: list the pairs under '{key}', each "
                "as {'fixed', 'moving'}."
            )
    return {**content, **added}


def _pairs(images: Iterable[str]) -> list[dict[str, str]]:
    """Both phases of each person who has them, expiration fixed."""
    people: dict[str, dict[str, str]] = {}
    for image in images:
        scan = _scan(Path(image))
        if scan is not None:
            people.setdefault(scan.case, {})["moving" if scan.phase in _INSPIRATION else "fixed"] = image
    return [person for person in people.values() if len(person) == 2]


def _scan(image: Path) -> _Scan | None:
    """Person and phase that a file name tells, and how DIR-Lab names the landmarks."""
    stem = file_stem(image)
    found = _LEARN2REG.fullmatch(stem)
    if found is not None:
        return _Scan(found["case"], found["phase"])
    for pattern, names in _DIR_LAB.items():
        found = pattern.fullmatch(stem)
        if found is not None:
            case, phase = found["case"].lower(), found["phase"].lower()
            return _Scan(case, phase, tuple(name.format(case=case, phase=phase) for name in names))
    return None


def _with_mask_and_landmarks(subject: Subject, texts: Mapping[str, Path]) -> Subject:
    """A subject under the name of its file, with what lies beside it."""
    image = Path(subject["image"])
    stem, scan = file_stem(image), _scan(image)
    found = {**subject, "id": stem}
    masks = [_beside(image, "masks") / image.name, *(image.with_name(f"{stem}_mask{ending}") for ending in _NIFTI)]
    mask = next((file for file in masks if file != image and file.is_file()), None)
    if mask is not None:
        # The lungs are what is measured, and what counts where a pair is optimised.
        found = {"label": str(mask), MASK: str(mask), **found}
    if LANDMARKS in found:
        return found
    text = None if scan is None else next((texts[name] for name in scan.points if name in texts), None)
    if text is not None:
        return {**found, LANDMARKS: str(text), LANDMARK_COORDINATES: "voxel_from_1"}
    files = (_beside(image, kind) / f"{stem}{suffix}" for kind in _POINTS for suffix in POINT_SUFFIXES)
    points = next((file for file in files if file.is_file()), None)
    return found if points is None else {**found, LANDMARKS: str(points)}


def _beside(image: Path, kind: str) -> Path:
    """Folder of another kind of files, by the rule of the Learn2Reg evaluation."""
    return image.parent.with_name(image.parent.name.replace("images", kind))
