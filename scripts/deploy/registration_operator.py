# SPDX-License-Identifier: Apache-2.0
"""MONAI Deploy's operator that registers two volumes with a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.deploy.core import Fragment, Operator, OperatorSpec
from monai.deploy.operators import DICOMSeriesSelectorOperator

from scripts.deploy.registering import OUTPUTS, check_selection, register_volumes, selection_rules


class OneSeriesOperator(DICOMSeriesSelectorOperator):
    """Selects a series by its description, and refuses to go on with none or one of several.

    Args:
        fragment: of the application.
        side: "fixed" or "moving".
        description: see :func:`selection_rules`.
    """

    def __init__(self, fragment: Fragment, side: str, description: str) -> None:
        self.side = side
        super().__init__(fragment, rules=selection_rules(side, description), name=f"select_{side}")

    def filter(self, selection_rules: Any, dicom_study_list: Any, *args: Any, **kwargs: Any) -> Any:
        """As MONAI Deploy calls it, but with all that fits.

        Raises:
            InputError: as :func:`scripts.deploy.registering.check_selection`.
        """
        chosen = super().filter(selection_rules, dicom_study_list, all_matched=True)
        selected = [str(found.series.SeriesDescription) for study in chosen for found in study.selected_series]
        there = [str(one.SeriesDescription) for study in dicom_study_list for one in study.get_all_series()]
        check_selection(self.side, selected, there)
        return chosen


class RegistrationOperator(Operator):
    """Takes the volumes ``fixed`` and ``moving``, and writes the transform between them and the warped scan.

    Args:
        fragment: of the application.
        bundle: folder, zip or name of a bundle.
        output_folder: where files are written.
        options: of the bundle's ``configs/inference.json``, by name.
        outputs: names of ``--outputs``.
    """

    def __init__(
        self,
        fragment: Fragment,
        *args: Any,
        bundle: str,
        output_folder: Path,
        options: Mapping[str, Any],
        outputs: str = OUTPUTS,
        **kwargs: Any,
    ) -> None:
        self.bundle, self.output_folder, self.options, self.outputs = bundle, output_folder, options, outputs
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Two inputs; the results are files."""
        spec.input("fixed")
        spec.input("moving")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Register what has come."""
        volumes = {side: op_input.receive(side) for side in ("moving", "fixed")}
        written = register_volumes(
            self.bundle,
            **{side: (volume.asnumpy(), volume.metadata()) for side, volume in volumes.items()},
            folder=self.output_folder,
            outputs=self.outputs,
            options=self.options,
        )
        print("\n".join(f"{path} written" for path in written))
