# SPDX-License-Identifier: Apache-2.0
"""Measure methods under equal conditions, one after the other, and put the figures into one table.

Examples: ``python scripts/study.py methods --dataset_dir data --cpu_seconds 3600 --output study``;
``python scripts/study.py sizes vfa_lumir --dataset_dir LUMIR --output sizes``;
``python scripts/study.py memory --output memory``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common.threads import share_cores

share_cores()

from common.checks import InputError
from common.cli import positive, run_tool, whole
from common.data import READERS, read_section
from common.evaluation.training_sizes import PUBLISHED, PUBLISHED_TITLE, possible_sizes
from common.evaluation.trainings import Training, train_and_evaluate
from common.io.run_record import RunRecord
from common.report.studies import draw_memory, draw_sizes, write_tables
from scripts.step_memory import NETWORKS, measure_all

_PYRAMID = "--network_def#channels [4,8,8,16,16]"
_TALL = "--network_def#channels [4,8,16,64,128] --network_def#up_channels [4,8,16,32,64] --network_def#halvings [2,1,0]"
_OF_2MM = (
    "--network_def#size [80,112,96] --network_def#channels [8,16,32,64,128,256] --network_def#local_level 2 "
    "--network_def#hidden 64 --network_def#frequencies 64 --loss#terms#ncc#loss#fraction 0.005 "
    "--loss#terms#ncc_back#loss#fraction 0.005 --learning_rate 0.0003"
)
_HALF_UNET = "--network_def#encoder [8,16,16,16] --network_def#decoder [16,16,16,16,16,8,8]"
_SMALL_SWIN = (
    "--supervised false --network_def#embed_dim 48 --network_def#heads [4,4,4,4] --network_def#window [3,4,3] "
    "--network_def#align_corners True"
)
METHODS: dict[str, tuple[str, str]] = {
    "EOIR": ("eoir_oasis", "--supervised false --network_def#start_channel 8"),
    "VFA": ("vfa_oasis", "--network_def#start_channels 4 --network_def#matching_channels 4"),
    "SITReg": (
        "sitreg_oasis",
        "--network_def#channels [4,20,20,20] --network_def#update_channels [8,36,36,36]",
    ),
    "DP-Conv-C": ("dp_conv_c_oasis", _PYRAMID),
    "DP-ConvIC-C": ("dp_convic_c_oasis", _PYRAMID),
    "DP-VFA": ("dpvfa_oasis", _PYRAMID),
    "GradICON": ("gradicon_oasis", _TALL),
    "NePhi": ("nephi_oasis", _OF_2MM),
    "LKU-Net": ("lkunet_ixi", "--network_def#start_channels 4"),
    "VoxelMorph": ("voxelmorph_oasis", _HALF_UNET),
    "VoxelMorph, diffeomorphic": ("voxelmorph_oasis", f"{_HALF_UNET} --network_def#int_steps 7"),
    "VoxelMorph, with labels": ("voxelmorph_oasis", f"{_HALF_UNET} --supervised true"),
    "TransMorph, small": ("transmorph_oasis", _SMALL_SWIN),
}
"""Bundle of a method, and options that make its network small enough for a processor."""
EQUAL = (
    *("--max_epochs", "1000000", "--val_interval", "1000000", "--pairs_per_epoch", "22", "--lr_scheduler", "None"),
    *("--batch_size", "1"),
    *("--train#dataloader#sampler#strategy", "random_partner", "--train#dataloader#sampler#flip_axes", "[]"),
    *("--train#dataloader#sampler#both_ways", "False", "--validate#dataloader#sampler#pairs", "[[0, 1]]"),
)
"""What all methods have alike beside data and rate: pairs, no mirroring, a constant rate; the last weights count."""
EDGES = (64, 80, 96, 128, 160, 175, 192, 224, 256)
"""Of the cubes whose training step is measured."""
EPILOG = """\
OUTPUT/NAME gets the training and the evaluation of each bundle, OUTPUT the tables (CSV and Markdown) and, of sizes and
memory, a picture. The same command goes on where an interrupted one stopped, and repeats nothing.

  python scripts/study.py methods --dataset_dir BRAINS --label_groups label_groups.json --output study
  python scripts/study.py sizes eoir_oasis --dataset_dir BRAINS --reader datalist --sizes 2 5 10 --output sizes \\
      --options "--supervised false --pairs_per_epoch 22 --max_epochs 4"
  python scripts/study.py memory --sizes 64 96 128 --output memory
