# SPDX-License-Identifier: Apache-2.0
"""How far a lesion pulls the field beside it, and whether a mask keeps it from that.

Example: ``python scripts/lesion.py --dataset_dir BRAINS --label_groups label_groups.json --output lesion.csv``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common.threads import share_cores

share_cores()

import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from common.cli import run_tool, whole
from common.data import CheckSubjectd, LoadSubjectd, MapLabelsd, read_section
from common.data.label_groups import LabelGroups, read_label_groups
from common.data.readers import READERS, SECTIONS
from common.io.tables import write_csv
from common.metrics.overlap import dice_per_label
from common.spatial import warp_labels

PART = 0.2
"""Of a hemisphere, what is lesion."""
REACH = 10.0
"""Millimetres beside the lesion that are looked at."""
NEIGHBOUR = 0.1
"""Part of a structure that has to lie there for its Dice to count."""
MEASURES = ("dice", "shift_mm")
CASES = ("no lesion", "lesion", "lesion and mask")


def lesion_in(image: Tensor, spacing: Sequence[float]) -> Tensor:
    """A ball about the centre of the left or right half of what is not background, 20 % of that half.

    Args:
        image: (*spatial), background 0, the first axis from one side to the other.
        spacing: millimetres.

    Returns:
        bool, (*spatial).
    """
    places = torch.nonzero(image > 0).double() * torch.tensor(spacing, dtype=torch.float64)
    half = places[places[:, 0] < places[:, 0].mean()]
    centre = half.mean(0)
    radius = (half - centre).norm(dim=1).quantile(PART)
    grid = torch.stack(
        torch.meshgrid(*(torch.arange(n) * s for n, s in zip(image.shape, spacing, strict=True)), indexing="ij"), -1
    )
    return (grid - centre).norm(dim=-1) <= radius


def beside(lesion: Tensor, spacing: Sequence[float]) -> Tensor:
    """Voxels outside of the lesion that are no farther from it than ``REACH``; bool (*spatial), as the argument."""
    distance: NDArray[Any] = distance_transform_edt(~lesion.numpy(), sampling=spacing)
    return torch.from_numpy((distance > 0) & (distance <= REACH))


def neighbours(label: Tensor, shell: Tensor, labels: Sequence[int]) -> list[int]:
    """Those of the labels of which ``NEIGHBOUR`` or more lies in the shell; both (*spatial)."""
    sizes = {number: int((label == number).sum()) for number in labels}
    near = label[shell]
    return [number for number, size in sizes.items() if size and int((near == number).sum()) >= NEIGHBOUR * size]


def optimiser(similarity: str = "lncc") -> tuple[Any, torch.nn.Module]:
    """Inferer and network of the bundle instance_any with its own settings, but for what it compares images by."""
    parser = ConfigParser()
    parser.read_config(str(ROOT / "bundles" / "instance_any" / "configs" / "inference.json"))
    parser["similarity"] = similarity
    return parser.get_parsed_content("inferer"), parser.get_parsed_content("network_def")


def measure(moving: dict[str, Any], fixed: dict[str, Any], labels: Sequence[int]) -> dict[str, Any]:
    """Register the moving scan to the fixed one as it is, with a lesion, and with the lesion masked out.

    Args:
        moving: "id", "image" and "label" (1, *spatial).
        fixed: as the moving.
        labels: structures that count where they lie beside the lesion.

    Returns:
        Ids, and under CASE_MEASURE: ``dice``, the mean of the neighbouring structures, counted beside the lesion, and
        ``shift_mm``, the mean distance there between where the field and that without a lesion lead.
    """
    spacing = [float(length) for length in fixed["image"].affine[:3, :3].norm(dim=0)]
    label, source = fixed["label"].as_tensor()[None], moving["label"].as_tensor()[None]
    lesion = lesion_in(fixed["image"].as_tensor()[0], spacing)
    shell = beside(lesion, spacing)
    counted = neighbours(label[0, 0], shell, labels)
    row: dict[str, Any] = {"moving_id": moving["id"], "fixed_id": fixed["id"], "structures": len(counted)}
    fields = register(moving["image"].as_tensor(), fixed["image"].as_tensor(), lesion)
    for case, ddf in fields.items():
        warped = warp_labels(source, ddf)
        row[f"{case}_dice"] = dice_per_label(warped * shell, label * shell, counted).nanmean().item()
        apart = (ddf - fields[CASES[0]])[0] * torch.tensor(spacing)[:, None, None, None]
        row[f"{case}_shift_mm"] = apart.norm(dim=0)[shell].mean().item()
    return row


def register(moving: Tensor, fixed: Tensor, lesion: Tensor) -> dict[str, Tensor]:
    """Fields (1, 3, *spatial) in voxels of the three cases; the images (1, *spatial), the lesion (*spatial)."""
    inferer, network = optimiser()
    noise = torch.rand(lesion.shape, generator=torch.Generator().manual_seed(0)) * fixed.max()
    harmed = torch.where(lesion, noise, fixed)
    masks = {"fixed_mask": (~lesion)[None, None].float()}
    return {
        case: inferer(torch.cat([moving, image])[None], network, targets=targets)["ddf"]
        for case, image, targets in zip(CASES, (fixed, harmed, harmed), ({}, {}, masks), strict=True)
    }


def load(subject: dict[str, str], groups: LabelGroups) -> dict[str, Any]:
    """Image and grouped labels of a subject."""
    keys = ["image", "label"]
    chain = Compose([LoadSubjectd(keys), MapLabelsd("label", groups.lookup), CheckSubjectd(keys, spatial_dims=3)])
    loaded: dict[str, Any] = chain(subject)
    return loaded


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Means over pairs, as a table in Markdown."""
    lines = ["| | Dice beside the lesion | mm from the field without lesion |", "| --- | --- | --- |"]
    for case in CASES:
        dice, shift = ([row[f"{case}_{name}"] for row in rows] for name in MEASURES)
        spread = f"{statistics.fmean(dice):.4f} ± {statistics.pstdev(dice):.4f}"
        lines.append(f"| {case} | {spread} | {statistics.fmean(shift):.2f} |")
    return "\n".join(lines)


