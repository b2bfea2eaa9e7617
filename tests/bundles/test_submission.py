# SPDX-License-Identifier: Apache-2.0
"""Submissions to LUMIR and OASIS, from the command line and through the configurations."""

from __future__ import annotations

import json
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from scipy.ndimage import gaussian_filter

from common.checks import InputError
from common.engine import save_atomically
from common.io.learn2reg import to_half_resolution
from common.networks import EOIR

from .conftest import ROOT

Command = Callable[..., subprocess.CompletedProcess[str]]
LUMIR, OASIS = (ROOT / "bundles" / name for name in ("eoir_lumir", "eoir_oasis"))
SHAPE = (32, 36, 34)
NAMES = ["disp_3455_3454.nii.gz", "disp_3456_3455.nii.gz"]


def brain(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2)
    return ((noise - noise.min()) / np.ptp(noise) * 255).round().astype(np.uint8)


def image(folder: Path, number: int, values: np.ndarray | None = None) -> Path:
    path = folder / "imagesVal" / f"LUMIRMRI_{number}_0000.nii.gz"
    path.parent.mkdir(exist_ok=True)
    # Headers of the release differ in nothing that counts; the challenge does not look at them.
    affine = np.diag([1, 1, 1 + number % 2, 1])
    nibabel.save(nibabel.Nifti1Image(brain(number) if values is None else values, affine), path)
    return path


def listed(fixed: str, moving: str) -> dict[str, str]:
    return {"fixed": f"/imagesVal/LUMIRMRI_{fixed}_0000.nii.gz", "moving": f"/imagesVal/LUMIRMRI_{moving}_0000.nii.gz"}


