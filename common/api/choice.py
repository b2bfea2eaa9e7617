# SPDX-License-Identifier: Apache-2.0
"""Which bundle registers two scans, by what a person says of them; nothing is guessed from the scans themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Choice(NamedTuple):
    """A bundle for two scans.

    Attributes:
        bundle: its name.
        options: of its ``configs/inference.json``.
        why: a clause that says so to a person.
    """

    bundle: str
    options: Mapping[str, Any]
    why: str


_BRAIN_VOXELS = [2.0, 2.0, 2.0]
"""Millimetres; the lengths that SynthMorph was trained with are those of brains at this size."""
CHOICES = {
    ("any", "same"): Choice("instance_any", {"similarity": "lncc"}, "no network, the pair alone is looked at"),
    ("any", "unlike"): Choice("instance_any", {"similarity": "mi"}, "no network, the pair alone is looked at"),
    ("brain", "same"): Choice("dp_conv_c_brains", {"similarity": "lncc_ncc"}, "a network trained on T1 brains"),
    ("brain", "unlike"): Choice(
        "synthmorph_shapes3d",
        {"similarity": "mi", "spacing": _BRAIN_VOXELS},
        "a network trained on random shapes, for any contrast",
    ),
}
"""By anatomy and contrast."""
ANATOMIES = tuple(dict.fromkeys(anatomy for anatomy, _ in CHOICES))
CONTRASTS = tuple(dict.fromkeys(contrast for _, contrast in CHOICES))
IO_STEPS = 50
"""Of optimisation on the pair, on each level, unless another number is asked for."""
