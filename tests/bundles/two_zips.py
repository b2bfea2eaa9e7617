# SPDX-License-Identifier: Apache-2.0
"""Two releases and a package ``common`` of the user's in one process; run by ``test_zip.py``, writes what it saw."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import monai.bundle
import torch
from monai.bundle import ConfigParser


class LabelTask:
    """The calls of MONAI Label's BundleInferTask: what it does to ``sys.path`` and ``sys.modules``, and its parsing."""

    def __init__(self, bundle: Path) -> None:
        self.bundle = str(bundle)
        self._enter()
        self.config = ConfigParser()
        self.config.read_config(str(bundle / "configs" / "inference.json"))
        self.config["bundle_root"] = self.bundle
        self.network = self.config.get_parsed_content("network_def", instantiate=True)
        self.network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True), strict=False)
        sys.path.remove(self.bundle)

    def _enter(self) -> None:
        sys.path.insert(0, self.bundle)
        for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
            del sys.modules[name]

    def _parsed(self, item: str) -> Any:
        self._enter()
        content = self.config.get_parsed_content(item, instantiate=True)
        sys.path.remove(self.bundle)
        return content

    def __call__(self, image: torch.Tensor) -> tuple[torch.Tensor, list[str]]:
        """Answer of the network, and the packages that the steps before it came from."""
        steps = self._parsed("preprocessing").transforms
        with torch.no_grad():
            answer = self._parsed("inferer")(inputs=image, network=self.network.eval())
        return answer["ddf"], [package_of(step) for step in steps]


def package_of(thing: object) -> str:
    return type(thing).__module__.split(".")[0]


def loaded(bundle: Path, image: torch.Tensor) -> tuple[torch.Tensor, list[str]]:
    """By ``monai.bundle.load``, which knows no bundle_root: the configuration finds its own folder."""
    network: Any = monai.bundle.load(
        bundle.name, bundle_dir=str(bundle.parent), workflow_type="inference", source="github", device="cpu"
    )
    assert isinstance(pickle.loads(pickle.dumps(network)), type(network))
    with torch.no_grad():
        return network.eval()(image), [package_of(network)]


def run(bundle: Path, folder: Path, start: str) -> tuple[int, list[str]]:
    """Register two files by the whole workflow, read by a worker that is started by "fork" or "spawn".

    Returns:
        The number of pairs, and the packages that its parts came from.
    """
    multiprocessing.set_start_method(start, force=True)
    workflow = monai.bundle.create_workflow(
        config_file=str(bundle / "configs" / "inference.json"),
        workflow_type="infer",
        run_id="infer",
        bundle_root=str(bundle),
        fixed=str(folder / "fixed.nii.gz"),
        moving=str(folder / "moving.nii.gz"),
        num_workers=1,
        # Without the writer, whose imports take longer than all else here.
        handlers=[],
    )
    workflow.run()
    evaluator = workflow.evaluator
    parts = (workflow.dataset, workflow.network_def, evaluator.inferer, evaluator.prepare_batch)
    return len(evaluator.state.output), [package_of(part) for part in parts]


def registered(folder: Path, bundles: Sequence[Path]) -> list[tuple[float, list[str]]]:
    """By the interface for Python of the first release, which lends the second one, a zip, its own."""
    sys.path.insert(0, str(bundles[0]))
    (package,) = (path.parent.name for path in bundles[0].glob("registration_common_*/__init__.py"))
    api = importlib.import_module(f"{package}.api")
    sys.path.remove(str(bundles[0]))
    (archive,) = (folder / "dist").glob(f"{bundles[1].name}_v*.zip")
    ckpt_path = bundles[1] / "models" / "model.pt"
    made = [api.load_bundle(bundles[0]), api.load_bundle(archive, trust=True, ckpt_path=ckpt_path)]
    found = []
    for bundle in made:
        result = bundle.register(folder / "moving.nii.gz", folder / "fixed.nii.gz", spacing=None)
        packages = [package_of(part) for part in (bundle, bundle.network, result, result.registration)]
        found.append((float(result.registration.pair["ddf"].abs().mean()), packages))
    return found


def main(folder: Path, names: Sequence[str]) -> None:
    sys.path.insert(0, str(folder / "user"))
    import common  # the user's

    bundles = [folder / name for name in names]
    image = torch.load(folder / "image.pt", weights_only=True)
    answers = {"load": [loaded(bundle, image) for bundle in bundles]}
    tasks = [LabelTask(bundle) for bundle in bundles]
    answers["label"] = [task(image) for task in tasks]
    seen = {
        "answers": {
            way: [(float(field.abs().mean()), packages) for field, packages in found] for way, found in answers.items()
        },
        "runs": [run(bundle, folder, start) for bundle, start in zip(bundles, ("fork", "spawn"), strict=True)],
        "registered": registered(folder, bundles),
        "common": [common.__file__, sorted(name for name in sys.modules if name.split(".")[0] == "common")],
    }
    (folder / "seen.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