@pytest.fixture
def lumir(tmp_path: Path) -> Path:
    folder = tmp_path / "lumir"
    folder.mkdir()
    for number in (3454, 3455, 3456):
        image(folder, number)
    content = {"training": [], "validation": [listed("3455", "3454"), listed("3456", "3455")]}
    (folder / "LUMIR_dataset.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def network(tmp_path: Path) -> EOIR:
    """With weights large enough for displacements of several voxels; saved as model.pt."""
    torch.manual_seed(0)
    network = EOIR(start_channel=2)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.endswith("flow.weight"):
                weight.normal_(0, 0.1)
    save_atomically(network.state_dict(), tmp_path / "model.pt")
    return network.eval()


def submit(bundle: Path, data: Path, tmp_path: Path, **options: Any) -> Path:
    """Run a submission in this process; returns the folder of the fields."""
    config = {
        "bundle_root": str(bundle),
        "dataset_dir": str(data),
        "output_dir": str(tmp_path / "out"),
        "ckpt_path": str(tmp_path / "model.pt"),
        "network_def#start_channel": 2,
        "image_shape": list(SHAPE),
        "device": torch.device("cpu"),
    }
    path = str(bundle / "configs" / "submission.json")
    workflow = ConfigWorkflow(path, workflow_type="infer", logging_file=False, **{**config, **options})
    workflow.parser.parse()
    workflow.parser.get_parsed_content("submit")
    return Path(workflow.parser.get_parsed_content("fields_dir"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_command_line_submits_to_lumir_and_goes_on_after_an_interruption(
    lumir: Path, network: EOIR, tmp_path: Path, command_line: Command
) -> None:
    options = ["--dataset_dir", str(lumir), "--output_dir", str(tmp_path / "out"), "--image_shape", str(list(SHAPE))]
    options += ["--ckpt_path", str(tmp_path / "model.pt"), "--network_def#start_channel", "2"]
    result = command_line("run", "submit", "--config_file", "configs/submission.json", *options, cwd=LUMIR)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.splitlines()[-1].startswith("Submission complete: 2 fields")
    fields = tmp_path / "out" / "fields"
    assert names(fields) == NAMES
    kept = (fields / NAMES[0]).stat().st_mtime_ns
    (fields / NAMES[1]).unlink()
    run = ["run", "--config_file", f"bundles/{LUMIR.name}/configs/submission.json"]
    result = command_line(*run, *options, "--bundle_root", f"bundles/{LUMIR.name}", cwd=ROOT)
    assert result.returncode == 0, result.stderr[-3000:]
    assert names(fields) == NAMES and (fields / NAMES[0]).stat().st_mtime_ns == kept


def test_fields_of_lumir_are_those_of_the_network(lumir: Path, network: EOIR, tmp_path: Path) -> None:
    fields = submit(LUMIR, lumir, tmp_path)
    assert names(fields) == NAMES
    pair = [torch.from_numpy(brain(number).astype(np.float32) / 255) for number in (3454, 3455)]
    with torch.no_grad():
        expected = network(torch.stack(pair)[None])[0].movedim(0, -1).numpy()
    assert np.abs(expected).max() > 0.5
    # Voxels; the loader's intensities are scaled in another order of float32 operations.
    np.testing.assert_allclose(np.asarray(nibabel.load(fields / NAMES[0]).dataobj), expected, atol=1e-4)


def test_finished_submission_runs_no_network(
    lumir: Path, network: EOIR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(LUMIR, lumir, tmp_path)
    monkeypatch.setattr(EOIR, "forward", None)
    submit(LUMIR, lumir, tmp_path, archive=str(tmp_path / "lumir.zip"))
    assert "Submission complete: 2 fields" in capsys.readouterr().out and (tmp_path / "lumir.zip").is_file()


@pytest.mark.parametrize(("naming", "expected"), [("short", "disp_{}_{}.npz"), ("long", "disp_{}_0000_{}_0000.npz")])
def test_oasis_fields_of_the_nifti_release(naming: str, expected: str, tmp_path: Path, network: EOIR) -> None:
    folder = tmp_path / "oasis"
    (folder / "imagesTr").mkdir(parents=True)
    entries = []
    for number in ("0395", "0396", "0397"):
        name = f"imagesTr/OASIS_{number}_0000.nii.gz"
        nibabel.save(nibabel.Nifti1Image(brain(int(number)).astype(np.float32) / 255, np.eye(4)), folder / name)
        entries.append({"image": f"./{name}"})
    (folder / "OASIS_dataset.json").write_text(json.dumps({"training": entries}))
    fields = submit(OASIS, folder, tmp_path, supervised=False, naming=naming)
    assert fields.name == "task_03"
    assert names(fields) == [expected.format("0395", "0396"), expected.format("0396", "0397")]
    pair = [torch.from_numpy(brain(number).astype(np.float32) / 255) for number in (396, 395)]
    with torch.no_grad():
        half = to_half_resolution(network(torch.stack(pair)[None])[0].numpy())
    with np.load(fields / expected.format("0395", "0396")) as file:
        assert file["arr_0"].dtype == np.float16 and file["arr_0"].shape == (3, 16, 18, 17)
        # One step of float16 between 4 and 8 voxels.
        np.testing.assert_allclose(file["arr_0"].astype(np.float32), half.astype(np.float32), atol=4e-3)


def test_oasis_fields_of_the_pickles_keep_their_axis_order(
    tmp_path: Path, network: EOIR, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "pickles"
    folder.mkdir()
    shape = (SHAPE[0], SHAPE[2], SHAPE[1])
    images = [brain(seed, shape).astype(np.float32) / 255 for seed in (1, 2)]
    with open(folder / "p_0395_0396.pkl", "wb") as file:
        pickle.dump((*images, *[np.zeros(shape, np.uint16)] * 2), file)
    fields = submit(OASIS, folder, tmp_path, supervised=False, image_shape=[list(SHAPE), list(shape)])
    assert names(fields) == ["disp_0395_0396.npz"]
    with np.load(fields / "disp_0395_0396.npz") as content:
        assert content["arr_0"].shape == (3, 16, 17, 18)
    assert "not in the axis order" in caplog.text


def with_nan(values: np.ndarray) -> np.ndarray:
    spoiled = values.astype(np.float32)
    spoiled[3, 3, 3] = np.nan
    return spoiled


SPOILED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "absolute path": (lambda f: rewrite_list(f, "/etc/passwd"), "leaves the data folder"),
    "path out of the folder": (lambda f: rewrite_list(f, "../LUMIRMRI_3454_0000.nii.gz"), "leaves the data folder"),
    "missing file": (lambda f: rewrite_list(f, listed("9999", "3454")["fixed"]), "LUMIRMRI_9999_0000.nii.gz"),
    "wrong shape": (lambda f: image(f, 3456, brain(0, (32, 36, 30))), "LUMIRMRI_3456_0000.nii.gz has the shape"),
    "label map": (lambda f: image(f, 3456, (brain(0) > 128).astype(np.uint8)), "3456_0000.nii.gz is a label map"),
    "constant": (lambda f: image(f, 3456, np.full(SHAPE, 7, np.uint8)), "constant"),
    "NaN": (lambda f: image(f, 3456, with_nan(brain(0))), "NaN"),
    "damaged": (lambda f: image(f, 3456).write_bytes(b"no image"), "LUMIRMRI_3456_0000.nii.gz"),
}


def rewrite_list(folder: Path, fixed: str) -> None:
    content = {"training": [], "validation": [listed("3455", "3454"), {**listed("3456", "3455"), "fixed": fixed}]}
    (folder / "LUMIR_dataset.json").write_text(json.dumps(content))


@pytest.mark.parametrize("spoil", SPOILED)
def test_bad_input_is_named_before_any_field_is_written(spoil: str, lumir: Path, network: EOIR, tmp_path: Path) -> None:
    change, message = SPOILED[spoil]
    change(lumir)
    with pytest.raises((InputError, RuntimeError)) as error:
        submit(LUMIR, lumir, tmp_path)
    sentences = []
    cause: BaseException | None = error.value
    while cause is not None:
        sentences.append(str(cause))
        cause = cause.__cause__
    assert any(message in sentence for sentence in sentences)
    assert names(tmp_path / "out") == []


def test_bad_image_is_one_line_at_the_command_line(
    lumir: Path, network: EOIR, tmp_path: Path, command_line: Command
) -> None:
    image(lumir, 3456, (brain(0) > 128).astype(np.uint8))
    options = ["--dataset_dir", str(lumir), "--output_dir", str(tmp_path / "out"), "--image_shape", str(list(SHAPE))]
    options += ["--ckpt_path", str(tmp_path / "model.pt"), "--network_def#start_channel", "2"]
    result = command_line("run", "submit", "--config_file", "configs/submission.json", *options, cwd=LUMIR)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert [line for line in result.stderr.splitlines() if line.startswith("ERROR:")][0].count("label map") == 1
    assert names(tmp_path / "out") == []


@pytest.mark.parametrize("bundle", [LUMIR, OASIS], ids=lambda path: path.name)
def test_submission_means_the_network_of_the_bundle(bundle: Path) -> None:
    configs = [json.loads((bundle / "configs" / f"{name}.json").read_text()) for name in ("inference", "submission")]
    assert configs[0]["network_def"] == configs[1]["network_def"]
