# SPDX-License-Identifier: Apache-2.0
"""One module per way of laying out a data set on disk; each gives a :class:`Listing` per section."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from common.data.readers.abdomenct import read_abdomenct, read_abdomenct_dp
from common.data.readers.acdc import read_acdc
from common.data.readers.bids import read_bids
from common.data.readers.datalist import read_datalist
from common.data.readers.ixi import read_ixi
from common.data.readers.listing import SECTIONS, Listing
from common.data.readers.lpba40 import read_lpba40
from common.data.readers.lumir import read_lumir
from common.data.readers.lungct import read_lungct
from common.data.readers.oasis import read_oasis, read_oasis_dp

Reader = Callable[[Path, "str | None"], "dict[str, Listing]"]

READERS: dict[str, Reader] = {
    "datalist": read_datalist,
    "oasis": read_oasis,
    "oasis_dp": read_oasis_dp,
    "acdc": read_acdc,
    "lumir": read_lumir,
    "abdomenct": read_abdomenct,
    "abdomenct_dp": read_abdomenct_dp,
    "lungct": read_lungct,
    "ixi": read_ixi,
    "lpba40": read_lpba40,
    "bids": read_bids,
}

__all__ = ["READERS", "SECTIONS", "Listing", "Reader", "read_datalist", "read_lumir", "read_oasis"]