def parser_of_pairs(description: str) -> argparse.ArgumentParser:
    """Options of a script that registers pairs of brains by the field alone."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--dataset_dir", type=Path, required=True, help="folder of a data set of brains, background 0")
    options.add_argument("--reader", default="datalist", choices=tuple(READERS), help="default: %(default)s")
    options.add_argument("--section", default="validation", choices=SECTIONS, help="default: %(default)s")
    options.add_argument("--label_groups", type=Path, required=True, help="JSON of the groups of labels that count")
    options.add_argument("--every", type=whole(1), default=1, help="take one pair of so many; default: %(default)s")
    options.add_argument("--output", type=Path, required=True, help="CSV of the pairs")
    return options


def parser() -> argparse.ArgumentParser:
    """Options of this script."""
    return parser_of_pairs(
        "Register pairs by the field alone (bundle instance_any): as they are, with a ball of noise in a fifth of a "
        "hemisphere of the fixed scan, and with a mask of it; measure the structures beside it."
    )


def chosen_pairs(given: argparse.Namespace, groups: LabelGroups) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The pairs that the options name, (moving, fixed), loaded."""
    listing = read_section(given.dataset_dir, given.reader, given.section)
    for pair in listing.every_pair()[:: given.every]:
        moving, fixed = (load(listing.subjects[index], groups) for index in pair)
        yield moving, fixed


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    given = parser().parse_args(argv)
    groups = read_label_groups(given.label_groups)
    rows = []
    for moving, fixed in chosen_pairs(given, groups):
        rows.append(measure(moving, fixed, groups.evaluated or []))
        write_csv(given.output, rows)
    print(summary(rows))


if __name__ == "__main__":
    run_tool(main)
