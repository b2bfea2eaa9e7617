# SPDX-License-Identifier: Apache-2.0
"""What every reader of a data set returns, and the helpers that all of them need."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.checks import InputError
from common.data.pairs import ordered_pairs
from common.data.splits import load_split

_logger = logging.getLogger(__name__)
SECTIONS = ("training", "validation", "test")

LANDMARKS = "landmarks"
"""Entry of a subject that names the file of its points, and holds these once they are loaded."""
LANDMARK_COORDINATES = "landmark_coordinates"
"""Entry of a subject that says what the numbers of such a table are, see :data:`common.io.landmarks.COORDINATES`."""
MASK = "mask"
"""Entry of a subject that names the file of where its image counts, and holds this once it is loaded."""

Subject = dict[str, str]


@dataclass
class Listing:
    """One section of a data set.

    Attributes:
        subjects: dictionaries {"id", "image", "label", "mask", "landmarks" (if there are such)}; "role" for halves of a
            pair pickle.
        pairs: (moving, fixed) indices into ``subjects``; None where the data set lists no pairs.
    """

    subjects: list[Subject] = field(default_factory=list)
    pairs: list[tuple[int, int]] | None = None

    def every_pair(self) -> list[tuple[int, int]]:
        """The listed pairs, or all ordered ones where none are listed."""
        return ordered_pairs(len(self.subjects)) if self.pairs is None else self.pairs

    def without_unpaired(self) -> Listing:
        """The subjects that the listed pairs name, in their order; all of them where no pairs are listed."""
        if self.pairs is None:
            return self
        named = sorted({index for pair in self.pairs for index in pair})
        place = {index: i for i, index in enumerate(named)}
        return Listing(
            [self.subjects[i] for i in named], [(place[moving], place[fixed]) for moving, fixed in self.pairs]
        )

    def first(self, number: int) -> Listing:
        """The first ``number`` subjects in the order of the list, and those of the listed pairs that are among them."""
        pairs = None if self.pairs is None else [pair for pair in self.pairs if max(pair) < number]
        return Listing(self.subjects[:number], pairs).without_unpaired()


def published_listings(source: Path, name: str, people: Mapping[str, Subject], test: str) -> dict[str, Listing]:
    """The sections of a published split that lists pairs, as far as its people are there.

    Args:
        source: folder of the data set, for messages.
        name: of the split, see :func:`common.data.load_split`.
        people: by the ids that the split has; others are left out.
        test: name of its list of test pairs.

    Returns:
        Listing per section, also where nobody is left in it; training lists no pairs.
    """
    split = load_split(name)
    ids = {section: split[key] for section, key in zip(SECTIONS, ("train", "val", "test"), strict=True)}
    missing = sorted({person for section in ids.values() for person in section} - people.keys())
    if missing:
        _logger.warning("%s lacks %d people of the split %s, such as %s.", source, len(missing), name, missing[0])
    listings = {}
    for section, listed in zip(SECTIONS, (None, split["pairs_val"], split[test]), strict=True):
        present = [person for person in ids[section] if person in people]
        place = {person: i for i, person in enumerate(present)}
        pairs = None
        if listed is not None:
            pairs = [(place[moving], place[fixed]) for fixed, moving in listed if {moving, fixed} <= place.keys()]
        listings[section] = Listing([people[person] for person in present], pairs)
    return listings


def refuse_list(reader: str, dataset_json: str | None) -> None:
    """For readers whose sections are published.

    Raises:
        InputError: a list of one's own is asked for.
    """
    if dataset_json is not None:
        raise InputError(
            f"The reader '{reader}' takes the published split and no list {dataset_json}; for a list of your own use "
            "the reader 'datalist'."
        )


def keep_pairs_out_of_training(source: Path, training: Listing, held_out: Sequence[Listing]) -> None:
    """Drop listed training pairs, in either direction, that validation or test list too, as some releases have it.

    One image of them may serve on both sides, such as an atlas. Where nothing would be left, all pairs stay.

    Args:
        source: data list, for the log.
        training: changed in place.
        held_out: validation and test.
    """
    reserved = {_images(section, pair) for section in held_out for pair in section.pairs or ()}
    kept = [pair for pair in training.pairs or () if _images(training, pair) not in reserved]
    both = len(training.pairs or ()) - len(kept)
    if kept and both:
        _logger.info(
            "%s: %d training pairs also serve in validation or test and are left out of training.", source, both
        )
        training.pairs = kept
    elif both:
        _logger.warning("%s: all %d training pairs also serve in validation or test.", source, both)


def _images(listing: Listing, pair: tuple[int, int]) -> frozenset[str]:
    return frozenset(listing.subjects[index]["image"] for index in pair)


def subject_id(path: str | Path) -> str:
    """File name without extension and without the modality suffix ``_0000`` of Learn2Reg."""
    return re.sub(r"_0000$", "", file_stem(path))


def file_stem(path: str | Path) -> str:
    """File name without ``.nii.gz``, ``.nii``, ``.png`` or ``.pkl``."""
    return re.sub(r"\.(nii\.gz|nii|png|pkl)$", "", Path(path).name)


def make_subject(image: Path, label: Path | None) -> Subject:
    """Subject of an image file and its label file."""
    subject = {"id": subject_id(image), "image": str(image)}
    if label is not None:
        subject["label"] = str(label)
    return subject


def distinguish_ids(subjects: list[Subject]) -> list[Subject]:
    """Give subjects that share an id a longer one: the whole file name, then the folders above it, "sub-a-t1"."""
    images = [subject["image"] for subject in subjects]
    parts = {image: (*Path(image).absolute().parts[1:-1], file_stem(image)) for image in images}
    for depth in range(1, 1 + max(map(len, parts.values()), default=0)):
        times = Counter(subject["id"] for subject in subjects)
        subjects = [{**s, "id": "-".join(parts[s["image"]][-depth:])} if times[s["id"]] > 1 else s for s in subjects]
    return subjects
