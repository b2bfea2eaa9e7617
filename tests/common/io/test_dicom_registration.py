# SPDX-License-Identifier: Apache-2.0
"""What is written is read with the equation of the standard, and by other programs where they are installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from common.checks import InputError
from common.io.dicom_registration import STORAGE, read_registration, write_registration
from common.io.dicom_series import Series, read_series
from common.io.transforms import Affine, Field, Grid, Transform, read_transform, write_displacement
from tests.dicom_slices import write_series

SHAPE = (7, 6, 5)
TURN = Rotation.from_euler("xyz", (8, -12, 15), degrees=True).as_matrix()
ALIGNMENT = torch.eye(4, dtype=torch.float64)
ALIGNMENT[:3] = torch.tensor([[1.05, 0.1, 0, 3.1], [-0.08, 0.953, 0.05, -2.03], [0, 0.02, 1.1, 4]])


def grid_of(axes: NDArray[np.float64], shape: tuple[int, int, int] = SHAPE) -> Grid:
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = torch.from_numpy(np.array(axes, dtype=np.float64))
    affine[:3, 3] = torch.tensor([31.3, -17.7, 64.1])
    return Grid(shape, affine)


GRIDS = {
    "oblique": grid_of(TURN @ np.diag([1.2, 1.1, 2.0])),
    "LAS": grid_of(np.diag([-1.2, 1.1, 2.0])),
    "oblique LAS": grid_of(TURN @ np.diag([-1.2, 1.1, 2.0])),
    "turned": grid_of(TURN @ np.diag([1.2, 1.1, 2.0])[:, [2, 0, 1]]),
    "one slice": grid_of(TURN @ np.diag([1.2, -1.1, 2.0]), (7, 6, 1)),
}


def noise(grid: Grid) -> Field:
    return Field(grid, torch.randn(1, 3, *grid.shape, generator=torch.Generator().manual_seed(0)))


def voxels(grid: Grid) -> Tensor:
    """Voxel centres in RAS millimetres."""
    indices = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in grid.shape)).view(-1, 3)
    return indices @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def series(folder: Path, number: int, **changes: Any) -> Series:
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    write_series(folder, np.zeros((4, 3, 2), np.uint16), affine, f"1.2.{number}", **changes)
    return read_series(folder)


@pytest.fixture
def fixed(tmp_path: Path) -> Series:
    return series(tmp_path / "fixed", 1)


@pytest.fixture
def moving(tmp_path: Path) -> Series:
    return series(tmp_path / "moving", 2, StudyInstanceUID="1.9", FrameOfReferenceUID="1.9.1", PatientName="Roe^Al")


def by_the_standard(path: Path, voxel: tuple[int, ...]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Where a voxel of the grid lies in the registered frame and where in the source frame, LPS: PS3.3, C.20.3.1.1."""
    item = pydicom.dcmread(path).DeformableRegistrationSequence[0]
    grid = item.DeformableRegistrationGridSequence[0]
    row, column = np.array(grid.ImageOrientationPatient, float).reshape(2, 3)
    steps = np.array([row, column, np.cross(row, column)]) * np.array(grid.GridResolution)[:, None]
    registered = np.array(grid.ImagePositionPatient, float) + np.array(voxel) @ steps
    i, j, k = voxel
    width, height, _ = grid.GridDimensions
    offset = np.frombuffer(grid.VectorGridData, "<f4")[3 * (i + width * (j + height * k)) :][:3]
    before, after = (
        np.array(matrix[0].FrameOfReferenceTransformationMatrix, float).reshape(4, 4)
        for matrix in (item.PreDeformationMatrixRegistrationSequence, item.PostDeformationMatrixRegistrationSequence)
    )
    moved = before[:3, :3] @ registered + before[:3, 3] + offset
    return registered, after[:3, :3] @ moved + after[:3, 3]


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
def test_the_standard_s_equation_gives_the_transform(grid: Grid, fixed: Series, moving: Series, tmp_path: Path) -> None:
    field, path = noise(grid), tmp_path / "reg.dcm"
    write_registration(path, field, ALIGNMENT, fixed.datasets, moving.datasets)
    stored = pydicom.dcmread(path).DeformableRegistrationSequence[0].DeformableRegistrationGridSequence[0]
    assert tuple(stored.GridDimensions) == grid.shape
    flip = np.array([-1.0, -1.0, 1.0])
    last = tuple(n - 1 for n in grid.shape)
    for voxel in ((0, 0, 0), (1, 2, 0), last):
        registered, source = by_the_standard(path, voxel)
        # The voxel that lies there, whatever the order in the file.
        place = torch.linalg.inv(grid.affine) @ torch.tensor([*(registered * flip), 1.0])
        i, j, k = (round(n) for n in place[:3].tolist())
        torch.testing.assert_close(place[:3], torch.tensor([i, j, k]).double(), rtol=0, atol=1e-7)
        moved = Affine(grid.affine).points((torch.tensor([i, j, k]) + field.ddf[0, :, i, j, k]).double())
        expected = Affine(ALIGNMENT).points(moved)
        # Vectors are stored as float32, in millimetres.
        np.testing.assert_allclose(source * flip, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
def test_it_is_read_as_it_was_written(grid: Grid, fixed: Series, moving: Series, tmp_path: Path) -> None:
    field = noise(grid)
    write_registration(tmp_path / "reg.dcm", field, ALIGNMENT, fixed.datasets, moving.datasets)
    found = read_transform(tmp_path / "reg.dcm")
    expected = Transform((field, Affine(ALIGNMENT))).points(voxels(grid))
    # As above.
    torch.testing.assert_close(found.points(voxels(grid)), expected, rtol=0, atol=1e-5)


def test_a_sheared_grid_is_resampled(fixed: Series, moving: Series, tmp_path: Path) -> None:
    shear = np.array([[1.0, 0, 0], [0, 1, 0.4], [0, 0, 1]])
    grid = grid_of(TURN @ np.diag([1.2, -1.1, 2.0]) @ shear, (12, 12, 9))
    # Linear in space, so that no interpolation adds anything.
    slope = torch.tensor([[0.02, 0.01, 0], [0, -0.03, 0.02], [0.01, 0, 0.04]])
    index = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in grid.shape), indexing="ij"))
    field = Field(grid, torch.einsum("rc,cijk->rijk", slope, index)[None])
    write_registration(tmp_path / "reg.dcm", field, ALIGNMENT, fixed.datasets, moving.datasets)
    found = read_registration(tmp_path / "reg.dcm")
    axes = found.stages[0].grid.affine[:3, :3]  # type: ignore[union-attr]  # the first stage is the field
    # Products of float64.
    torch.testing.assert_close(axes.T @ axes, torch.diag(axes.norm(dim=0) ** 2), rtol=0, atol=1e-9)
    inner = voxels(grid).view(*grid.shape, 3)[2:-2, 2:-2, 2:-2].reshape(-1, 3)
    expected = Transform((field, Affine(ALIGNMENT))).points(inner)
    # A linear field is resampled exactly, but for float32.
    torch.testing.assert_close(found.points(inner), expected, rtol=0, atol=1e-4)


