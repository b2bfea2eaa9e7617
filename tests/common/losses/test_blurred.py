# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d

from common.losses import BlurredMSELoss
from common.losses.blurred import gaussian_blur


@pytest.mark.parametrize("sigma", [1, 3])
@pytest.mark.parametrize("shape", [(9, 7), (5, 8, 6)])
def test_blur_is_a_window_along_each_axis_with_zeros_outside(shape: tuple[int, ...], sigma: int) -> None:
    image = torch.randn((2, 3, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    window = np.exp(-0.5 * (np.arange(-2 * sigma, 2 * sigma + 1) / sigma) ** 2)
    expected = image.numpy()
    for axis in range(2, image.ndim):
        expected = correlate1d(expected, window / window.sum(), axis, mode="constant")
    # Sums of some float64 around 1 in another order.
    np.testing.assert_allclose(gaussian_blur(image, sigma).numpy(), expected, rtol=0, atol=1e-12)


def test_loss_is_that_of_the_blurred_images() -> None:
    generator = torch.Generator().manual_seed(1)
    pred, target = (torch.randn((2, 1, 5, 6), generator=generator, dtype=torch.float64) for _ in range(2))
    expected = torch.nn.functional.mse_loss(gaussian_blur(pred, 2), gaussian_blur(target, 2))
    torch.testing.assert_close(BlurredMSELoss(2)(pred, target), expected)
    assert BlurredMSELoss(2)(pred.half(), target.half()).dtype == torch.float32
