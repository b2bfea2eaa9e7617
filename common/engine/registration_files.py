# SPDX-License-Identifier: Apache-2.0
"""The files of a registered pair: which there are, and how each is written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from torch import Tensor

from common.checks import InputError
from common.engine.registration import UNCERTAINTY, Registration
from common.engine.registration_dicom import NEEDED, write_label_seg, write_reg
from common.io.files import write_bytes
from common.io.map_files import SUFFIX, write_map
from common.io.nifti import write_ddf, write_image
from common.io.png import PNG, write_png
from common.io.transforms import write_displacement, write_transform
from common.report.panels import as_png, panel
from common.spatial.plane import downwards, in_plane

logger = logging.getLogger(__name__)
ALL = "all"
Written = Iterator[Path]


def _warped(result: Registration, prefix: str) -> Written:
    yield from _picture_like(result, prefix, "warped", result.warped)


def _label(result: Registration, prefix: str) -> Written:
    if result.warped_label is not None:
        yield from _picture_like(result, prefix, "warped_label", result.warped_label)


def _picture_like(result: Registration, prefix: str, name: str, values: Tensor) -> Written:
    yield _image(result, f"{prefix}_{name}.nii.gz", values[0])
    if str(result.pair["path_moving"]).endswith(PNG):
        path = Path(f"{prefix}_{name}.png")
        write_png(path, values[0, 0, ..., 0])
        yield path


def _transform(result: Registration, prefix: str) -> Written:
    path = Path(f"{prefix}_transform.h5")
    write_transform(path, result.transform)
    yield path


def _inverse(result: Registration, prefix: str) -> Written:
    if result.inverse is not None:
        path = Path(f"{prefix}_inverse.h5")
        write_transform(path, result.inverse)
        yield path


def _displacement(result: Registration, prefix: str) -> Written:
    path = Path(f"{prefix}_displacement.nii.gz")
    write_displacement(path, result.total, result.fixed)
    yield path


def _ddf(result: Registration, prefix: str) -> Written:
    yield _field(result, f"{prefix}_ddf.nii.gz", result.total[0])


def _jacobian(result: Registration, prefix: str) -> Written:
    yield _image(result, f"{prefix}_jacobian.nii.gz", result.determinant[0])


def _panel(result: Registration, prefix: str) -> Written:
    images = {
        "moving": result.unregistered[0],
        "fixed": result.pair["fixed_scan"],
        "warped": result.warped[0],
        "ddf": result.ddf[0],
    }
    figure = panel(
        **{name: in_plane(values, result.dims) for name, values in images.items()},
        title=Path(prefix).name,
        spacing=result.fixed.spacing[: result.dims],
        maps={_titled(name): in_plane(values, result.dims) for name, values in result.maps.items()},
        downwards=result.fixed.flat and downwards(result.fixed.affine),
    )
    path = Path(f"{prefix}_panel.png")
    write_bytes(path, as_png(figure, dpi=110))
    yield path


def _titled(name: str) -> str:
    return f"{name} (mm)" if name == UNCERTAINTY else name


def _inverse_ddf(result: Registration, prefix: str) -> Written:
    if result.whole_way_back is not None:
        yield _field(result, f"{prefix}_inverse_ddf.nii.gz", result.whole_way_back[0])


def _maps(result: Registration, prefix: str) -> Written:
    for name, values in result.maps.items():
        yield (_image if len(values) == 1 else _field)(result, f"{prefix}_{name}.nii.gz", values)


def _map(result: Registration, prefix: str) -> Written:
    if result.functions is not None:
        path = Path(f"{prefix}_map{SUFFIX}")
        write_map(path, *result.functions, result.working, result.alignment)
        yield path


def _image(result: Registration, name: str, values: Tensor) -> Path:
    path = Path(name)
    write_image(path, in_plane(values, result.dims), result.fixed.affine)
    return path


def _field(result: Registration, name: str, values: Tensor) -> Path:
    path = Path(name)
    write_ddf(path, in_plane(values, result.dims), result.fixed.affine)
    return path


OUTPUTS: dict[str, Callable[[Registration, str], Written]] = {
    "warped": _warped,
    "label": _label,
    "transform": _transform,
    "inverse": _inverse,
    "displacement": _displacement,
    "ddf": _ddf,
    "jacobian": _jacobian,
    "panel": _panel,
    "inverse_ddf": _inverse_ddf,
    "maps": _maps,
    "map": _map,
    "seg": write_label_seg,
    "reg": write_reg,
}
"""By name, what :func:`write_files` writes."""
_ALL = tuple(name for name in OUTPUTS if name not in NEEDED)
"""What any pair may have."""
FIELDS = {"ddf": "ddf.nii.gz", "displacement": "displacement.nii.gz", "transform": "transform.h5"}
"""Of these outputs, the first that is written is what ``scripts/evaluate.py`` reads."""


def are_outputs(value: object) -> bool:
    """Whether a value chooses outputs: "all", names joined by commas, or a list of names."""
    try:
        return bool(chosen_outputs(value))  # type: ignore[arg-type]  # anything that a user may have given
    except (InputError, TypeError):
        return False


def chosen_outputs(outputs: str | Sequence[str]) -> tuple[str, ...]:
    """The names of outputs that are meant.

    Args:
        outputs: "all", which is all but those in DICOM, names of :data:`OUTPUTS` joined by commas, or a list of names.

    Raises:
        InputError: naming one that there is not.
    """
    names = outputs.split(",") if isinstance(outputs, str) else [*outputs]
    if names == [ALL]:
        return _ALL
    unknown = [name for name in names if name not in OUTPUTS]
    if unknown:
        raise InputError(f"There is no output {unknown[0]!r}: give {ALL}, or some of {', '.join(OUTPUTS)}.")
    return tuple(names)


def write_files(result: Registration, prefix: str | Path, outputs: Collection[str]) -> list[Path]:
    """Write files of a pair; only what they need is computed.

    Args:
        result: the registered pair.
        prefix: folder and beginning of the files' names.
        outputs: names of :data:`OUTPUTS`. What a pair has not, such as labels, is not written; of that a warning is
            logged where it was asked for by name.

    Returns:
        The files.

    Raises:
        InputError: when one cannot be written.
    """
    written: list[Path] = []
    by_name = tuple(outputs) != _ALL
    for name in outputs:
        files = [*OUTPUTS[name](result, str(prefix))]
        if by_name and not files:
            logger.warning("%s has no output %r.", Path(prefix).name, name)
        written += files
    return written
