# SPDX-License-Identifier: Apache-2.0
"""What similarities make of pairs whose contrasts differ: the moving scan's intensities pass through a curve.

Example: ``python scripts/contrast.py --dataset_dir BRAINS --label_groups label_groups.json --output contrast.csv``;
with ``--bundle synthmorph_shapes3d`` what its network makes of them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common.threads import share_cores

share_cores()

import torch
from monai.bundle import ConfigParser
from monai.transforms import ScaleIntensity
from torch import Tensor

from common.cli import run_tool
from common.data.label_groups import read_label_groups
from common.io.tables import write_csv
from common.losses.similarity import SIMILARITIES
from common.metrics.overlap import dice_per_label
from common.spatial import warp_labels
from scripts.lesion import chosen_pairs, optimiser, parser_of_pairs

BRIGHTEST = 0.15
"""Where the curve of another weighting turns: cerebrospinal fluid in T1."""
CURVES: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda x: x,
    "inverted": lambda x: 1 - x,
    "like T2": lambda x: torch.where(x < BRIGHTEST, x / BRIGHTEST, 1 - 0.9 * (x - BRIGHTEST) / (1 - BRIGHTEST)),
    "tent": lambda x: 1 - (2 * x - 1).abs(),
}
"""From intensities of 0 to 1 to others. The two last are not monotone; the tent joins tissues that were distinct."""


def through(curve: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """The image with its intensities, 1 being the brightest but for a thousandth of it, passed through a curve.

    Background stays 0.
    """
    brightest = image[image > 0].quantile(0.999)
    return torch.where(image > 0, curve((image / brightest).clamp(max=1)), 0)


def trained(bundle: str, ckpt_path: str | None = None) -> tuple[Any, torch.nn.Module]:
    """Inferer and network of a bundle, which sees each image from its smallest to its largest value as 0 to 1.

    Args:
        bundle: its name.
        ckpt_path: weights; None for those in the bundle's folder.
    """
    folder = ROOT / "bundles" / bundle
    parser = ConfigParser()
    parser.read_config(str(folder / "configs" / "inference.json"))
    parser["bundle_root"], parser["device"] = str(folder), torch.device("cpu")
    if ckpt_path is not None:
        parser["ckpt_path"] = ckpt_path

    @torch.no_grad()
    def register(pair: Tensor, network: torch.nn.Module) -> dict[str, Tensor]:
        scaled = [torch.as_tensor(ScaleIntensity(channel_wise=True)(images)) for images in pair]
        return {"ddf": network(torch.stack(scaled))}

    return register, parser.get_parsed_content("network").eval()


def measure(
    moving: dict[str, Any],
    fixed: dict[str, Any],
    similarity: str,
    labels: Sequence[int],
    registration: tuple[Any, torch.nn.Module] | None = None,
) -> dict[str, Any]:
    """Register a pair once for each curve.

    Args:
        moving: "id", "image" and "label" (1, *spatial), background 0.
        fixed: as the moving.
        similarity: name of what is compared, or of the bundle.
        labels: structures that count.
        registration: inferer and network; None for the optimiser of the bundle instance_any.

    Returns:
        Ids, similarity, and for each curve its Dice and CPU seconds.
    """
    inferer, network = registration or optimiser(similarity)
    row: dict[str, Any] = {"moving_id": moving["id"], "fixed_id": fixed["id"], "similarity": similarity}
    for name, curve in CURVES.items():
        image = torch.cat([through(curve, moving["image"].as_tensor()), fixed["image"].as_tensor()])[None]
        began = time.process_time()
        ddf = inferer(image, network)["ddf"]
        row[f"{name}_cpu_seconds"] = time.process_time() - began
        warped = warp_labels(moving["label"].as_tensor()[None], ddf)
        row[f"{name}_dice"] = dice_per_label(warped, fixed["label"].as_tensor()[None], labels).nanmean().item()
    return row


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Mean Dice over pairs, as a table in Markdown."""
    lines = [f"| similarity | {' | '.join(CURVES)} | CPU s |", "| --- |" + " --- |" * (len(CURVES) + 1)]
    for similarity in dict.fromkeys(row["similarity"] for row in rows):
        own = [row for row in rows if row["similarity"] == similarity]
        dice = [f"{statistics.fmean(row[f'{name}_dice'] for row in own):.4f}" for name in CURVES]
        seconds = statistics.fmean(row[f"{name}_cpu_seconds"] for row in own for name in CURVES)
        lines.append(f"| {similarity} | {' | '.join(dice)} | {seconds:.1f} |")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """Options of this script."""
    options = parser_of_pairs(
        "Register pairs by the field alone (bundle instance_any), the moving scan as it is, inverted, like T2 and "
        "through a tent, by several similarities."
    )
    options.add_argument("--similarities", nargs="+", default=["lncc", "mi", "mind"], choices=tuple(SIMILARITIES))
    options.add_argument("--bundle", help="name of a bundle whose network registers instead")
    options.add_argument("--ckpt_path", help="its weights (default: those in its folder)")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    given = parser().parse_args(argv)
    groups = read_label_groups(given.label_groups)
    network = trained(given.bundle, given.ckpt_path) if given.bundle else None
    rows = []
    for similarity in [given.bundle] if given.bundle else given.similarities:
        for moving, fixed in chosen_pairs(given, groups):
            rows.append(measure(moving, fixed, similarity, groups.evaluated or [], network))
            write_csv(given.output, rows)
    print(summary(rows))


if __name__ == "__main__":
    run_tool(main)
