# SPDX-License-Identifier: Apache-2.0
"""SPM: deformations (y_, iy_), which hold positions in millimetres, and the velocities that they were integrated from.

Facts: SPM12 writes deformations as vectors of intent 1007 with the name "Mapping"; DARTEL, Shoot and MB describe their
velocities in the header alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.checks import InputError
from common.io.formats.recognised import Recognised

INTENT_NAME = b"Mapping"
_VELOCITY = (b"velocity", b"flow")


def recognise(path: Path, file: Any) -> Recognised | None:
    """What a header of SPM says.

    Raises:
        InputError: for velocities.
    """
    if bytes(file.header["intent_name"].item()).startswith(INTENT_NAME):
        return Recognised("a deformation of SPM", ("ras_positions",))
    described = bytes(file.header["descrip"].item()).lower()
    if len(file.shape) == 5 and any(word in described for word in _VELOCITY):
        raise InputError(
            f"{path} is a velocity field of SPM (DARTEL, Shoot), which is not read: Utils, Deformations in SPM writes "
            "the deformation y_ that belongs to it."
        )
    return None
