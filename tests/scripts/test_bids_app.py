# SPDX-License-Identifier: Apache-2.0
"""The BIDS app on phantoms: names, sidecars, what goes on and what is refused, with a bundle that takes no time."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from common.checks import InputError
from common.io.apply import Chain, warp_file
from common.io.nifti import read_grid
from scripts import bids_app

from .conftest import oblique_affine

SHAPE = (6, 7, 5)
TEMPLATE = "tpl-Toy_res-1_T1w.nii.gz"
LABELS = "tpl-Toy_res-1_atlas-Two_desc-x_dseg.nii.gz"
ANAT = "sub-01_from-T1w_to-Toy_mode-image_xfm", "sub-01_from-Toy_to-T1w_mode-image_xfm"
WARPED = "sub-01_space-Toy_desc-preproc_T1w"
DSEG = "sub-01_desc-Twox_dseg"


def save(path: Path, values: np.ndarray | None = None, at: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).random(SHAPE, np.float32) if values is None else values
    nibabel.save(nibabel.Nifti1Image(values, np.diag([1.0, 1, 1, 1]) + np.eye(4, k=3) * at), path)
    return path


class ToyFile:
    """An image or a transform of the interface for Python."""

    def __init__(self, at: float) -> None:
        self.at = at

    def save(self, path: Path, overwrite: bool = False) -> Path:
        assert overwrite or not path.exists()
        if path.suffix == ".gz":
            return save(path, at=self.at)
        path.write_text("transform")
        return path

    def apply(self, image: Path, reference: Path, mode: str) -> ToyFile:
        assert mode == "nearest" and image.name == LABELS and "_T1w" in reference.name
        return ToyFile(nibabel.load(reference).affine[0, 3])


class ToyResult:
    def __init__(self, moving: Path, fixed: Path, folds: bool) -> None:
        self.warped, self.transform = ToyFile(nibabel.load(fixed).affine[0, 3]), ToyFile(0)
        self.inverse = None if folds else ToyFile(0)
        self.figures = {"folded_percent": 0.25, "largest_displacement_voxels": 3.0}
        self.registration = self

    def inverse_figures(self) -> dict[str, float]:
        return {"inverse_residual_voxels": 0.01}

    def save(self, folder: str, outputs: str) -> None:
        (Path(folder) / f"a_to_b_{outputs}.png").write_bytes(b"picture")


class ToyBundle:
    """Registers what can be read; a participant called bad cannot, and the field of one called fold folds."""

    name, version = "toy", "1"

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder, self.options = folder, options
        self.seen: list[str] = []

    def register(self, moving: Path, fixed: Path) -> ToyResult:
        self.seen.append(moving.name)
        if "bad" in moving.name:
            raise InputError(f"{moving} is empty.")
        if "bug" in moving.name:
            raise ZeroDivisionError("of ours")
        return ToyResult(moving, fixed, "fold" in moving.name)


class App:
    """A data set with two participants, a template, and the app."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bids, self.out, self.tpl = folder / "bids", folder / "out", folder / "tpl"
        self.bundle = ToyBundle(folder)
        save(self.tpl / TEMPLATE, at=3)
        save(self.tpl / LABELS, np.arange(210, dtype=np.int16).reshape(SHAPE) % 3)
        self.bids.mkdir()
        (self.bids / "dataset_description.json").write_text(
            '{"Name": "Toys", "BIDSVersion": "1.10.0", "License": "CC0"}'
        )
        for name in ("01", "02"):
            self.add(name)

        def load(source: str, *, trust: bool, **options: Any) -> ToyBundle:
            self.bundle.options = options
            return self.bundle

        monkeypatch.setattr(bids_app, "load_bundle", load)

    def add(self, participant: str, session: str = "", at: float = 5.0, ending: str = ".nii.gz") -> Path:
        folder = self.bids / f"sub-{participant}" / (f"ses-{session}" if session else "") / "anat"
        name = f"sub-{participant}{f'_ses-{session}' if session else ''}_T1w{ending}"
        return save(folder / name, at=at)

    def run(self, *words: str, labels: bool = False) -> None:
        more = ["--template-labels", str(self.tpl / LABELS)] if labels else []
        template = ["--template", str(self.tpl / TEMPLATE)]
        bids_app.main([str(self.bids), str(self.out), "participant", *template, *more, *words])

    def files(self, pattern: str = "*") -> list[str]:
        return sorted(path.relative_to(self.out).as_posix() for path in self.out.rglob(pattern) if path.is_file())

    def load(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.out / name).read_text())
        return content


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    return App(tmp_path, monkeypatch)


