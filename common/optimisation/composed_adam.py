# SPDX-License-Identifier: Apache-2.0
"""Adam on displacement fields that are composed with small smooth ones, which keeps maps invertible."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from common.spatial import warp
from common.spatial.gaussian import gaussian_filter_
from common.spatial.lengths import lengths

_FIRST, _SECOND = 0.9, 0.99
"""Decay of Adam's moments."""
_TINY = 1e-12


class ComposedAdam(torch.optim.Optimizer):
    r"""Composes each field with a small smooth displacement along Adam's direction.

    With the gradient g of a field u, G and S Gaussian filters, m and v Adam's moments of :math:`G g` and the largest
    length l of a step in voxels,

    .. math::
        s = -S \frac{m}{\sqrt v}, \quad u \leftarrow F\,(u \circ l s / \max(1, |s|_\infty)),

    where :math:`u \circ s` is the field of ``x -> y + u(y)``, ``y = x + s(x)``. A small smooth step is invertible, and
    so is what is composed of such; filtering the field itself, F, is what keeps it smooth. F takes means of what is
    inside the image: with zeros outside it would pull the field to nothing at the border, that is in most slices of a
    volume that has few.

    Sources: Yushkevich et al., "Fast automatic segmentation of hippocampal subfields and medial temporal lobe
    subregions in 3 Tesla and 7 Tesla T2-weighted MRI" (Greedy), Alzheimer's & Dementia 12 (2016) for composed and
    filtered updates; Jena et al., "FireANTs: adaptive Riemannian optimization for multi-scale diffeomorphic matching"
    (arXiv 2404.01249) for Adam of them. The filter of the step is ours.

    Args:
        params: fields (B, d, *spatial) in voxels, changed in place.
        lr: length of the largest step, in voxels.
        gradient_sigma: standard deviation of G in voxels; 0 for none.
        step_sigma: of S.
        field_sigma: of F.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.5,
        gradient_sigma: float = 0.7,
        step_sigma: float = 0.7,
        field_sigma: float = 0.35,
    ) -> None:
        defaults = {
            "lr": lr,
            "gradient_sigma": gradient_sigma,
            "step_sigma": step_sigma,
            "field_sigma": field_sigma,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no closure: the loop has the value
        """One step of all fields that have a gradient, whose memory it uses: afterwards it is none any more."""
        for group in self.param_groups:
            for field in group["params"]:
                if field.grad is not None:
                    self._move(field, field.grad, group)

    def _move(self, field: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        gaussian_filter_(gradient, group["gradient_sigma"])
        state = self.state[field]
        if not state:
            state.update(step=0, mean=torch.zeros_like(field), square=torch.zeros_like(field))
        state["step"] += 1
        state["mean"].lerp_(gradient, 1 - _FIRST)
        state["square"].mul_(_SECOND).addcmul_(gradient, gradient, value=1 - _SECOND)
        root = torch.div(state["square"], 1 - _SECOND ** state["step"], out=gradient).sqrt_().add_(_TINY)
        step = torch.div(state["mean"], root, out=root).div_(_FIRST ** state["step"] - 1)
        gaussian_filter_(step, group["step_sigma"])
        longest = lengths(step).flatten(1).amax(1)
        step *= (group["lr"] / longest.clamp(min=1)).view(-1, *[1] * (field.ndim - 1))
        # Composed in place, for large volumes.
        field.copy_(gaussian_filter_(warp(field, step).add_(step), group["field_sigma"], inside=True))
