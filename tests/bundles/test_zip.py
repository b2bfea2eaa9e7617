# SPDX-License-Identifier: Apache-2.0
"""A published zip works in an empty folder, with the repository out of reach, and beside other packages ``common``."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

import common
from common.networks import EOIR
from scripts.package import pack

from .conftest import ROOT, TINY, environment

SOURCE = ROOT / "bundles" / "eoir_shapes3d"
# What the later release does: it registers the other way round.
TURNED = """

_forward = EOIR.forward
EOIR.forward = lambda self, image, *options, **names: _forward(self, image.flip(1), *options, **names)
"""


def unpacked(bundle: Path, folder: Path) -> tuple[Path, str]:
    """A release of a bundle below ``folder``, and the name of the package in it."""
    with zipfile.ZipFile(pack(bundle, folder / "dist", overwrite=True)) as archive:
        archive.extractall(folder)
    (package,) = (folder / bundle.name).glob("registration_common_*/")
    return folder / bundle.name, package.name


@pytest.fixture
def user(tmp_path: Path) -> Path:
    """A folder of the user's that holds another package ``common``."""
    (tmp_path / "user" / "common").mkdir(parents=True)
    (tmp_path / "user" / "common" / "__init__.py").write_text("")
    return tmp_path / "user"


def test_zip_trains_evaluates_and_infers_on_its_own_beside_a_common_of_the_users(
    tmp_path: Path, user: Path, command_line: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    bundle, package = unpacked(SOURCE, tmp_path / "empty")
    assert not (bundle / "common").exists() and not (bundle / package).is_symlink()

    # In place of the weights that came with it, which are of a wider network.
    short = ["--max_epochs", "1", "--val_interval", "1", "--pairs_per_epoch", "1", "--overwrite", "true", *TINY]
    for run_id, config, folder, options in (
        ("train", "train", bundle, short),
        ("evaluate", "evaluate", user, [*TINY[:2], "--network_def#_target_", f"{package}.networks.EOIR"]),
        ("infer", "inference", bundle, TINY[:2]),
    ):
        where = ["--config_file", f"{bundle}/configs/{config}.json", "--bundle_root", str(bundle)]
        if folder == bundle:
            where = ["--config_file", f"configs/{config}.json"]
        result = command_line("run", run_id, *where, *options, cwd=folder)
        assert result.returncode == 0, result.stderr[-3000:]
    assert (bundle / "models" / "model.pt").is_file()
    assert len(list((bundle / "outputs" / "inference").glob("*_ddf.nii.gz"))) == 12
    made_with = json.loads((bundle / "outputs" / "evaluate" / "summary.json").read_text())["provenance"]
    assert made_with["git"] is None, "the parts came from a checkout instead of the zip"
    assert made_with["versions"]["common"] == common.__version__


def later_release(folder: Path) -> Path:
    """A copy of the bundle with a newer ``common`` that computes something else."""
    bundle = folder / "eoir_later"
    for part in ("common", "configs", "docs"):
        shutil.copytree(SOURCE / part, bundle / part)
    shutil.copy(SOURCE / "LICENSE", bundle)
    for path in (bundle / "common" / "__init__.py", bundle / "configs" / "metadata.json"):
        path.write_text(path.read_text().replace(common.__version__, "99.0.1"))
    network = bundle / "common" / Path(inspect.getfile(EOIR)).relative_to(Path(common.__file__).parent)
    network.write_text(network.read_text() + TURNED)
    return bundle


def test_two_releases_and_a_common_of_the_users_live_in_one_process(tmp_path: Path, user: Path) -> None:
    releases = [unpacked(SOURCE, tmp_path), unpacked(later_release(tmp_path / "source"), tmp_path)]
    (earlier, _), (later, _) = releases
    torch.manual_seed(0)
    network, image = EOIR(start_channel=8).eval(), torch.rand(1, 2, 16, 16, 16)
    torch.save(image, tmp_path / "image.pt")
    for bundle in (earlier, later):
        (bundle / "models").mkdir(exist_ok=True)
        torch.save(network.state_dict(), bundle / "models" / "model.pt")
    for name in ("fixed", "moving"):
        values = np.random.default_rng(len(name)).random((16, 16, 16), dtype=np.float32)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / f"{name}.nii.gz")

    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("two_zips.py")), str(tmp_path)]
    ran = subprocess.run(
        [*command, earlier.name, later.name], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    seen = json.loads((tmp_path / "seen.json").read_text())

    packages = [package for _, package in releases]
    assert len(set(packages)) == 2
    with torch.no_grad():
        expected = [float(network(turned).abs().mean()) for turned in (image, image.flip(1))]
    assert expected[0] != pytest.approx(expected[1], rel=1e-3)
    for way, answers in seen["answers"].items():
        assert [size for size, _ in answers] == pytest.approx(expected, rel=1e-5), way
        assert [set(used) for _, used in answers] == [{package} for package in packages], way
    for package, (pairs, used) in zip(packages, seen["runs"], strict=True):
        assert pairs == 1 and set(used) == {package}
    sizes = [size for size, _ in seen["registered"]]
    # Far more than rounding, so that it is another size.
    assert sizes[0] != pytest.approx(sizes[1], rel=1e-3)
    assert [set(used) for _, used in seen["registered"]] == [{package} for package in packages]
    assert seen["common"] == [str(user / "common" / "__init__.py"), ["common"]]