def test_files_have_the_names_of_fmriprep(app: App) -> None:
    app.run("--participant-label", "sub-01", labels=True)
    sides = [f"sub-01/anat/{name}{end}" for name in ANAT for end in (".h5", ".json")]
    images = [f"sub-01/anat/{name}{end}" for name in (WARPED, DSEG) for end in (".nii.gz", ".json")]
    others = [
        *(".bidsignore", "README.md", "dataset_description.json", "desc-Twox_dseg.tsv"),
        *(
            "logs/sub-01_from-T1w_to-Toy_registration.json",
            f"sub-01/figures/{WARPED.replace('preproc', 'registration')}.png",
        ),
    ]
    assert app.files() == sorted([*sides, *images, *others])
    assert nibabel.load(app.out / "sub-01" / "anat" / f"{WARPED}.nii.gz").affine[0, 3] == 3
    assert nibabel.load(app.out / "sub-01" / "anat" / f"{DSEG}.nii.gz").affine[0, 3] == 5
    assert (app.out / "desc-Twox_dseg.tsv").read_text() == "index\tname\n1\t1\n2\t2\n"


def test_sidecars_name_sources_as_uris(app: App) -> None:
    (app.bids / "T1w.json").write_text('{"SkullStripped": true}')
    app.run("--participant-label", "01", labels=True)
    image, template = "bids:raw:sub-01/anat/sub-01_T1w.nii.gz", f"bids:tpl-Toy:{TEMPLATE}"
    warped = app.load(f"sub-01/anat/{WARPED}.json")
    assert warped["SpatialReference"] == template and warped["SkullStripped"] is True
    assert warped["Sources"] == [image, template, f"bids::sub-01/anat/{ANAT[0]}.h5"]
    labels = app.load(f"sub-01/anat/{DSEG}.json")
    assert labels["SpatialReference"] == image and labels["Sources"] == [
        image, f"bids:tpl-Toy:{LABELS}", f"bids::sub-01/anat/{ANAT[1]}.h5"
    ]  # fmt: skip
    description = app.load("dataset_description.json")
    links = {"raw": app.bids.as_uri(), "tpl-Toy": app.tpl.as_uri()}
    assert description["DatasetType"] == "derivative" and description["DatasetLinks"] == links
    assert description["SourceDatasets"] == [{"URL": links["raw"]}] and description["License"] == "CC0"


def test_results_within_the_data_set_link_to_it_relatively(app: App) -> None:
    app.out = app.bids / "derivatives" / "registration"
    app.run("--participant-label", "01")
    assert app.load("dataset_description.json")["DatasetLinks"]["raw"] == "../.."


def test_sessions_and_runs_stay_in_the_names(app: App) -> None:
    app.add("03", "a")
    app.add("03", "b")
    app.run("--participant-label", "03", "--session-label", "ses-b")
    assert app.bundle.seen == ["sub-03_ses-b_T1w.nii.gz"]
    assert "sub-03/ses-b/anat/sub-03_ses-b_space-Toy_desc-preproc_T1w.nii.gz" in app.files()


def test_options_reach_the_bundle_as_values(app: App) -> None:
    app.run(
        "--options",
        "--spacing [2,2,2] --network_def#start_channel 8 --supervised false --ckpt_path a.pt",
        "--participant-label",
        "01",
    )
    assert app.bundle.options == {
        "affine": True, "spacing": [2, 2, 2], "network_def#start_channel": 8, "supervised": False, "ckpt_path": "a.pt"
    }  # fmt: skip
    with pytest.raises(InputError, match="options of the bundle are --name value"):
        app.run("--options", "spacing 2", "--participant-label", "02")


def test_a_second_run_makes_what_is_missing_and_touches_nothing_else(app: App) -> None:
    app.run("--participant-label", "01")
    (app.out / "sub-01" / "anat" / f"{ANAT[1]}.h5").unlink()
    others = {name: (app.out / name).stat().st_mtime_ns for name in app.files("*.nii.gz") + app.files("*.png")}
    app.bundle.seen.clear()
    app.run()
    assert app.bundle.seen == ["sub-01_T1w.nii.gz", "sub-02_T1w.nii.gz"] and f"sub-01/anat/{ANAT[1]}.h5" in app.files()
    assert {name: (app.out / name).stat().st_mtime_ns for name in others} == others
    app.bundle.seen.clear()
    app.run()
    assert app.bundle.seen == []
    app.run("--overwrite", "--participant-label", "02")
    assert app.bundle.seen == ["sub-02_T1w.nii.gz"]


