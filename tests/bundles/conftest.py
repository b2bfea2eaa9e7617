# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from pydoc import locate
from typing import Any

import monai.bundle
import pytest
from monai.bundle import ConfigParser

from common.data.shapes3d import generate_shapes3d

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = sorted(path.parent.parent for path in (ROOT / "bundles").glob("*/configs/metadata.json"))
TRAINED = [bundle for bundle in BUNDLES if (bundle / "configs" / "train.json").is_file()]
"""Those with a network that is trained; the other ones register without."""
PUBLISHED = [bundle for bundle in TRAINED if not bundle.name.endswith("_brains")]
"""Those of them whose network is as published; bundles of brains have narrow ones of the same kinds."""


def metadata_of(bundle: Path) -> dict[str, Any]:
    """What the ``metadata.json`` of a bundle says."""
    read: dict[str, Any] = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    return read


SHIPPED = [bundle for bundle in BUNDLES if "weights_license" in metadata_of(bundle)]
"""Those whose weights are in the box."""


def _network(bundle: Path) -> str:
    """What makes the network of a bundle; of those that go both ways, which are long to trace, only the class."""
    train = json.loads((bundle / "configs" / "train.json").read_text(encoding="utf-8"))
    network = train["network_def"]
    return str(network["_target_"]) + " both ways" if "lncc_back" in train["loss"]["terms"] else json.dumps(network)


def _recipe(bundle: Path) -> str:
    """Class of a bundle's network and names of the terms that it is trained with."""
    train = json.loads((bundle / "configs" / "train.json").read_text(encoding="utf-8"))
    return json.dumps([train["network_def"]["_target_"], *train["loss"]["terms"]])


def dimensions(bundle: Path) -> int:
    """Of the images of a bundle."""
    return len(metadata_of(bundle)["network_data_format"]["inputs"]["image"]["spatial_shape"])


def _first_of(bundles: list[Path], *kinds: Callable[[Path], str]) -> list[Path]:
    """The first bundle of each kind; of later kinds those alone that no bundle found before has."""
    found: list[Path] = []
    for kind in kinds:
        known = {kind(bundle) for bundle in found}
        firsts = {kind(bundle): bundle for bundle in reversed(bundles)}
        found += [bundle for name, bundle in firsts.items() if name not in known]
    return sorted(found)


NETWORKS = _first_of(PUBLISHED, _network)
"""One bundle of each network: for what depends on no more."""
RUN = _first_of(
    [bundle for bundle in [*PUBLISHED, ROOT / "bundles" / "dp_conv_c_brains"] if dimensions(bundle) == 3],
    *(_recipe, lambda bundle: bundle.name.rpartition("_")[2]),
)
"""Bundles of volumes that are trained here: of each network with its loss one, and of each data set."""
# Small enough for a step in a tenth of a second.
TINY = ["--network_def#start_channel", "2", "--learning_rate", "0.001"]


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    return generate_shapes3d(folder, num_subjects=8, size=(32, 32, 32), validation=2, test=2, progress=False)


@pytest.fixture
def command_line() -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: str, cwd: Path = ROOT, module: str = "monai.bundle") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
        return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=600)

    return run


def environment() -> dict[str, str]:
    """Without a PYTHONPATH: a bundle has to find its own parts."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**kept, "OMP_NUM_THREADS": "1"}


def tiny(bundle: Path) -> dict[str, Any]:
    """Overrides that make a bundle's network as small as its tests have it, whatever its method."""
    configured = ConfigParser.load_config_file(str(bundle / "configs" / "inference.json"))["network_def"]
    module = sys.modules[locate(configured["_target_"]).__module__]
    return {f"network_def#{name}": value for name, value in module.CONFIGURATIONS["tiny"].items()}


def phantom_options(bundle: Path, phantoms: Path, kind: str = "train") -> dict[str, Any]:
    """Overrides that let a bundle take the phantoms, whatever labels, voxels and intensities its data set has.

    Args:
        bundle: folder of the bundle.
        phantoms: folder of the phantoms.
        kind: "train", also for evaluation, or "infer".
    """
    dataset = bundle.name.rpartition("_")[2]
    own = {"train": _PHANTOMS, "infer": _PHANTOMS_INFER}[kind].get(dataset, {})
    return {"dataset_dir": str(phantoms), "reader": "datalist", **own}


def few_shapes(bundle: Path) -> dict[str, Any]:
    """Overrides of a training whose random shapes are made when it begins: two small maps of them."""
    train = json.loads((bundle / "configs" / "train.json").read_text(encoding="utf-8"))
    return {"num_shapes": 2, "spatial_size": [16, 16, 16]} if "num_shapes" in train else {}


_EIGHT = list(range(1, 9))
_PHANTOMS: dict[str, dict[str, Any]] = {
    "acdc": {"labels": _EIGHT, "spacing": None, "spatial_size": [32, 32, 32]},
    "brains": {"spacing": None},
    "lpba40": {"labels": _EIGHT},
    "lungct": {
        "labels": _EIGHT,
        "spacing": None,
        "spatial_size": [32, 32, 32],
        "preprocessing#transforms#3#modality": "mri",
    },
}
_PHANTOMS_INFER: dict[str, dict[str, Any]] = {
    "brains": {"spacing": None},
    "lungct": {"spacing": None, "spatial_size": [32, 32, 32], "intensity#a_min": 0, "intensity#a_max": 1},
}


def run_workflow(bundle: Path, config: str, **override: Any) -> None:
    """A workflow in this process, as ``monai.bundle.run`` runs it: cheaper than a process of its own by its imports.

    Several configurations, each of which changes those before it, are named with "+" between them.
    """
    no_logging: Any = False
    files = [str(bundle / "configs" / f"{name}.json") for name in config.split("+")]
    monai.bundle.run(
        config_file=files if len(files) > 1 else files[0],
        meta_file=str(bundle / "configs" / "metadata.json"),
        logging_file=no_logging,
        bundle_root=str(bundle),
        **override,
    )