def test_who_and_what_is_the_fixed_series(fixed: Series, moving: Series, tmp_path: Path) -> None:
    write_registration(tmp_path / "reg.dcm", noise(GRIDS["LAS"]), torch.eye(4), fixed.datasets, moving.datasets)
    found, source = pydicom.dcmread(tmp_path / "reg.dcm"), fixed.datasets[0]
    for name in ("PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert found[name].value == source[name].value
    assert found.SOPClassUID == STORAGE and found.Modality == "REG"
    assert found.SeriesInstanceUID not in (source.SeriesInstanceUID, moving.datasets[0].SeriesInstanceUID)
    # What the series lacks has no value, and nothing is said of the moving scan but its UIDs.
    assert not found.PatientBirthDate and not found.AccessionNumber and not found.ContentCreatorName
    assert "Roe" not in str(found) and not any(element.tag.is_private for element in found.iterall())
    item = found.DeformableRegistrationSequence[0]
    assert item.SourceFrameOfReferenceUID == "1.9.1"
    instances = [dataset.SOPInstanceUID for dataset in moving.datasets]
    assert [entry.ReferencedSOPInstanceUID for entry in item.ReferencedImageSequence] == instances
    assert found.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
    other = found.StudiesContainingOtherReferencedInstancesSequence[0]
    assert other.StudyInstanceUID == "1.9" and other.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.2"
    kinds = [
        sequence[0].FrameOfReferenceTransformationMatrixType
        for sequence in (item.PreDeformationMatrixRegistrationSequence, item.PostDeformationMatrixRegistrationSequence)
    ]
    assert kinds == ["RIGID", "RIGID"]


def test_a_series_registered_to_one_of_its_study(fixed: Series, tmp_path: Path) -> None:
    other = series(tmp_path / "other", 3)
    write_registration(tmp_path / "reg.dcm", noise(GRIDS["LAS"]), ALIGNMENT, fixed.datasets, other.datasets)
    found = pydicom.dcmread(tmp_path / "reg.dcm")
    assert [item.SeriesInstanceUID for item in found.ReferencedSeriesSequence] == ["1.2.1", "1.2.3"]
    assert "StudiesContainingOtherReferencedInstancesSequence" not in found
    item = found.DeformableRegistrationSequence[0].PostDeformationMatrixRegistrationSequence[0]
    assert item.FrameOfReferenceTransformationMatrixType == "AFFINE"


# Times of old files have colons.
@pytest.mark.filterwarnings("ignore:Invalid value for VR TM")
def test_a_patient_stays_as_anonymous_as_he_was(moving: Series, tmp_path: Path) -> None:
    hidden = {"PatientName": "", "PatientID": "X1", "PatientSex": "U", "PatientIdentityRemoved": "YES"}
    named = {"DeidentificationMethod": "by hand", "PatientComments": "太郎", "StudyTime": "12:30"}
    letters = {"SpecificCharacterSet": ["", "ISO 2022 IR 87"]}
    fixed = series(tmp_path / "fixed", 1, **hidden, **named, **letters)
    write_registration(tmp_path / "reg.dcm", noise(GRIDS["LAS"]), ALIGNMENT, fixed.datasets, moving.datasets)
    found = pydicom.dcmread(tmp_path / "reg.dcm")
    for name, value in (hidden | named | letters).items():
        assert found[name].value == value


def test_a_matrix_before_the_deformation_is_read(fixed: Series, moving: Series, tmp_path: Path) -> None:
    path = tmp_path / "reg.dcm"
    write_registration(path, noise(GRIDS["oblique LAS"]), ALIGNMENT, fixed.datasets, moving.datasets)
    changed = pydicom.dcmread(path)
    item = changed.DeformableRegistrationSequence[0].PreDeformationMatrixRegistrationSequence[0]
    item.FrameOfReferenceTransformationMatrix = [1.1, 0.2, 0, 5, -0.1, 0.9, 0, -4, 0, 0.1, 1, 3, 0, 0, 0, 1]
    changed.save_as(path)
    flip = torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)
    for voxel in ((0, 0, 0), (3, 2, 1)):
        registered, source = (torch.from_numpy(point) for point in by_the_standard(path, voxel))
        found = read_registration(path).points((registered * flip)[None])[0]
        # Vectors are stored as float32, in millimetres.
        torch.testing.assert_close(found, source * flip, rtol=0, atol=1e-5)