def test_other_settings_or_files_of_others_are_refused(app: App, capsys: pytest.CaptureFixture[str]) -> None:
    app.run("--participant-label", "01")
    with pytest.raises(InputError, match="1 failed"):
        app.run("--participant-label", "01", "--options", "--spacing [2,2,2]")
    assert "made with another option spacing" in capsys.readouterr().err
    app.add("01", at=6.0)
    with pytest.raises(InputError, match="1 failed"):
        app.run("--participant-label", "01")
    assert "made with another image" in capsys.readouterr().err
    foreign = save(app.out / "sub-02" / "anat" / "sub-02_space-Toy_desc-preproc_T1w.nii.gz")
    before = foreign.read_bytes()
    with pytest.raises(InputError, match="1 failed"):
        app.run("--participant-label", "02")
    assert "no sub-02_from-T1w_to-Toy_registration.json says where from" in capsys.readouterr().err
    assert foreign.read_bytes() == before


def test_one_that_fails_does_not_stop_the_others(app: App, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("00bad", "00bug", "00fold"):
        app.add(name)
    (app.bids / "sub-00none" / "anat").mkdir(parents=True)
    save(app.bids / "sub-00none" / "anat" / "sub-00none_T2w.nii.gz")
    with pytest.raises(InputError, match="4 failed, see above"):
        app.run(labels=True)
    said = capsys.readouterr().err
    assert "sub-00bad: " in said and "is empty." in said and "sub-00bug: ZeroDivisionError: of ours" in said
    assert "sub-00fold: the field folds" in said and "its images are: T2w. Choose one of these by --suffix" in said
    assert len(app.files("*_space-Toy_*.nii.gz")) == 3 and len(app.files("*_dseg.nii.gz")) == 2
    app.bundle.seen.clear()
    with pytest.raises(InputError, match="4 failed"):
        app.run(labels=True)
    assert app.bundle.seen == ["sub-00bad_T1w.nii.gz", "sub-00bug_T1w.nii.gz"]


def test_the_table_of_the_group_has_a_row_for_each_scan(app: App) -> None:
    with pytest.raises(InputError, match="no registered T1w images"):
        bids_app.main([str(app.bids), str(app.out), "group"])
    app.run()
    bids_app.main([str(app.bids), str(app.out), "group"])
    header, first, _ = (app.out / "group_T1w.tsv").read_text().splitlines()
    row = dict(zip(header.split("\t"), first.split("\t"), strict=True))
    assert row["scan"] == "sub-01" and row["template"] == "Toy" and row["folded_percent"] == "0.25"
    assert row["inverse"] == "yes" and row["inverse_residual_voxels"] == "0.01" and row["seconds"] != "n/a"
    assert app.load("group_T1w.json").keys() == row.keys()


def test_names_of_labels_come_from_the_table_beside_them(app: App) -> None:
    (app.tpl / "tpl-Toy_dseg.tsv").write_text("index\tname\n9\tfar\n")
    (app.tpl / "tpl-Toy_atlas-Two_desc-x_dseg.tsv").write_text("index\tname\n1\tleft\n2\tright\n")
    app.run("--participant-label", "01", labels=True)
    assert (app.out / "desc-Twox_dseg.tsv").read_text() == "index\tname\n1\tleft\n2\tright\n"
    (app.tpl / "tpl-Toy_atlas-Two_desc-x_dseg.tsv").write_text("label\n1\n")
    with pytest.raises(InputError, match="has no columns index and name"):
        app.run("--participant-label", "01", labels=True)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--participant-label", "9"], "no folder sub-9"),
        (["--participant-label", "01", "--suffix", "FLAIR"], "1 failed"),
        (["--template-name", "a_b"], "is no name for BIDS"),
        (["--template-labels", "a/x-y.nii.gz"], "a/x-y.nii.gz does not exist"),
    ],
)
def test_requests_that_cannot_be_met(app: App, words: Sequence[str], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        app.run(*words)
    assert not app.files("*.h5")


def test_a_folder_of_another_data_set_is_refused(app: App) -> None:
    with pytest.raises(InputError, match="holds the scans"):
        bids_app.main([str(app.bids), str(app.bids), "participant", "--template", str(app.tpl / TEMPLATE)])
    app.out.mkdir()
    (app.out / "dataset_description.json").write_text('{"Name": "x", "GeneratedBy": [{"Name": "fMRIPrep"}]}')
    with pytest.raises(InputError, match="holds another data set"):
        app.run()


def test_the_template_is_needed_for_participants(app: App) -> None:
    with pytest.raises(InputError, match="needs --template"):
        bids_app.main([str(app.bids), str(app.out), "participant"])


def blob(affine: np.ndarray, centre: Sequence[float], shape: tuple[int, int, int]) -> np.ndarray:
    """An ellipsoid in the world with soft edges and a gradient within."""
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    world = voxels @ affine[:3, :3].T + affine[:3, 3] - centre
    values = (2 + world[..., 0] / 20) / (1 + np.exp((np.sqrt((world / (12, 9, 10)) ** 2 @ np.ones(3)) - 1) * 8))
    return np.asarray(values, np.float32)


def test_transforms_lead_where_their_names_say(tmp_path: Path) -> None:
    """By the bundle without a network; the scan lies obliquely and 3 mm beside the template."""
    affines = {"fixed": np.diag([2.0, 2, 2, 1]), "scan": oblique_affine()}
    affines["fixed"][:3, 3] = -20
    affines["scan"][:3, 3] = -affines["scan"][:3, :3] @ (12, 15, 9)
    shapes = {"fixed": (20, 20, 20), "scan": (24, 30, 18)}
    centres = {"fixed": (0.0, 0, 0), "scan": (3.0, 0, 0)}
    image = {name: blob(affines[name], centres[name], shapes[name]) for name in affines}
    paths = {"fixed": tmp_path / "tpl-B_T1w.nii.gz", "scan": tmp_path / "bids" / "sub-1" / "anat" / "sub-1_T1w.nii.gz"}
    label = tmp_path / "tpl-B_atlas-A_dseg.nii.gz"
    for name, path in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(image[name], affines[name]), path)
    nibabel.save(nibabel.Nifti1Image((image["fixed"] > 1).astype(np.uint8), affines["fixed"]), label)
    (tmp_path / "bids" / "dataset_description.json").write_text('{"Name": "b", "BIDSVersion": "1.10.0"}')
    words = [
        "--template",
        str(paths["fixed"]),
        "--template-labels",
        str(label),
        "--options",
        "--affine false --io_steps 20 --levels [2]",
    ]
    bids_app.main([str(tmp_path / "bids"), str(tmp_path / "out"), "participant", *words])

    results = tmp_path / "out" / "sub-1" / "anat"
    warped = results / "sub-1_space-B_desc-preproc_T1w.nii.gz"
    segmented = results / "sub-1_desc-A_dseg.nii.gz"
    ways = (("T1w_to-B", paths["scan"], paths["fixed"], False), ("B_to-T1w", label, paths["scan"], True))
    for (way, moving, reference, is_label), expected in zip(ways, (warped, segmented), strict=True):
        chain = Chain([str(results / f"sub-1_from-{way}_mode-image_xfm.h5")], read_grid(reference))
        warp_file(moving, tmp_path / "again.nii.gz", chain, reference, is_label, None)
        again, written = (np.asarray(nibabel.load(path).dataobj) for path in (tmp_path / "again.nii.gz", expected))
        # In single precision, of a field that was rounded in its file.
        np.testing.assert_allclose(again, written, atol=0 if is_label else 1e-4)
    assert np.abs(np.asarray(nibabel.load(warped).dataobj) - image["fixed"]).mean() < 0.05
    own, brought = image["scan"] > 1, np.asarray(nibabel.load(segmented).dataobj) == 1
    assert 2 * (own & brought).sum() / (own.sum() + brought.sum()) > 0.9


@pytest.mark.skipif(
    shutil.which("bids-validator-deno") is None,
    reason="wants the validator on the PATH: pip install bids-validator-deno==3.0.2 in an environment of its own",
)
def test_the_validator_finds_no_error(app: App) -> None:
    app.add("03", "a")
    app.run(labels=True)
    bids_app.main([str(app.bids), str(app.out), "group"])
    found = subprocess.run(["bids-validator-deno", "--format", "json", app.out], capture_output=True, check=False)
    issues = json.loads(found.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []
