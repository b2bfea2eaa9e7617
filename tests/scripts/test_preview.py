# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from common.checks import InputError
from common.io.nifti import write_ddf, write_image
from scripts import package, preview


@pytest.mark.parametrize("shape", [(6, 8, 10), (6, 8)])
def test_picture_of_a_registered_pair(
    shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bundles" / "toy_data" / "configs").mkdir(parents=True)
    (tmp_path / "bundles" / "toy_data" / "configs" / "metadata.json").write_text("{}")
    monkeypatch.setattr(package, "BUNDLES", tmp_path / "bundles")
    affine = torch.eye(4, dtype=torch.float64)
    for name in ("moving", "fixed", "out/a_to_b_warped"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_image(tmp_path / f"{name}.nii.gz", torch.rand(1, *shape), affine)
    write_ddf(tmp_path / "out" / "a_to_b_ddf.nii.gz", torch.rand(len(shape), *shape), affine)
    files = [word for name in ("moving", "fixed") for word in (f"--{name}", str(tmp_path / f"{name}.nii.gz"))]
    preview.main(["toy_data", *files, "--results", str(tmp_path / "out")])
    picture = Path(capsys.readouterr().out.strip())
    assert picture == tmp_path / "bundles" / "toy_data" / "docs" / "preview.png"
    with Image.open(picture) as shown:
        assert shown.width > 3 * shown.height
    with pytest.raises(InputError, match=r"has 0 files \*_warped.nii.gz; give a folder with those of one pair"):
        preview.main(["toy_data", *files, "--results", str(tmp_path)])