def test_what_cannot_be_referred_to_is_refused(fixed: Series, moving: Series, tmp_path: Path) -> None:
    del moving.datasets[1].FrameOfReferenceUID
    with pytest.raises(InputError, match="The moving series has an instance without FrameOfReferenceUID"):
        write_registration(tmp_path / "reg.dcm", noise(GRIDS["LAS"]), ALIGNMENT, fixed.datasets, moving.datasets)
    with pytest.raises(InputError, match=r"The fixed series is of a vendor's own kind \(1.3.12.2\)"):
        strange = series(tmp_path / "strange", 4, SOPClassUID="1.3.12.2")
        write_registration(tmp_path / "reg.dcm", noise(GRIDS["LAS"]), ALIGNMENT, strange.datasets, fixed.datasets)
    assert not (tmp_path / "reg.dcm").exists()


def test_other_files_are_refused(fixed: Series, moving: Series, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is MR Image Storage of DICOM"):
        read_registration(fixed.datasets[0].filename)
    path = tmp_path / "reg.dcm"
    write_registration(path, noise(GRIDS["LAS"]), ALIGNMENT, fixed.datasets, moving.datasets)
    whole = pydicom.dcmread(path)
    grid = whole.DeformableRegistrationSequence[0].DeformableRegistrationGridSequence[0]
    data = grid.VectorGridData
    grid.VectorGridData = data[:-12]
    whole.save_as(tmp_path / "short.dcm")
    with pytest.raises(InputError, match=r"short.dcm is a damaged registration \(cannot reshape"):
        read_registration(tmp_path / "short.dcm")
    grid.VectorGridData = np.full(3, np.nan, "<f4").tobytes() + data[12:]
    whole.save_as(tmp_path / "open.dcm")
    with pytest.raises(InputError, match="leaves the deformation undefined"):
        read_registration(tmp_path / "open.dcm")
    del whole.DeformableRegistrationSequence[0].DeformableRegistrationGridSequence
    whole.save_as(tmp_path / "none.dcm")
    with pytest.raises(InputError, match="holds 0 deformation grids"):
        read_registration(tmp_path / "none.dcm")
    (tmp_path / "cut.dcm").write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="cut.dcm cannot be read as DICOM"):
        read_registration(tmp_path / "cut.dcm")


