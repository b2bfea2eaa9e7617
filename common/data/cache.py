# SPDX-License-Identifier: Apache-2.0
"""Subjects decoded once by several threads, which all have ended when the first error comes out."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from monai.data import CacheDataset
from tqdm.auto import tqdm


class SubjectCache(CacheDataset):
    """MONAI's ``CacheDataset``, except that an error or an interruption ends its threads before it is passed on.

    MONAI's threads go on decoding while the error is reported: an interpreter that exits meanwhile takes the ground
    from under their C++ code, and the process is aborted (SIGABRT). Here nothing more is begun, and what is in hand is
    waited for. Of several subjects that cannot be used, the first in the list is named.
    """

    def _fill_cache(self, indices: Sequence[int] | None = None) -> list[Any]:
        todo = range(self.cache_num) if indices is None else indices
        subjects = []
        pool = ThreadPoolExecutor(self.num_workers)
        try:
            with tqdm(total=len(todo), desc="Loading dataset", disable=not self.progress) as bar:
                for subject in pool.map(self._load_cache_item, todo):
                    subjects.append(subject)
                    bar.update()
        finally:
            pool.shutdown(cancel_futures=True)
        return subjects
