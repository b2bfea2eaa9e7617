# SPDX-License-Identifier: Apache-2.0
"""The plain forms of the benchmark and our metrics are two independent makings of the same figures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.metrics import dice_l2r, hd95_l2r, ndv_lumir, sdlogj_l2r
from common.spatial.labels import warp_labels
from scripts import evaluators

SHAPE = (12, 14, 11)


def test_plain_forms_agree_with_ours() -> None:
    generator = torch.Generator().manual_seed(0)
    fixed, moving = torch.randint(0, 4, (2, 1, 1, *SHAPE), generator=generator, dtype=torch.uint8)
    moving[moving == 3] = 0
    ddf = 1.5 * torch.randn(1, 3, *SHAPE, generator=generator)
    warped = warp_labels(moving, ddf)
    f, m, w, u = fixed[0, 0].numpy(), moving[0, 0].numpy(), warped[0, 0].numpy(), ddf[0].numpy()
    labels = evaluators.LABELS
    np.testing.assert_array_equal(evaluators.plain_warp(m, u), w)
    np.testing.assert_allclose(evaluators.plain_dice(w, f, m), dice_l2r(warped, fixed, labels, moving)[0])
    np.testing.assert_allclose(evaluators.plain_hd95(w, f, m), hd95_l2r(warped, fixed, labels, moving)[0])
    folded = ndv_lumir(ddf, moving).percent.numpy()
    assert folded[0] > 1
    np.testing.assert_allclose(evaluators.plain_ndv(u, m > 0), folded, rtol=1e-5)
    np.testing.assert_allclose(evaluators.plain_sdlogj(u), sdlogj_l2r(ddf), rtol=1e-5)


def test_every_metric_has_both_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluators, "SIZE", SHAPE)
    monkeypatch.setattr(evaluators, "case", evaluators._made_up)
    for name, forms in evaluators.metrics().items():
        assert list(forms) == [evaluators.PUBLISHED, evaluators.OURS], name
        plain, ours = (np.asarray(call(), np.float64) for call in forms.values())
        np.testing.assert_allclose(ours, plain, rtol=1e-5, err_msg=name)
