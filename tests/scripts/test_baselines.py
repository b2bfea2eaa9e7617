# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from common.checks import InputError
from common.cli import run_tool
from common.data.phantom import make_subject, make_template
from common.evaluation.pair_lists import read_pair_list
from common.io import run_record
from common.spatial import warp
from scripts import baseline_pair, baselines
from scripts.classical import METHODS

from .conftest import SPACING, oblique_affine

SIZE = (24, 28, 20)
CLASSICAL = [name for name in METHODS if name != "zero"]
NAME = "b_to_a_ddf.nii.gz"


@pytest.fixture(scope="module")
def scans() -> list[np.ndarray]:
    template = make_template(SIZE, 6, seed=1)
    return [make_subject(template, 1, number).image.astype(np.float32) for number in (1, 2, 3)]


@pytest.fixture
def data(tmp_path: Path, scans: list[np.ndarray]) -> Path:
    """Images a, b, c, a list of three pairs beside them, and a data list of the same pairs."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, image in zip("abc", scans, strict=True):
        save(folder / f"{name}.nii.gz", image)
    (folder / "pairs.csv").write_text("fixed,moving\na.nii.gz,b.nii.gz\nb.nii.gz,a.nii.gz\na.nii.gz,c.nii.gz\n")
    pairs = [{"fixed": f"./{fixed}.nii.gz", "moving": f"./{moving}.nii.gz"} for fixed, moving in ("ab", "ba", "ac")]
    (folder / "dataset.json").write_text(json.dumps({"training": [], "registration_val": pairs}))
    return folder


def save(path: Path, image: np.ndarray, affine: np.ndarray | None = None) -> None:
    nibabel.save(nibabel.Nifti1Image(image, oblique_affine() if affine is None else affine), path)


def run(data: Path, *options: str, method: str = "zero") -> Path:
    output = data.parent / "fields"
    baselines.main([method, "--pairs", str(data / "pairs.csv"), "--output", str(output), "--threads", "1", *options])
    return output


def record(output: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((output / "baselines.json").read_text())
    return content


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Registration without a process of its own; returns the list of (moving, fixed) that were registered."""
    done: list[tuple[str, str]] = []

    def register(
        moving: baseline_pair.LoadedScan, fixed: baseline_pair.LoadedScan, settings: dict[str, Any], python: str
    ) -> Any:
        done.append((moving.subject["id"], fixed.subject["id"]))
        cost = {"seconds": 1.5, "cpu_seconds": 2.5, "peak_memory_mb": 40.0}
        return torch.zeros(3, *fixed.image.shape), moving.image, cost

    monkeypatch.setattr(baseline_pair, "register", register)
    return done


def test_zero_writes_fields_on_the_grid_of_the_fixed_image_and_what_they_cost(data: Path) -> None:
    output = run(data)
    file = nibabel.load(output / NAME)
    assert file.shape == (*SIZE, 3) and not file.get_fdata().any()
    np.testing.assert_allclose(file.affine, oblique_affine(), atol=1e-5)
    found = record(output)
    assert [(case["moving_id"], case["fixed_id"]) for case in found["cases"]] == [("b", "a"), ("a", "b"), ("c", "a")]
    assert all(case["seconds"] >= 0 and case["peak_memory_mb"] > 1 for case in found["cases"])
    assert all(case["max_difference"] < 1e-6 for case in found["cases"])
    assert found["settings"]["method"] == "zero" and found["settings"]["threads"] == 1 and found["versions"]


def test_pair_list_of_the_result_carries_field_and_costs(data: Path, in_process: list[Any]) -> None:
    output = run(data)
    first = read_pair_list(output / "pairs.csv").pairs[0]
    assert (first.moving, first.fixed, first.field) == ("b", "a", NAME)
    assert dict(first.costs) == {"seconds": 1.5, "cpu_seconds": 2.5, "peak_memory_gb": 0.04}


def test_pairs_of_a_data_set_are_those_it_lists(data: Path, in_process: list[Any]) -> None:
    output = data.parent / "fields"
    baselines.main(["zero", "--dataset_dir", str(data), "--output", str(output)])
    assert in_process == [("b", "a"), ("a", "b"), ("c", "a")]


