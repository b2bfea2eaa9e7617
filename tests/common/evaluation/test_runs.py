# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from common.checks import InputError
from common.evaluation.runs import read_run

CASES = "fixed_id,moving_id,dice\na,b,0.5\n"


def test_a_folder_may_have_the_sign_of_a_name_in_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "lr=0.1"
    folder.mkdir()
    (folder / "cases.csv").write_text(CASES)
    for text, name in ((str(folder), "lr=0.1"), (f"slow={folder}", "slow")):
        run = read_run(text)
        assert (run.name, run.folder, run.cases) == (name, folder, {("b", "a"): {"dice": 0.5}})


@pytest.mark.parametrize("labels", ["id,label,dice\n1,1,0.5\n", "fixed_id,moving_id,dice\na,b,0.5\n"])
def test_a_table_of_labels_names_pairs_and_labels(tmp_path: Path, labels: str) -> None:
    (tmp_path / "cases.csv").write_text(CASES)
    (tmp_path / "labels.csv").write_text(labels)
    with pytest.raises(InputError, match=r"labels\.csv lacks moving_id, fixed_id or label"):
        read_run(str(tmp_path))
