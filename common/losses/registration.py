# SPDX-License-Identifier: Apache-2.0
"""The weighted sum of named terms over levels and both directions that a registration network is trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.checks import InputError
from common.losses.pyramid import ImagePyramid
from common.spatial import field_map, warp, warp_labels

WARPS = {
    "warped": ("moving", "ddf"),
    "warped_back": ("fixed", "inverse_ddf"),
    "warped_label": ("moving_label", "ddf"),
    "warped_back_label": ("fixed_label", "inverse_ddf"),
}
"""What is made where a term looks at it: name to (image, field that it is sampled by)."""
MAPS = {"map": "ddf", "inverse_map": "inverse_ddf"}
"""Maps of points that dense fields stand in for where a network has none of its own."""
PYRAMIDS = {"ddf": "pyramid", "inverse_ddf": "inverse_pyramid"}
"""Fields of the levels, finest first, which count as the field of their level."""


class Term(nn.Module):
    """A loss, what it looks at, and its weight.

    Args:
        loss: takes the tensors named in ``on`` and returns a scalar; a sequence has one loss per level, finest first,
            the last of which serves all coarser levels.
        on: names in the order of the loss's arguments: outputs of the network at a level ("ddf", "velocity",
            "inverse_ddf", "map", ...; docs/conventions.md lists them), what is made of them (:data:`WARPS`) and what
            the data have ("moving", "fixed", "moving_label", "fixed_mask", "draw", ...). Of a mask that the data do not
            have the loss gets None.
        weight: factor of the term in the total.
    """

    def __init__(self, loss: nn.Module | Sequence[nn.Module], on: Sequence[str], weight: float = 1.0) -> None:
        super().__init__()
        self.losses = nn.ModuleList([loss] if isinstance(loss, nn.Module) else loss)
        self.on = tuple(on)
        self.weight = weight

    @property
    def looks_at_labels(self) -> bool:
        """Whether the term can be computed only of pairs with label maps."""
        return any(name.endswith("_label") for name in self.on)

    def forward(self, available: Mapping[str, Any], level: int = 0) -> Tensor:
        """The unweighted loss of one level.

        Args:
            available: name to what there is at this level.
            level: 0 is the finest.

        Raises:
            InputError: when a name of ``on`` is not there.
        """
        missing = [name for name in self.on if name not in available and not name.endswith("_mask")]
        if missing:
            advice = ""
            if self.looks_at_labels:
                advice = " Give the scans label maps, or train without (--supervised false, where a bundle has it)."
            needed = ", ".join(missing)
            raise InputError(f"The loss needs {needed}, which neither the network nor the data provide.{advice}")
        loss = self.losses[min(level, len(self.losses) - 1)]
        result: Tensor = loss(*[available.get(name) for name in self.on])
        return result


class RegistrationLoss(nn.Module):
    """Sum over terms and levels: ``sum_i level_weights[i] * sum_t weight_t * term_t(level i)``.

    Each image is warped at most once per level, and all terms share it. With more than one level the images, and the
    label maps if a term looks at them, are reduced by ``pyramid``; of each list that the network returns a level gets
    its own entry, and what is no list counts at the finest level alone. All of it is float32.

    Args:
        terms: name to term; terms of weight 0 are left out.
        level_weights: one weight per level, finest first; a single one uses the final displacement alone, and of
            each list its finest entry.
        pyramid: reduces images and labels level by level, needed for more than one level.
        padding_mode: what warped images are outside: "zeros" or "border" (the nearest voxel); label maps are 0 there.

    Raises:
        InputError: when no term has a weight, a term has more losses than there are levels, or several
            levels come without a pyramid.
    """

    def __init__(
        self,
        terms: Mapping[str, Term],
        level_weights: Sequence[float] = (1.0,),
        pyramid: ImagePyramid | None = None,
        padding_mode: str = "zeros",
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
        self.padding_mode = padding_mode
        looked_at = dict.fromkeys(name for term in self.terms.values() for name in term.on)  # type: ignore[union-attr]
        self._made = [name for name in looked_at if name in WARPS]
        made_of = (name for made in self._made for name in WARPS[made])
        fields = [MAPS[name] for name in looked_at if name in MAPS]
        named = dict.fromkeys((*(name for name in looked_at if name not in WARPS), *made_of))
        self._stand_ins = {field for field in fields if field not in named}
        self._needed = tuple(dict.fromkeys((*named, *fields)))
        self._last: dict[str, Tensor] = {}
        self._total: Tensor | None = None
        self._fetched: dict[str, float] | None = {}

    @property
    def details(self) -> tuple[str, ...]:
        """Names that the terms look at, for ``network(image, details=...)``: those of the data are among them.

        Fields that only stand in for a map are named by a pattern: networks that have the map need not make them.
        """
        if self.pyramid is None:
            return tuple(f"{name}*" if name in self._stand_ins else name for name in self._needed)
        fields = (PYRAMIDS[name] for name in self._needed if name in PYRAMIDS)
        # That of the displacement is needed in any case: it tells the size that the network works on.
        return tuple(dict.fromkeys((*self._needed, PYRAMIDS["ddf"], *fields)))

    def forward(self, outputs: Mapping[str, Any], targets: Mapping[str, Any]) -> Tensor:
        """The total of one batch.

        Args:
            outputs: of the network: ``ddf`` unless all that would look at it looks at a map, with a pyramid of images
                the list ``pyramid`` (finest first), and what the terms look at.
            targets: of the data: images (B, 1, *spatial), label maps, masks and whatever else the terms look at. Where
                some pairs lack label maps, "labelled" tells which have them, as a list: a term of labels is then the
                mean over these, and counts by their share of the batch.

        Returns:
            A scalar; :meth:`terms_of_last_call` tells what it is made of, without the terms that no pair has.

        Raises:
            InputError: when a term looks at something that is not there, or the network has too few levels.
        """
        labelled = targets.get("labelled")
        chosen = None if labelled is None else [pair for pair, has in enumerate(labelled) if has]
        device = next(v.device for v in (*outputs.values(), *targets.values()) if isinstance(v, Tensor))
        with torch.autocast(device.type, enabled=False):
            totals: dict[str, Tensor] = {}
            terms: dict[str, Term] = {name: term for name, term in self.terms.items() if isinstance(term, Term)}
            if chosen == []:
                terms = {name: term for name, term in terms.items() if not term.looks_at_labels}
            for level, available in enumerate(self._levels(outputs, targets)):
                for name, term in terms.items():
                    value = self.level_weights[level] * _of_pairs(term, available, level, chosen)
                    totals[name] = totals[name] + value if name in totals else value
            self._last = {name: value.detach() for name, value in totals.items()}
            weighted = [_weight(term, labelled) * totals[name] for name, term in terms.items()]
            # Of nothing but labels that no pair has, the gradient is 0.
            total = torch.stack(weighted).sum() if weighted else 0 * outputs["ddf"].sum()
            self._total, self._fetched = total.detach(), None
            return total

    def terms_of_last_call(self) -> dict[str, float]:
        """Value of each term in the last call, summed over levels with their weights, before the term's own weight."""
        if self._fetched is None:
            self.fetch()
        return dict(self._fetched or {})

    def fetch(self, *others: Tensor) -> list[float]:
        """Total of the last call and the values of ``others``, scalars on its device.

        On a GPU each transfer is waited for: the terms come in the same one, and :meth:`terms_of_last_call` has them.
        """
        assert self._total is not None, "the loss has not been called"
        total, *values = torch.stack([self._total, *others, *self._last.values()]).tolist()
        self._fetched = dict(zip(self._last, values[len(others) :], strict=True))
        return [total, *values[: len(others)]]

    @property
    def total(self) -> Tensor:
        """What the last call returned, without its graph."""
        assert self._total is not None, "the loss has not been called"
        return self._total

    def _levels(self, outputs: Mapping[str, Any], targets: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Per level everything that its terms may look at."""
        count = len(self.level_weights)
        levels: list[dict[str, Any]] = [{} for _ in range(count)]
        size: Sequence[int] = ()
        if self.pyramid is not None:
            displacements = outputs.get(PYRAMIDS["ddf"], [])
            if len(displacements) < count:
                raise InputError(f"{count} level weights do not fit a network with {len(displacements)} levels.")
            size = displacements[0].shape[2:]
        for name in self._needed:
            if name in targets:
                values = self._reduced(name, targets[name], size)
            elif name in PYRAMIDS and self.pyramid is not None:
                values = outputs.get(PYRAMIDS[name], [])
            else:
                values = outputs[name] if name in outputs else []
                values = values if isinstance(values, list | tuple) else [values]
                if 1 < len(values) < count:
                    raise InputError(
                        f"{count} level weights do not fit a network whose {name} has {len(values)} levels."
                    )
            for level, value in zip(levels, values, strict=False):
                level[name] = value
        for level in levels:
            self._add_made(level)
        return levels

    def _reduced(self, name: str, value: Any, size: Sequence[int]) -> list[Any]:
        """A target on the grids of the levels; what is no image has no coarser form, but the draw is one for all."""
        if name == "draw":
            return [value] * len(self.level_weights)
        if self.pyramid is None or not isinstance(value, Tensor) or value.ndim != len(size) + 2:
            return [value]
        reduce = self.pyramid.labels if name.endswith("_label") else self.pyramid
        return reduce(_pad_to(value, size), len(self.level_weights))

    def _add_made(self, level: dict[str, Any]) -> None:
        for name, field in MAPS.items():
            if name in self._needed and name not in level and field in level:
                level[name] = field_map(level[field])
        for name in self._made:
            image, field = WARPS[name]
            if name not in level and image in level and field in level:
                if level[image].is_floating_point():
                    level[name] = warp(level[image], level[field], padding_mode=self.padding_mode)
                else:
                    level[name] = warp_labels(level[image], level[field])


def _of_pairs(term: Term, available: Mapping[str, Any], level: int, chosen: Sequence[int] | None) -> Tensor:
    """A term of one level, over the pairs that have labels where it looks at these; None stands for all pairs."""
    if chosen is None or not term.looks_at_labels:
        value: Tensor = term(available, level)
        return value
    looked_at = {name: available[name] for name in term.on if name in available}
    if not all(isinstance(part, Tensor) for part in looked_at.values()):
        raise InputError("A term of labels and of a map of points needs labels of all pairs, or of none: list both so.")
    value = term({name: part[[*chosen]] for name, part in looked_at.items()}, level)
    return value


def _weight(term: Term, labelled: Sequence[bool] | None) -> float:
    """Of a term: each pair of the batch counts alike, and one without labels adds nothing to a term of these."""
    share = 1.0 if labelled is None or not term.looks_at_labels else sum(labelled) / len(labelled)
    return term.weight * share


def _pad_to(image: Tensor, size: Sequence[int]) -> Tensor:
    """Zeros at the far ends, as the network pads inside."""
    missing = [wanted - n for wanted, n in zip(size, image.shape[2:], strict=True)]
    return F.pad(image, [amount for n in reversed(missing) for amount in (0, n)]) if any(missing) else image