def program(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: apt-get install {package}")
    return found


def test_dcmtk_and_dicom3tools_find_no_fault(fixed: Series, moving: Series, tmp_path: Path) -> None:
    dump, verify = program("dcmdump", "dcmtk"), program("dciodvfy", "dicom3tools")
    path = tmp_path / "reg.dcm"
    write_registration(path, noise(GRIDS["oblique LAS"]), ALIGNMENT, fixed.datasets, moving.datasets)
    said = subprocess.run([verify, path], capture_output=True, text=True, check=False)
    assert "Error" not in said.stderr + said.stdout and "DeformableSpatialRegistration" in said.stderr
    told = subprocess.run([dump, "+L", "+P", "0064,0009", path], capture_output=True, text=True, check=True).stdout
    numbers = np.array(told.split("OF ")[1].split()[0].split("\\"), float)
    data = pydicom.dcmread(path).DeformableRegistrationSequence[0].DeformableRegistrationGridSequence[0].VectorGridData
    # dcmdump prints six digits.
    np.testing.assert_allclose(numbers, np.frombuffer(data, "<f4"), rtol=1e-5)


def test_a_registration_of_plastimatch_is_the_field_it_was_made_of(tmp_path: Path) -> None:
    """An independent writer: order of axes, direction and signs are those of another program."""
    convert = program("plastimatch", "plastimatch")
    grid = grid_of(np.diag([-1.2, -1.1, 2.0]), (12, 10, 8))
    scan = np.random.default_rng(0).integers(0, 99, grid.shape).astype(np.int16)
    write_series(tmp_path / "fixed", scan, grid.affine.numpy(), Modality="CT", SOPClassUID="1.2.840.10008.5.1.4.1.1.2")
    ddf = noise(grid).ddf
    write_displacement(tmp_path / "field.nii.gz", ddf, grid)
    vectors = nibabel.load(tmp_path / "field.nii.gz")
    assert vectors.shape == (*grid.shape, 1, 3)
    command = [convert, "xf-convert", "--input", "field.nii.gz", "--output-dicom", "out"]
    folders = ["--fixed-rcs", "fixed", "--moving-rcs", "fixed"]
    subprocess.run([*command, *folders], cwd=tmp_path, check=True, capture_output=True)
    (path,) = (path for path in (tmp_path / "out").iterdir() if pydicom.dcmread(path).get("Modality") == "REG")
    found = read_registration(path)
    expected = Transform((Field(grid, ddf),)).points(voxels(grid))
    # Another program writes its vectors with fewer digits.
    torch.testing.assert_close(found.points(voxels(grid)), expected, rtol=0, atol=1e-4)


def test_pydicomrt_reads_what_is_written(fixed: Series, moving: Series, tmp_path: Path) -> None:
    reader = pytest.importorskip("pydicomrt.reg.parser", reason="pip install pydicomrt SimpleITK")
    sitk = pytest.importorskip("SimpleITK")
    grid = GRIDS["oblique LAS"]
    field = noise(grid)
    write_registration(tmp_path / "reg.dcm", field, ALIGNMENT, fixed.datasets, moving.datasets)
    (found,) = reader.get_deformable_registrations(pydicom.dcmread(tmp_path / "reg.dcm"))
    stored = found["DeformableRegistrationGrid"]
    image = sitk.GetImageFromArray(stored["VectorGridData"].astype(np.float64), isVector=True)
    image.SetSpacing([float(value) for value in stored["GridResolution"]])
    image.SetOrigin([float(value) for value in stored["ImagePositionPatient"]])
    row, column = np.array(stored["ImageOrientationPatient"], float).reshape(2, 3)
    image.SetDirection(np.stack([row, column, np.cross(row, column)], axis=1).ravel().tolist())
    after = np.array(found["PostDeformationMatrixRegistration"]).reshape(4, 4)
    affine = sitk.AffineTransform(after[:3, :3].ravel().tolist(), after[:3, 3].tolist())
    chain = sitk.CompositeTransform([affine, sitk.DisplacementFieldTransform(image)])
    flip = torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)
    expected = Transform((field, Affine(ALIGNMENT))).points(voxels(grid))
    points = [chain.TransformPoint((point * flip).tolist()) for point in voxels(grid)]
    # Another program reads vectors of float32 and positions of few digits.
    torch.testing.assert_close(torch.tensor(points, dtype=torch.float64) * flip, expected, rtol=0, atol=1e-4)
