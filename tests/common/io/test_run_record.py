# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.checks import InputError
from common.io.run_record import RunRecord, fingerprint


def record(folder: Path, **settings: Any) -> RunRecord:
    return RunRecord(folder / "run.json", folder, "registrations", settings)


def test_what_was_written_is_read_by_a_run_with_the_same_settings(tmp_path: Path) -> None:
    record(tmp_path, size=(1, 2.5), amp=False).write(pairs={"a": 1}, archive=None)
    assert record(tmp_path, size=[1, 2.5], amp=False).read("pairs", "archive") == [{"a": 1}, None]
    content = json.loads((tmp_path / "run.json").read_text())
    assert content["settings"] == {"size": [1, 2.5], "amp": False} and {"versions", "machine", "time"} <= set(content)


def test_other_settings_are_named(tmp_path: Path) -> None:
    record(tmp_path, affine=False, spacing=1, seed=3).write()
    with pytest.raises(InputError) as error:
        record(tmp_path, affine=True, spacing=2, seed=3).read()
    assert str(error.value) == (
        f"{tmp_path} holds registrations that were made with another affine and spacing: choose another --output_dir, "
        "or replace them with --overwrite true."
    )
    with pytest.raises(InputError, match="another size"):
        record(tmp_path, affine=False, size=3).read()


def test_the_content_of_a_file_counts_and_not_its_name(tmp_path: Path) -> None:
    one, copy, other = (tmp_path / name for name in ("one.pt", "copy.pt", "other.pt"))
    for path, content in ((one, "a"), (copy, "a"), (other, "b")):
        path.write_text(content)
    assert fingerprint(one) == fingerprint(str(copy)) != fingerprint(other)
    record(tmp_path, ckpt_path=str(one)).write()
    assert record(tmp_path, ckpt_path=copy).read() == []
    with pytest.raises(InputError, match="another ckpt_path"):
        record(tmp_path, ckpt_path=other).read()
    # No file has so long a name, and asking for one is an error of the system.
    assert fingerprint(",".join(map(str, range(300)))).startswith("0,1,2")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"settings": {}}', '{"settings": [], "pairs": {}}'])
def test_a_damaged_record_is_refused_in_words(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError, match="run.json is damaged, or not the record of registrations: choose another"):
        record(tmp_path, affine=False).read("pairs")


def test_the_option_of_the_command_is_named(tmp_path: Path) -> None:
    mine = RunRecord(tmp_path / "run.json", tmp_path, "fields", {}, option="--output")
    assert "choose another --output, or replace it with --overwrite true" in str(mine.unknown(tmp_path / "a.nii.gz"))
    assert "another x1 and x2 and x3 and x4 and x5:" in str(mine.refusal([f"x{n}" for n in range(1, 9)]))
