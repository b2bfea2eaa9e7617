# SPDX-License-Identifier: Apache-2.0
"""Registers two series of a folder of DICOM files, as an application of MONAI Deploy.

Example: ``python scripts/deploy/app.py -i dicom -o out``; README.md beside it says what the environment chooses.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from holoscan.conditions import CountCondition
from monai.deploy.core import AppContext, Application
from monai.deploy.operators import DICOMDataLoaderOperator, DICOMSeriesToVolumeOperator

from common.cli import run_tool
from scripts.deploy.registration_operator import OneSeriesOperator, RegistrationOperator


class RegistrationApp(Application):
    """Files to studies, two series by their descriptions, two volumes, one registration."""

    def compose(self) -> None:
        """Connect the operators."""
        context: AppContext = Application.init_app_context(self.argv)
        load = DICOMDataLoaderOperator(
            self, CountCondition(self, 1), input_folder=Path(context.input_path), name="load"
        )
        register = RegistrationOperator(
            self,
            bundle=os.environ.get("REGISTRATION_BUNDLE", "instance_any"),
            output_folder=Path(context.output_path),
            options=json.loads(os.environ.get("REGISTRATION_OPTIONS", "{}")),
            name="register",
        )
        for side in ("fixed", "moving"):
            select = OneSeriesOperator(self, side, os.environ.get(f"REGISTRATION_{side.upper()}", side))
            volume = DICOMSeriesToVolumeOperator(self, name=f"volume_{side}")
            self.add_flow(load, select, {("dicom_study_list", "dicom_study_list")})
            self.add_flow(select, volume, {("study_selected_series_list", "study_selected_series_list")})
            self.add_flow(volume, register, {("image", side)})


if __name__ == "__main__":
    run_tool(lambda: RegistrationApp().run())
