# SPDX-License-Identifier: Apache-2.0
"""Dual-pyramid networks: operations and networks of the published code."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.blocks.correlation import local_correlation, reversed_correlation

Arrays = dict[str, np.ndarray]


def compute(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    """Everything of a file, under the names that it has there."""
    case = meta["case"]
    for beginning, function in CASES.items():
        if case.startswith(beginning):
            return function(meta, arrays)
    return {}


def _tensor(array: np.ndarray, grad: bool = False) -> Tensor:
    return torch.from_numpy(np.array(array)).requires_grad_(grad)


def _correlation(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    results: Arrays = {}
    for kind in ("3d_r1", "2d_r1", "2d_r2"):
        dims, radius = kind[:2], int(kind[-1])
        cotangent = _tensor(arrays[f"in/cotangent_{kind}"])
        for padding, padding_mode in (("zero", "zeros"), ("replicate", "border")):
            images = {name: _tensor(arrays[f"in/{name}_{dims}"], grad=True) for name in ("fixed", "moving")}
            found = local_correlation(images["fixed"], images["moving"], radius, padding_mode)
            gradients = torch.autograd.grad((found * cotangent).sum(), [*images.values()])
            results[f"out/{padding}_{kind}"] = found.detach().numpy()
            for name, gradient in zip(images, gradients, strict=True):
                results[f"grad/{name}_{padding}_{kind}"] = gradient.numpy()
            reverse = f"out/reverse_{padding}_{kind}"
            if reverse in arrays:
                results[reverse] = reversed_correlation(found.detach(), radius, padding_mode).numpy()
    return results


CASES = {"correlation": _correlation}
