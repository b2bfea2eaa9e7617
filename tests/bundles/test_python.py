# SPDX-License-Identifier: Apache-2.0
"""Bundles in Python give the numbers of the command line, and what it refuses is refused in the same sentence."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from pydoc import locate
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from common.api import Image, Result, load_bundle, register
from common.checks import InputError
from common.data.shapes3d import generate_shapes3d
from common.engine import save_atomically
from common.io.apply import Chain, warp_file
from common.io.map_files import read_map
from common.io.nifti import read_image
from common.io.transforms import read_transform

from .conftest import ROOT, run_workflow, tiny

ANY = ROOT / "bundles" / "instance_any"
SHORT: dict[str, Any] = {"io_steps": 2, "similarity": "mse", "levels": [2]}


@pytest.fixture(scope="module")
def scans(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two scans with labels and a mask, the moving one turned and of other voxels by its header."""
    folder, found = tmp_path_factory.mktemp("scans"), {}
    for side, number in (("moving", "0002"), ("fixed", "0001")):
        for kind, place in (("", "imagesTr"), ("_label", "labelsTr")):
            file: Any = nibabel.load(phantoms / place / f"SHAPES_{number}_0000.nii.gz")
            values, affine = np.asarray(file.dataobj), file.affine
            if side == "moving":
                # Left to right, back to front, and a part alone.
                values, affine = values[::-1, 4:].swapaxes(0, 1), affine @ turned(len(values))
            found[f"{side}{kind}"] = str(folder / f"{side}{kind}.nii.gz")
            nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(values), affine), found[f"{side}{kind}"])
    mask = nibabel.Nifti1Image(np.ones((32, 32, 32), np.uint8), nibabel.load(found["fixed"]).affine)
    mask.dataobj[:5] = 0
    nibabel.save(mask, folder / "mask.nii.gz")
    return {**found, "fixed_mask": str(folder / "mask.nii.gz")}


def turned(size: int) -> np.ndarray:
    """Voxels of the turned array to voxels of the one before."""
    way = np.eye(4)
    way[:2, :2], way[:2, 3] = [[0, -1], [1, 0]], [size - 1, 4]
    return way