def test_folder_of_images_belongs_to_a_pair_list(data: Path) -> None:
    with pytest.raises(InputError, match="--images belongs to --pairs"):
        baselines.main(["zero", "--dataset_dir", str(data), "--images", str(data), "--output", str(data / "out")])


def test_images_are_found_in_a_folder_by_their_ids(data: Path, in_process: list[Any]) -> None:
    (data / "pairs.csv").write_text("fixed,moving\na,b\n")
    with pytest.raises(InputError, match=r"image b of the pair list .* give the folder of the images with --images"):
        run(data)
    run(data, "--images", str(data))
    assert in_process == [("b", "a")]


def test_finished_pairs_are_left_out_by_the_next_run(data: Path, in_process: list[Any]) -> None:
    output = run(data)
    (output / NAME).unlink()
    in_process.clear()
    run(data)
    assert in_process == [("b", "a")] and (output / NAME).is_file()
    assert len(record(output)["cases"]) == 3


def test_interrupted_run_keeps_its_finished_pairs(
    data: Path, in_process: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    register = baseline_pair.register

    def interrupted(*arguments: Any) -> Any:
        if in_process:
            raise KeyboardInterrupt
        return register(*arguments)

    monkeypatch.setattr(baseline_pair, "register", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(data)
    monkeypatch.setattr(baseline_pair, "register", register)
    in_process.clear()
    run(data)
    assert in_process == [("a", "b"), ("c", "a")]


def test_folder_of_other_settings_is_refused_unless_it_may_be_overwritten(data: Path, in_process: list[Any]) -> None:
    output = run(data)
    with pytest.raises(InputError, match="made with another threads: choose another --output"):
        run(data, "--threads", "2")
    (data / "pairs.csv").write_text("fixed,moving\na.nii.gz,b.nii.gz\n")
    run(data, "--threads", "2", "--overwrite")
    assert [path.name for path in output.glob("*_ddf.nii.gz")] == [NAME]
    assert record(output)["settings"]["threads"] == 2 and len(record(output)["cases"]) == 1


def test_fields_of_another_tool_are_not_replaced(data: Path, in_process: list[Any]) -> None:
    (data.parent / "fields").mkdir()
    (data.parent / "fields" / NAME).write_text("precious")
    with pytest.raises(InputError, match=f"{NAME} exists, and no baselines.json says where from"):
        run(data)
    assert (data.parent / "fields" / NAME).read_text() == "precious"


def test_changed_image_is_noticed(data: Path, scans: list[np.ndarray], in_process: list[Any]) -> None:
    run(data)
    save(data / "b.nii.gz", scans[2])
    with pytest.raises(InputError, match="another image of b_to_a_ddf.nii.gz"):
        run(data)


@pytest.mark.parametrize("name", CLASSICAL)
def test_absent_package_is_one_line_before_anything_is_written(
    name: str, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1))
    with pytest.raises(SystemExit) as ended:
        run_tool(lambda: void(run(data, method=name)))
    wanted = f"ERROR: {name} needs the package {METHODS[name].package}: pip install -r {METHODS[name].requirements} "
    assert ended.value.code == 1 and capsys.readouterr().err.startswith(wanted)
    assert not (data.parent / "fields").exists()


def void(_: object) -> None:
    """Swallow a result."""


@pytest.mark.parametrize(
    ("package", "module", "version"), [("numpy", "numpy", np.__version__), ("numpy", "numpy.none", None)]
)
def test_interpreter_is_asked_for_the_package_and_its_modules(
    package: str, module: str, version: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "zero", replace(METHODS["zero"], package=package, modules=(module,)))
    if version:
        assert baselines.check_installed("zero", sys.executable) == version
    else:
        with pytest.raises(InputError, match="zero needs the package numpy"):
            baselines.check_installed("zero", sys.executable)


def test_interpreter_that_is_named_runs_the_method_and_one_that_does_not_start_is_refused(data: Path) -> None:
    wrapper = data / "python"
    wrapper.write_text(f'#!/bin/sh\necho "$@" >> {data}/calls\nexec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    (data / "pairs.csv").write_text("fixed,moving\na.nii.gz,b.nii.gz\n")
    run(data, "--python", str(wrapper))
    assert "baseline_worker.py zero" in (data / "calls").read_text()
    with pytest.raises(InputError, match="--python nowhere does not start"):
        baselines.check_installed("demons", "nowhere")


def test_requirements_name_the_packages_that_the_methods_need() -> None:
    for name, method in METHODS.items():
        lines = (baselines.ROOT / method.requirements).read_text().splitlines()
        pinned = {line.partition("==")[0] for line in lines if not line.startswith("#")}
        assert method.package is None or method.package in pinned, name


def test_smoothing_is_an_option_of_greedy_only(data: Path) -> None:
    with pytest.raises(InputError, match="option of greedy, zero has none"):
        run(data, "--smoothing", "published")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image: (image[:-1], oblique_affine()), "have the shapes"),
        (lambda image: (image, oblique_affine(flip=False)), "By their headers .* lie up to .* voxels apart"),
        (lambda image: (image[..., 0], oblique_affine()), "2 spatial dimensions, but 3 are expected"),
        (lambda image: (np.stack([image, image], -1), oblique_affine()), "one image of two or three dimensions"),
        (lambda image: (np.where(image > 0.5, np.nan, image), oblique_affine()), "NaN or infinite"),
    ],
)
def test_image_that_does_not_fit_is_refused_without_leaving_its_field(
    change: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    message: str,
    data: Path,
    scans: list[np.ndarray],
    in_process: list[Any],
) -> None:
    save(data / "b.nii.gz", *change(scans[1]))
    with pytest.raises(InputError, match=message):
        run(data)
    assert not list((data.parent / "fields").glob("*_ddf.nii.gz"))


