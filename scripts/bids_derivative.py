# SPDX-License-Identifier: Apache-2.0
"""The data set that a BIDS app writes: names as those of fMRIPrep, sidecars, the files at the top.

Sources: https://bids-specification.readthedocs.io (derivatives, BIDS URIs); fMRIPrep's documentation of its outputs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import common
from common.checks import InputError
from common.data.bids import DESCRIPTION, BidsFile, read_object
from common.io.files import write_bytes
from common.io.tables import write_json
from scripts.bids_template import Template, names_of_labels

GENERATOR = "registration-bundles"
_VERSION = "1.10.0"
_IGNORED = "*_xfm.*\nfigures\nlogs\ngroup_*\n"
"""What BIDS does not know (yet): transforms are a draft, BEP 14. The validator finds "figures/" at the top alone."""
_README = """\
# Registrations to templates

Made by `scripts/bids_app.py`, of the {source} scans of another data set, see `dataset_description.json`.

- `*_from-{source}_to-TEMPLATE_mode-image_xfm.h5` warps images of the participant to the template, and takes points of
  the template to the participant: give it to `antsApplyTransforms -t`, ITK or 3D Slicer. Units are millimetres (LPS).
- `*_from-TEMPLATE_to-{source}_mode-image_xfm.h5` is the way back.
- `*_space-TEMPLATE_desc-*_{source}.nii.gz` is the scan on the template's grid.
- `*_desc-*_dseg.nii.gz` are the template's labels on the scan's own grid, their names in `desc-*_dseg.tsv`.
- `sub-*/figures` has a picture of each scan, `logs` how it was made and figures of quality.
"""


class ScanOutputs:
    """Paths of all that is made of one scan.

    Args:
        out: folder of the derivative.
        scan: of the participant.
        template: to which it is registered.
    """

    def __init__(self, out: Path, scan: BidsFile, template: Template) -> None:
        start, suffix, name = scan.prefix, scan.suffix, template.name
        folder = out / scan.folder
        desc = scan.made.get("desc", "preproc")
        self.transform = folder / f"{start}_from-{suffix}_to-{name}_mode-image_xfm.h5"
        self.inverse = folder / f"{start}_from-{name}_to-{suffix}_mode-image_xfm.h5"
        self.warped = folder / f"{start}_space-{name}_desc-{desc}_{suffix}.nii.gz"
        self.labels = {label: folder / f"{start}_desc-{label}_dseg.nii.gz" for label in template.labels}
        figures = out / f"sub-{scan.entities['sub']}" / "figures"
        self.panel = figures / f"{start}_space-{name}_desc-registration_{suffix}.png"
        self.record = out / "logs" / f"{start}_from-{suffix}_to-{name}_registration.json"

    @property
    def files(self) -> list[Path]:
        """All files of results, without sidecars and record."""
        return [self.transform, self.inverse, self.warped, *self.labels.values(), self.panel]


class Derivative:
    """A derivative data set, of one source and any number of templates.

    Args:
        source: folder of the data set with the scans.
        out: folder of the results.
        template: of this run.
    """

    def __init__(self, source: Path, out: Path, template: Template) -> None:
        self.source, self.out, self.template = source.resolve(), out.resolve(), template
        # Folders by their names in BIDS URIs.
        self._places = {"raw": self.source, f"tpl-{template.name}": template.path.parent}

    def begin(self, description: dict[str, Any], suffix: str, overwrite: bool) -> None:
        """Write the files at the top, as far as they are not there.

        Args:
            description: of the source.
            suffix: of its scans.
            overwrite: whether a table of labels may be replaced by another one.

        Raises:
            InputError: the folder holds another data set, or a table of labels of this name and another content.
        """
        write_json(self.out / DESCRIPTION, self._description(description))
        for name, text in ((".bidsignore", _IGNORED), ("README.md", _README.format(source=suffix))):
            if not (self.out / name).exists():
                write_bytes(self.out / name, text.encode())
        for label, path in self.template.labels.items():
            table, text = self.out / f"desc-{label}_dseg.tsv", names_of_labels(path)
            if not overwrite and table.exists() and table.read_text(encoding="utf-8-sig") != text:
                raise InputError(
                    f"{table} is of another label map: choose another OUT, or replace it with --overwrite true."
                )
            write_bytes(table, text.encode())

    def _description(self, source: dict[str, Any]) -> dict[str, Any]:
        if self.out == self.source or self.source.is_relative_to(self.out):
            raise InputError(f"{self.out} holds the scans: choose a folder of its own for the results.")
        path, earlier = self.out / DESCRIPTION, {}
        links = {name: self._link(folder) for name, folder in self._places.items()}
        if path.is_file():
            earlier = read_object(path)
            made_by = earlier.get("GeneratedBy")
            ours = isinstance(made_by, list) and any(one.get("Name") == GENERATOR for one in made_by)
            if not ours or earlier["DatasetLinks"]["raw"] != links["raw"]:
                raise InputError(f"{self.out} holds another data set, or results of another one: choose another OUT.")
        taken = {key: source[key] for key in ("License",) if key in source}
        origin = {"URL": links["raw"], "DOI": source.get("DatasetDOI")}
        return {
            "Name": f"Registrations of {source.get('Name', self.source.name)}",
            "BIDSVersion": _VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": GENERATOR, "Version": common.__version__}],
            "SourceDatasets": [{key: value for key, value in origin.items() if value}],
            **taken,
            "DatasetLinks": {**earlier.get("DatasetLinks", {}), **links},
        }

    def _link(self, folder: Path) -> str:
        """A URI: relative where one data set lies in the other, so that both can be moved together."""
        if self.out.is_relative_to(folder):
            return Path(os.path.relpath(folder, self.out)).as_posix()
        return folder.as_uri()

    def write_sidecars(self, scan: BidsFile, outputs: ScanOutputs, skull_stripped: bool) -> None:
        """Write the JSON beside each result that is there.

        Args:
            scan: that was registered.
            outputs: its files.
            skull_stripped: whether the scan is without skull.
        """
        image, template = self.uri(scan.path), self.uri(self.template.path)
        for path in (outputs.transform, outputs.inverse):
            fixed, moving = ("template", "scan") if path == outputs.transform else ("scan", "template")
            what = f"Warps images of the {moving} to the {fixed}, maps points of the {fixed} to the {moving}; LPS mm."
            _write_beside(path, {"Description": what, "Sources": [image, template]})
        way = self.uri(outputs.transform)
        about = {
            "Description": f"The scan on the grid of {self.template.name}, linear between voxels, not normalised.",
            "SpatialReference": template,
            "SkullStripped": skull_stripped,
        }
        _write_beside(outputs.warped, {**about, "Sources": [image, template, way]})
        for label, path in outputs.labels.items():
            about = {"Description": f"Labels {label} of {self.template.name} on the grid of the scan, nearest voxel."}
            about |= {"SpatialReference": image, "Manual": False}
            sources = [image, self.uri(self.template.labels[label]), self.uri(outputs.inverse)]
            _write_beside(path, {**about, "Sources": sources})

    def uri(self, path: Path) -> str:
        """BIDS URI of a file of the results, the source or the template; of others that of the file."""
        for name, folder in {"": self.out, **self._places}.items():
            if path.absolute().is_relative_to(folder):
                return f"bids:{name}:{path.absolute().relative_to(folder).as_posix()}"
        return path.absolute().as_uri()


def _write_beside(path: Path, content: dict[str, Any]) -> None:
    if path.exists():
        write_json(path.with_name(f"{path.name.removesuffix('.gz').rpartition('.')[0]}.json"), content)
