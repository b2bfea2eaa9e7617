# SPDX-License-Identifier: Apache-2.0
"""The weighted sum of named terms over the levels of a pyramid that a registration network is trained with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.checks import InputError
from common.losses.pyramid import ImagePyramid
from common.spatial import warp


class Term(nn.Module):
    """A loss, what it looks at, and its weight.

    Args:
        loss: takes the tensors named in ``on`` and returns a scalar; a sequence has one loss per level, finest first,
            the last of which serves all coarser levels.
        on: names out of the network's outputs of a level ("ddf", "velocity", "warped") and its targets ("moving",
            "fixed", "moving_label", "fixed_label"), in the order of the loss's arguments.
        weight: factor of the term in the total.
    """

    def __init__(self, loss: nn.Module | Sequence[nn.Module], on: Sequence[str], weight: float = 1.0) -> None:
        super().__init__()
        self.losses = nn.ModuleList([loss] if isinstance(loss, nn.Module) else loss)
        self.on = tuple(on)
        self.weight = weight

    def forward(self, outputs: Mapping[str, Any], targets: Mapping[str, Any], level: int = 0) -> Tensor:
        """The unweighted loss of one level.

        Args:
            outputs: name to tensor of this level.
            targets: name to tensor of this level.
            level: 0 is the finest.

        Raises:
            InputError: when a name of ``on`` is in neither.
        """
        available = {**targets, **outputs}
        missing = [name for name in self.on if name not in available]
        if missing:
            raise InputError(f"The loss needs {', '.join(missing)}, which neither the network nor the data provide.")
        loss = self.losses[min(level, len(self.losses) - 1)]
        result: Tensor = loss(*[available[name] for name in self.on])
        return result


class RegistrationLoss(nn.Module):
    """Sum over terms and levels: ``sum_i level_weights[i] * sum_t weight_t * term_t(level i)``.

    The moving image is warped once per level and all terms share it. With more than one level the images, and the
    label maps if a term looks at them, are reduced by ``pyramid``. All of it is float32.

    Args:
        terms: name to term; terms of weight 0 are left out.
        level_weights: one weight per level, finest first; a single one uses the final displacement alone, and of
            several velocities the finest.
        pyramid: reduces images and labels level by level, needed for more than one level.

    Raises:
        InputError: when no term has a weight, a term has more losses than there are levels, or several
            levels come without a pyramid.
    """

    def __init__(
        self,
        terms: Mapping[str, Term],
        level_weights: Sequence[float] = (1.0,),
        pyramid: ImagePyramid | None = None,
    ) -> None:
        super().__init__()
        if len(level_weights) > 1 and pyramid is None:
            raise InputError(
                f"{len(level_weights)} level weights need a pyramid of the images; give one, or one weight."
            )
        for name, term in terms.items():
            if not 1 <= len(term.losses) <= len(level_weights):
                raise InputError(
                    f"Term {name!r} has {len(term.losses)} losses for {len(level_weights)} level weights; "
                    "give it at most one per level."
                )
        self.terms = nn.ModuleDict({name: term for name, term in terms.items() if term.weight != 0})
        if not self.terms:
            raise InputError("No term of the loss has a weight other than 0; nothing would be trained.")
        self.level_weights = tuple(level_weights)
        self.pyramid = pyramid
        self._looks_at = {name for term in self.terms.values() for name in term.on}  # type: ignore[union-attr]
        self._last: dict[str, Tensor] = {}

    def forward(self, outputs: Mapping[str, Any], targets: Mapping[str, Any]) -> Tensor:
        """The total of one batch.

        Args:
            outputs: of the network: ``ddf``, with a pyramid of images the list ``pyramid`` (finest first), and what
                the terms look at.
            targets: ``moving`` and ``fixed`` (B, 1, *spatial), and the label maps that the terms look at.

        Returns:
            A scalar; :meth:`terms_of_last_call` tells what it is made of.

        Raises:
            InputError: when a term looks at something that is not there, or the network has too few levels.
        """
        device_type = targets["fixed"].device.type
        with torch.autocast(device_type, enabled=False):
            totals: dict[str, Tensor] = {}
            for level, (level_outputs, level_targets) in enumerate(self._levels(outputs, targets)):
                for name, term in self.terms.items():
                    value = self.level_weights[level] * term(level_outputs, level_targets, level)
                    totals[name] = totals[name] + value if name in totals else value
            self._last = {name: value.detach() for name, value in totals.items()}
            weighted = [term.weight * totals[name] for name, term in self.terms.items()]  # type: ignore[operator]
            return torch.stack(weighted).sum()

    def terms_of_last_call(self) -> dict[str, float]:
        """Value of each term in the last call, summed over levels with their weights, before the term's own weight."""
        return {name: float(value) for name, value in self._last.items()}

    def _levels(
        self, outputs: Mapping[str, Any], targets: Mapping[str, Any]
    ) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        count = len(self.level_weights)
        if self.pyramid is None:
            final = dict(outputs)
            if isinstance(final.get("velocity"), Sequence):
                final["velocity"] = final["velocity"][0]
            return [(self._with_warped(final, targets), dict(targets))]
        displacements = outputs["pyramid"]
        if len(displacements) < count:
            raise InputError(f"{count} level weights do not fit a network with {len(displacements)} levels.")
        size = displacements[0].shape[2:]
        names = [name for name in targets if name in self._looks_at or name in ("moving", "fixed")]
        reducers: dict[str, Callable[..., list[Tensor]]] = {
            name: self.pyramid.labels if name.endswith("_label") else self.pyramid for name in names
        }
        reduced = {name: reducers[name](_pad_to(targets[name], size), count) for name in names}
        levels = []
        for level in range(count):
            level_targets = {name: reduced[name][level] for name in names}
            level_outputs = {"ddf": displacements[level]}
            if "velocity" in outputs:
                level_outputs["velocity"] = outputs["velocity"][level]
            levels.append((self._with_warped(level_outputs, level_targets), level_targets))
        return levels

    def _with_warped(self, outputs: dict[str, Any], targets: Mapping[str, Any]) -> dict[str, Any]:
        if "warped" in self._looks_at:
            outputs["warped"] = warp(targets["moving"], outputs["ddf"], padding_mode="zeros")
        return outputs


def _pad_to(image: Tensor, size: Sequence[int]) -> Tensor:
    """Zeros at the far ends, as the network pads inside."""
    missing = [wanted - n for wanted, n in zip(size, image.shape[2:], strict=True)]
    return F.pad(image, [amount for n in reversed(missing) for amount in (0, n)]) if any(missing) else image