def weights(bundle: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """Options of a tiny network of a bundle, with weights that move something."""
    config = json.loads((bundle / "configs" / "inference.json").read_text())["network_def"]
    options = {**tiny(bundle), **changes}
    arguments = {name.removeprefix("network_def#"): value for name, value in options.items()}
    torch.manual_seed(1)
    network_class: Any = locate(config["_target_"])
    network = network_class(**arguments)
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    save_atomically(network.state_dict(), folder / "model.pt")
    return {**options, "ckpt_path": str(folder / "model.pt")}


def in_memory(files: dict[str, str]) -> dict[str, Any]:
    """The same images, of three kinds."""
    made = {name: nibabel.load(path) for name, path in files.items()}
    image = made["moving"]
    made["moving"] = Image(np.asarray(image.dataobj), image.affine).to_metatensor()
    if "fixed_label" in made:
        made["fixed_label"] = Image(np.asarray(made["fixed_label"].dataobj), made["fixed_label"].affine)
    return made


def assert_same_files(result: Result, folder: Path, there: Path) -> None:
    """What Python saves is what the command line has written, byte by byte."""
    (name,) = json.loads((there / "provenance.json").read_text())["pairs"]
    written = {path.name.removeprefix(f"{name}_"): path for path in there.glob(f"{name}_*")}
    saved = {path.name.removeprefix(f"{result.name}_"): path for path in result.save(folder)}
    assert saved.keys() == written.keys() and len(saved) > 7
    for file, path in saved.items():
        if path.suffix == ".h5":
            # These hold the time at which they were written.
            grid = result.registration.fixed
            assert torch.equal(read_transform(path).ddf(grid), read_transform(written[file]).ddf(grid)), file
        elif file not in ("panel.png", "map.pt"):
            assert path.read_bytes() == written[file].read_bytes(), file


def assert_same_record(result: Result, there: Path) -> None:
    (pair,) = json.loads((there / "provenance.json").read_text())["pairs"].values()
    told = json.loads(json.dumps(result.figures))
    for name in ("moving", "fixed", "moving_id", "fixed_id", "network_seconds", "peak_memory_gb", "files"):
        pair.pop(name), told.pop(name, None)
    for record in (pair, told):
        record["affine"].pop("seconds", None)
        record.get("optimisation", {}).pop("seconds", None)
    assert told == {name: value for name, value in pair.items() if not name.startswith("inverse_") or name in told}


def test_a_pair_without_a_network(scans: dict[str, str], tmp_path: Path) -> None:
    run_workflow(ANY, "inference", output_dir=str(tmp_path / "there"), affine=True, **scans, **SHORT)
    before = sorted(path for path in ANY.rglob("*"))
    objects = in_memory(scans)
    result = register(objects.pop("moving"), objects.pop("fixed"), affine=True, **objects, **SHORT)
    assert_same_files(result, tmp_path / "here", tmp_path / "there")
    assert_same_record(result, tmp_path / "there")
    assert sorted(path for path in ANY.rglob("*")) == before, "files were written unasked"
    assert result.figures["dice"]["registered"] > result.figures["dice"]["header"]
    with pytest.raises(InputError, match="exists: choose another folder"):
        result.save(tmp_path / "here", "warped")


def test_a_network_stays_in_memory(scans: dict[str, str], tmp_path: Path) -> None:
    bundle = ROOT / "bundles" / "eoir_oasis"
    options: dict[str, Any] = {"supervised": False, "spacing": [1.5, 1.5, 1.5]}
    options |= weights(bundle, tmp_path, **{"network_def#variant": "plain", "network_def#int_steps": 7})
    images = {name: scans[name] for name in ("moving", "fixed", "moving_label")}
    run_workflow(bundle, "inference", output_dir=str(tmp_path / "there"), **images, **options)
    loaded = load_bundle("eoir_oasis", device="cpu", **options)
    network = loaded.network
    assert loaded.device.type == "cpu" and loaded.version and not network.training
    for _ in range(2):
        objects = in_memory(images)
        result = loaded.register(objects["moving"], objects["fixed"], moving_label=objects["moving_label"])
        assert loaded.network is network
    assert_same_files(result, tmp_path / "here", tmp_path / "there")
    other = loaded.register(scans["moving"], scans["fixed"], spacing=None)
    assert loaded.network is network and not np.array_equal(other.warped.array, result.warped.array)
    with pytest.raises(InputError, match="variant is 'none'"):
        loaded.register(scans["moving"], scans["fixed"], **{"network_def#variant": "none"})
    again = loaded.register(scans["moving"], scans["fixed"])
    np.testing.assert_array_equal(again.warped.array, result.warped.array)


def test_images_of_two_dimensions_and_maps_as_functions(tmp_path: Path) -> None:
    bundle = ROOT / "bundles" / "nephi_shapes2d"
    folder = generate_shapes3d(tmp_path / "flat", num_subjects=4, size=(24, 24), validation=0, test=2, progress=False)
    moving, fixed = (str(path) for path in sorted(folder.glob("imagesTr/*"))[:2])
    options = weights(bundle, tmp_path, **{"network_def#spatial_dims": 2, "network_def#size": [24, 24]})
    options |= {"spatial_size": [24, 24], "spacing": None}
    run_workflow(bundle, "inference", output_dir=str(tmp_path / "there"), moving=moving, fixed=fixed, **options)
    result = load_bundle("nephi_shapes2d", **options).register(nibabel.load(moving), nibabel.load(fixed))
    assert_same_files(result, tmp_path / "here", tmp_path / "there")
    assert result.warped.array.shape == (24, 24) and result.transform.ddf.shape == (1, 2, 24, 24)
    points = np.array([[3.5, 4.25], [-2.0, 1.0]])
    (file,) = (tmp_path / "there").glob("*_map.pt")
    there = read_map(file).points(torch.tensor([[*point, 0.0] for point in points]))[:, :2]
    assert result.map is not None
    np.testing.assert_array_equal(result.map.apply_points(points), there)
    assert np.abs(there - points).max() > 1e-3
    np.testing.assert_allclose(result.map.inverse().inverse().apply_points(points), there)


@pytest.fixture(scope="module")
def result(scans: dict[str, str]) -> Result:
    return register(scans["moving"], scans["fixed"], moving_label=scans["moving_label"], **SHORT)


def test_transforms_are_applied_as_files_are(result: Result, scans: dict[str, str], tmp_path: Path) -> None:
    assert result.warped_label is not None and result.inverse is not None
    label = result.transform.apply(nibabel.load(scans["moving_label"]), mode="nearest")
    np.testing.assert_array_equal(label.array, result.warped_label.array)
    assert label.array.dtype == np.asarray(nibabel.load(scans["moving_label"]).dataobj).dtype
    # The whole map and its parts are rounded otherwise.
    np.testing.assert_allclose(result.transform.apply(scans["moving"]).array, result.warped.array, atol=1e-5)
    chain = Chain([str(result.transform.save(tmp_path / "transform.h5"))], None)
    warp_file(scans["moving"], tmp_path / "warped.nii.gz", chain, scans["fixed"])
    np.testing.assert_allclose(
        # In single precision, of a field that was rounded in its file.
        read_image(tmp_path / "warped.nii.gz")[0],
        result.transform.apply(scans["moving"]).array,
        atol=1e-4,
    )
    back = result.inverse.apply(result.warped)
    assert back.array.shape == nibabel.load(scans["moving"]).shape
    points = np.array([[14.0, 12.0, 15.0], [17.0, 18.0, 13.0]])
    there = result.transform.apply_points(points)
    assert np.abs(there - points).max() > 0.05
    # Millimetres: exact at voxels, linear between them.
    np.testing.assert_allclose(result.transform.inverse().apply_points(there), points, atol=0.1)
    with pytest.raises(InputError, match="exists"):
        result.transform.save(tmp_path / "transform.h5")
    field = read_transform(result.transform.save(tmp_path / "displacement.nii.gz"))
    # Millimetres: the field is sampled at voxels.
    np.testing.assert_allclose(field.points(torch.from_numpy(points)), there, atol=1e-3)


def test_landmarks_in_memory_are_those_of_a_table(scans: dict[str, str], tmp_path: Path) -> None:
    fixed = np.array([[10.0, 12, 14], [16, 15, 9], [20, 21, 12], [13, 18, 20]])
    # The same places of the moving scan in voxels: its array was turned.
    moving = np.stack([fixed[:, 1] - 4, 31 - fixed[:, 0], fixed[:, 2]], 1)
    points = {"moving_landmarks": moving, "fixed_landmarks": fixed}
    files = {name: tmp_path / f"{name}.csv" for name in points}
    for name, path in files.items():
        np.savetxt(path, points[name], delimiter=",")
    options = {**SHORT, "landmark_weight": 0.1}
    there, here = (register(scans["moving"], scans["fixed"], **known, **options) for known in (files, points))
    assert here.figures["landmark_distance_mm"] == there.figures["landmark_distance_mm"]
    assert here.figures["landmark_distance_mm"]["header"] < 1e-4 and here.figures["landmarks"] == 4
    np.testing.assert_array_equal(here.warped.array, there.warped.array)
    for wrong, words in ((moving[:, :2], "has 2 coordinates per point"), ([1, 2, 3], "finite numbers")):
        with pytest.raises(InputError, match=words):
            register(scans["moving"], scans["fixed"], moving_landmarks=wrong, fixed_landmarks=fixed, **options)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "option": ({"affin": True}, "There is no option --affin. Did you mean 'affine'"),
    "nested option": ({"network_def#x": 1}, "There is no option --network_def#x"),
    "value": ({"io_steps": -1}, "--io_steps is -1; give the number of steps"),
    "text of a switch": ({"affine": "false"}, "--affine is 'false'; give true or false"),
    "missing file": ({"moving": "nowhere.nii.gz"}, "The moving image nowhere.nii.gz does not exist"),
    "array": ({"fixed": np.zeros((3, 4, 5))}, "The fixed image is a ndarray without a place in the world"),
    "constant": ({"fixed": Image(np.zeros((8, 8, 8)), np.eye(4), "fixed")}, "The image fixed is constant"),
    "apart": ({"fixed": Image(np.eye(8)[None] * np.ones((8, 1, 1)), np.diag([1, 1, 1, 1]) + 900 * np.eye(4, k=3), "b")},
              "do not overlap"),
    "one label": ({"moving_label": "fixed_label", "label_weight": 1.0}, "--moving_label was given without"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_the_command_line_refuses(case: str, scans: dict[str, str]) -> None:
    changes, words = BAD[case]
    changes = {name: scans.get(value, value) if isinstance(value, str) else value for name, value in changes.items()}
    with pytest.raises(InputError) as error:
        register(**{"moving": scans["moving"], "fixed": scans["fixed"], **SHORT, **changes})
    assert words in str(error.value) and "\n" not in str(error.value)


def test_missing_weights_are_named_when_a_bundle_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none.pt"):
        load_bundle("eoir_oasis", ckpt_path=tmp_path / "none.pt")


def test_the_process_is_left_alone(scans: dict[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    searched, excepthook = [*sys.path], sys.excepthook
    capfd.readouterr()
    register(scans["moving"], scans["fixed"], io_steps=0)
    assert (sys.path, sys.excepthook) == (searched, excepthook) and capfd.readouterr() == ("", "")