"""


def parser() -> argparse.ArgumentParser:
    """Options of this script."""
    options = argparse.ArgumentParser(
        description="Measure methods under equal conditions, and put their figures into one table.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = options.add_subparsers(dest="study", required=True)
    methods = kinds.add_parser("methods", help="several methods, each for the same time on one thread of the CPU")
    methods.add_argument("--methods", nargs="+", choices=[*METHODS], default=[*METHODS], help="default: all")
    methods.add_argument("--cpu_seconds", type=positive, default=840.0, help="of each training (default: 840)")
    methods.add_argument("--learning_rate", type=positive, default=1e-3, help="of all methods (default: 0.001)")
    sizes = kinds.add_parser("sizes", help="one bundle, with more and more subjects for training")
    sizes.add_argument("bundle", help="name of the bundle")
    sizes.add_argument("--sizes", nargs="+", type=whole(2), default=[*PUBLISHED], help="default: the published ones")
    sizes.add_argument("--options", default="", help='further options of the bundle, such as "--max_epochs 4"')
    for kind in (methods, sizes):
        kind.add_argument("--dataset_dir", type=Path, required=True, help="folder of the data set")
        kind.add_argument("--reader", choices=[*READERS], help="its layout (default: the bundle's)")
        kind.add_argument("--label_groups", type=Path, help="JSON that joins labels to groups and says which count")
    memory = kinds.add_parser("memory", help="peak memory and time of one training step, against the volume's edge")
    memory.add_argument("--networks", nargs="+", choices=[*NETWORKS], default=[*NETWORKS], help="default: all")
    memory.add_argument("--sizes", nargs="+", type=whole(32), default=[*EDGES], help=f"default: {EDGES}, what fits")
    for kind in (methods, sizes, memory):
        kind.add_argument("--output", type=Path, required=True, help="folder of the results")
    return options


def bundle_folder(name: str) -> Path:
    """Folder of a bundle.

    Raises:
        InputError: when there is none of this name.
    """
    folder = ROOT / "bundles" / name
    if not (folder / "configs" / "train.json").is_file():
        known = ", ".join(sorted(path.parents[1].name for path in ROOT.glob("bundles/*/configs/train.json")))
        raise InputError(f"There is no bundle {name!r}; the bundles are {known}.")
    return folder


def data_options(given: argparse.Namespace) -> list[str]:
    """Words of the command line that name the data."""
    words = ["--dataset_dir", str(given.dataset_dir.resolve())]
    words += [] if given.reader is None else ["--reader", given.reader]
    return words if given.label_groups is None else [*words, "--label_groups", str(given.label_groups.resolve())]


def equal_trainings(given: argparse.Namespace) -> list[Training]:
    """One training for each method, alike in all but bundle and network."""
    equal = [*EQUAL, "--max_cpu_seconds", f"{given.cpu_seconds:g}", "--learning_rate", f"{given.learning_rate:g}"]
    shared = [*data_options(given), *equal, "--device", "cpu"]
    return [
        Training(name, bundle_folder(bundle), [*shared, *own.split()], ["--section", "validation"])
        for name, (bundle, own) in METHODS.items()
        if name in given.methods
    ]


def compare_methods(given: argparse.Namespace) -> str:
    """Train each method for the same processor time; returns the table."""
    rows = []
    for training in equal_trainings(given):
        rows.append(train_and_evaluate(training, given.output, {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}))
        text = write_tables(given.output, "methods", rows)
    return text


def compare_sizes(given: argparse.Namespace) -> str:
    """Train a bundle with more and more subjects; returns the table."""
    bundle = bundle_folder(given.bundle)
    config = json.loads((bundle / "configs" / "train.json").read_text(encoding="utf-8"))
    available = len(read_section(given.dataset_dir, given.reader or config["reader"], "training").subjects)
    sizes, left_out = possible_sizes(given.sizes, available)
    if left_out:
        print(f"Left out: {', '.join(map(str, left_out))}; the data set has {available} subjects for training.")
    ours: dict[int, dict[str, Any]] = {}
    for size in sizes:
        options = [*data_options(given), "--train_subjects", str(size), *shlex.split(given.options)]
        ours[size] = train_and_evaluate(Training(f"{size} subjects", bundle, options), given.output)
        published = [{"name": f"{n}, {PUBLISHED_TITLE}", **row} for n, row in PUBLISHED.items()]
        text = write_tables(given.output, "sizes", [*ours.values(), *published])
        for suffix in (".svg", ".png"):
            draw_sizes((given.output / "sizes").with_suffix(suffix), ours, PUBLISHED, given.bundle, PUBLISHED_TITLE)
    return text


def compare_memory(given: argparse.Namespace) -> str:
    """Measure a training step of each network with larger and larger volumes; returns the table."""
    if not Path("/proc/self/status").exists():
        raise InputError("This study reads the memory of processes from /proc, which only Linux has.")
    record = RunRecord(given.output / "memory.json", given.output, "figures", {"study": "memory"}, option="--output")
    kept = record.read("figures")[0] if record.path.is_file() else {}
    known = {name: {int(edge): row for edge, row in found.items()} for name, found in kept.items()}
    figures = measure_all(given.networks, given.sizes, known, lambda found: record.write(figures=found))
    rows = [
        {"name": f"{name}, {edge}", "network": name, "edge": edge, **row}
        for name in NETWORKS
        for edge, row in sorted(figures.get(name, {}).items())
    ]
    for suffix in (".svg", ".png"):
        draw_memory((given.output / "memory").with_suffix(suffix), figures)
    return write_tables(given.output, "memory", rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    given = parser().parse_args(argv)
    studies = {"methods": compare_methods, "sizes": compare_sizes, "memory": compare_memory}
    print(studies[given.study](given))


if __name__ == "__main__":
    run_tool(main)