def test_field_that_the_package_did_not_apply_is_an_error_with_the_name_of_the_pair(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mirrored(moving: baseline_pair.LoadedScan, fixed: baseline_pair.LoadedScan, *_: Any) -> Any:
        ddf = torch.ones(3, *SIZE)
        return -ddf, warp(moving.image[None, None], ddf[None])[0, 0], {}

    monkeypatch.setattr(baseline_pair, "register", mirrored)
    with pytest.raises(InputError, match="field of zero for b to a is not what the package applied"):
        run(data)


def test_field_that_is_not_finite_is_an_error(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        baseline_pair, "register", lambda moving, fixed, *_: (torch.full((3, *SIZE), torch.nan), moving.image, {})
    )
    with pytest.raises(InputError, match="field of zero for b to a has NaN"):
        run(data)


def test_failing_package_is_named_with_its_last_words(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text("print('level 1'); raise SystemExit('not enough memory\\n')")
    monkeypatch.setattr(baseline_pair, "WORKER", worker)
    with pytest.raises(InputError, match=r"zero failed on b to a \(exit status 1\): not enough memory"):
        run(data)


def test_difference_counts_only_where_both_ends_lie_inside() -> None:
    moving = torch.rand(14, 14, 14, generator=torch.Generator().manual_seed(0))
    ddf = torch.zeros(3, 14, 14, 14)
    ddf[0] = 4
    warped = torch.roll(moving, -4, 0)
    warped[:3], warped[7:] = 7, 7
    assert baseline_pair.difference_to_package(moving, ddf, warped) == pytest.approx((0, 0), abs=1e-12)
    warped[4, 6, 6] += 0.5 * (moving.max() - moving.min())
    assert baseline_pair.difference_to_package(moving, ddf, warped)[0] == pytest.approx(0.5, rel=1e-5)


def test_few_slices_are_compared_too() -> None:
    moving = torch.rand(12, 12, 4, generator=torch.Generator().manual_seed(0))
    ddf = torch.zeros(3, 12, 12, 4)
    assert baseline_pair.difference_to_package(moving, ddf, moving.flip(2))[0] > 0.1
    assert np.isnan(baseline_pair.difference_to_package(moving, ddf + 20, moving)).all()


def test_threads_reach_the_package(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def look(command: list[str], env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        seen.update(env, request=json.loads((Path(command[-1]) / "request.json").read_text()))
        return subprocess.CompletedProcess(command, 1, b"seen")

    monkeypatch.setattr(subprocess, "run", look)
    monkeypatch.setattr(run_record, "provenance", dict)
    with pytest.raises(InputError, match="seen"):
        run(data, "--threads", "3")
    assert seen["OMP_NUM_THREADS"] == seen["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] == "3"
    assert seen["request"]["threads"] == 3 and seen["request"]["spacing"] == pytest.approx(SPACING)
