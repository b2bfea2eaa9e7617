# SPDX-License-Identifier: Apache-2.0
"""Subjects, pairs, readers of data sets, transforms of one subject, published splits and synthetic phantoms."""

from common.data.abdomen import PrepareAbdomend, prepare_abdomen
from common.data.counted_labels import ClassesOfLabelsd, labels_that_count
from common.data.dataset import PairDataset
from common.data.found_labels import found_labels
from common.data.guides import guides_of_loss
from common.data.label_groups import LabelGroups, MapLabelsd, read_group_names, read_label_groups
from common.data.landmarks import LoadLandmarksd
from common.data.listed_spacing import ListedSpacingd
from common.data.modalities import ScaleModalityd
from common.data.pair_sampler import PairSampler
from common.data.pairs import draw_pairs
from common.data.pickles import load_arrays
from common.data.readers import READERS, SECTIONS
from common.data.request import registration_request
from common.data.scans import ScanPairDataset
from common.data.splits import load_split, split_names
from common.data.subjects import read_section, read_subjects
from common.data.synthesis import PairSynthesis, RandomShapesd, label_map_listing
from common.data.synthesis_image import ImageRecipe
from common.data.synthesis_shapes import ShapesRecipe
from common.data.transforms import CheckSubjectd, LoadSubjectd
from common.data.working_grid import WorkingGridd

__all__ = [
    "READERS",
    "SECTIONS",
    "CheckSubjectd",
    "ClassesOfLabelsd",
    "ImageRecipe",
    "LabelGroups",
    "ListedSpacingd",
    "LoadLandmarksd",
    "LoadSubjectd",
    "MapLabelsd",
    "PairDataset",
    "PairSampler",
    "PairSynthesis",
    "PrepareAbdomend",
    "RandomShapesd",
    "ScaleModalityd",
    "ScanPairDataset",
    "ShapesRecipe",
    "WorkingGridd",
    "draw_pairs",
    "found_labels",
    "guides_of_loss",
    "label_map_listing",
    "labels_that_count",
    "load_arrays",
    "load_split",
    "prepare_abdomen",
    "read_group_names",
    "read_label_groups",
    "read_section",
    "read_subjects",
    "registration_request",
    "split_names",
]
