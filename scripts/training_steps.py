# SPDX-License-Identifier: Apache-2.0
"""The networks whose forward pass and training step ``benchmark.py`` measures, in a plain form and in ours.

Imports torch where it is needed: the benchmark sets the environment of threads before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from common.losses import RegistrationLoss

PUBLISHED = "published form, re-enacted"
VARIANTS = (PUBLISHED, "ours, float32", "ours, bfloat16 autocast")


@dataclass
class Form:
    """One form of a network.

    Attributes:
        network: its parameters are what is trained.
        forward: registers (moving, fixed), (B, 1, *size) each, without a loss.
        loss: the loss of one training step of (moving, fixed).
    """

    network: nn.Module
    forward: Callable[[Tensor, Tensor], Any]
    loss: Callable[[Tensor, Tensor], Tensor]


@dataclass
class Compared:
    """A network, and what is known of its published code.

    Attributes:
        title: network and loss in words.
        published: makes the plain form for a size of the image; further arguments make it smaller than published.
        ours: makes network and loss, with the same further arguments.
        seconds: CPU seconds of one training step of the published code at 64x96x96 on one thread of another machine.
        gigabytes: its peak memory, None where it is not known.
    """

    title: str
    published: Callable[..., Form]
    ours: Callable[..., tuple[nn.Module, RegistrationLoss]]
    seconds: float
    gigabytes: float | None = None

    def form(self, variant: str, size: Sequence[int], **arguments: Any) -> Form:
        """The form of one of the variants, for images of a size; with ``arguments`` other than of published size."""
        if variant == PUBLISHED:
            return self.published(tuple(size), **arguments)
        return _as_run(*self.ours(**arguments), bfloat16="bfloat16" in variant)


def _as_run(network: nn.Module, criterion: RegistrationLoss, bfloat16: bool) -> Form:
    """Ours, as the bundles run it."""
    import torch

    from common.memory import keep_freed_memory

    keep_freed_memory()

    def run(moving: Tensor, fixed: Tensor, details: Any = False) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return network(torch.cat([moving, fixed], dim=1), details)

    def loss(moving: Tensor, fixed: Tensor) -> Tensor:
        targets = {"moving": moving, "fixed": fixed}
        # Masks of nothing but ones, for the terms that look at masks.
        masks = {f"{name}_mask": torch.ones_like(image) for name, image in targets.items()}
        total: Tensor = criterion(run(moving, fixed, criterion.details), targets | masks)
        return total

    return Form(network, run, loss)


def _published_eoir(size: tuple[int, ...], channels: int = 32) -> Form:
    from scripts.textbook import TextbookEOIR, TextbookLoss

    network, criterion = TextbookEOIR(size, channels), TextbookLoss(size)
    return Form(network, network, lambda moving, fixed: criterion(moving, fixed, *network(moving, fixed)))


def _our_eoir(channels: int = 32) -> tuple[nn.Module, RegistrationLoss]:
    from common.losses import GradientLoss, ImagePyramid, LNCCLoss, RegistrationLoss, Term
    from common.networks import EOIR

    terms = {"lncc": Term(LNCCLoss(), ["warped", "fixed"]), "smooth": Term(GradientLoss(), ["velocity"], 5)}
    criterion = RegistrationLoss(terms, [0.5**level for level in range(5)], ImagePyramid())
    return EOIR(start_channel=channels), criterion


def _published_vfa(size: tuple[int, ...], channels: int = 8) -> Form:
    from scripts.textbook_vfa import TextbookVFA, TextbookVFALoss

    network, criterion = TextbookVFA(size, channels), TextbookVFALoss()
    identity = network.identities[0]
    return Form(network, network, lambda moving, fixed: criterion(moving, fixed, network(moving, fixed), identity))


def _our_vfa(channels: int = 8) -> tuple[nn.Module, RegistrationLoss]:
    from common.losses import GradientLoss, LNCCLoss, MaskedLoss, RegistrationLoss, Term
    from common.losses.lncc import CONVENTIONS
    from common.networks import VFA

    lncc = LNCCLoss(**CONVENTIONS["vfa"])
    terms = {"lncc": Term(MaskedLoss(lncc), ["warped", "fixed", "ddf"]), "smooth": Term(GradientLoss(), ["ddf"])}
    network = VFA(start_channels=channels, matching_channels=channels)
    return network, RegistrationLoss(terms, padding_mode="border")


def _published_sitreg(size: tuple[int, ...], **arguments: Any) -> Form:
    from scripts.textbook_sitreg import TextbookSITReg, TextbookSITRegLoss

    network, criterion = TextbookSITReg(size, **arguments), TextbookSITRegLoss(size)
    return Form(network, network, lambda moving, fixed: criterion(moving, fixed, *network(moving, fixed)))


def _our_sitreg(**arguments: Any) -> tuple[nn.Module, RegistrationLoss]:
    from common.losses import GradientLoss, LNCCLoss, MaskedLoss, RegistrationLoss, Term
    from common.networks import SITReg

    # An image is its own mask.
    lncc, terms = MaskedLoss(LNCCLoss(kernel_size=11, offset=0.0), "bilinear"), {}
    ways = (("warped", "fixed", "moving", "ddf"), ("warped_back", "moving", "fixed", "inverse_ddf"))
    for warped, target, source, field in ways:
        terms[f"lncc_{warped}"] = Term(lncc, [warped, target, field, target, source], 0.5)
        terms[f"smooth_{warped}"] = Term(GradientLoss(), [field], 0.5)
    return SITReg(**arguments), RegistrationLoss(terms)


def _published_dual_pyramid(size: tuple[int, ...], variant: str, **arguments: Any) -> Form:
    from scripts.textbook_dual_pyramid import TextbookDualPyramid, TextbookDualPyramidLoss, TextbookInverseConsistent

    criterion = TextbookDualPyramidLoss(size)
    network: nn.Module
    if variant == "convic_c":
        network = TextbookInverseConsistent(size, **arguments)
        return Form(network, network, lambda moving, fixed: criterion(moving, fixed, *network(moving, fixed)))
    network = TextbookDualPyramid(size, variant == "vfa", **arguments)
    return Form(network, network, lambda moving, fixed: criterion(moving, fixed, network(moving, fixed)))


def _our_dual_pyramid(variant: str, **arguments: Any) -> tuple[nn.Module, RegistrationLoss]:
    from common.losses import GradientLoss, LNCCLoss, RegistrationLoss, Term
    from common.losses.lncc import CONVENTIONS
    from common.networks import DualPyramid

    lncc, terms = LNCCLoss(**CONVENTIONS["dual_pyramid"]), {}
    sides = [("warped", "fixed", "ddf"), ("warped_back", "moving", "inverse_ddf")][: 1 + (variant == "convic_c")]
    for warped, target, field in sides:
        terms[f"lncc_{warped}"] = Term(lncc, [warped, target], 1 / len(sides))
        terms[f"smooth_{warped}"] = Term(GradientLoss(), [field], 1 / len(sides))
    return DualPyramid(variant=variant, **arguments), RegistrationLoss(terms, padding_mode="border")


def _published_voxelmorph(size: tuple[int, ...], steps: int, **arguments: Any) -> Form:
    from scripts.textbook_voxelmorph import TextbookVoxelMorph, TextbookVoxelMorphLoss

    network, criterion = TextbookVoxelMorph(size, steps, **arguments), TextbookVoxelMorphLoss(size)
    return Form(network, network, lambda moving, fixed: criterion(moving, fixed, *network(moving, fixed)))


def _our_voxelmorph(steps: int, **arguments: Any) -> tuple[nn.Module, RegistrationLoss]:
    from common.losses import GradientLoss, LNCCLoss, RegistrationLoss, Term
    from common.networks import VoxelMorph

    # The published weight of the penalty is the coarseness of the velocity's grid.
    smooth = Term(GradientLoss(), ["velocity"], 2 if steps else 1)
    criterion = RegistrationLoss({"lncc": Term(LNCCLoss(), ["warped", "fixed"]), "smooth": smooth})
    return VoxelMorph(int_steps=steps, **arguments), criterion


def _voxelmorph(title: str, steps: int, seconds: float) -> Compared:
    published, ours = partial(_published_voxelmorph, steps=steps), partial(_our_voxelmorph, steps)
    return Compared(title, published, ours, seconds, 1.6)


def _published_transmorph(size: tuple[int, ...], **arguments: Any) -> Form:
    from scripts.textbook import DenseLNCC, StoredGridWarp, squared_gradient
    from scripts.textbook_transmorph import TextbookTransMorph

    network, similarity, sample = TextbookTransMorph(**arguments), DenseLNCC(), StoredGridWarp(size)

    def loss(moving: Tensor, fixed: Tensor) -> Tensor:
        field = network(moving, fixed)
        return similarity(sample(moving, field), fixed) + squared_gradient(field)

    return Form(network, network, loss)


def _our_transmorph(**arguments: Any) -> tuple[nn.Module, RegistrationLoss]:
    from common.losses import GradientLoss, LNCCLoss, RegistrationLoss, Term
    from common.networks import TransMorph

    terms = {"lncc": Term(LNCCLoss(), ["warped", "fixed"]), "smooth": Term(GradientLoss(), ["flow"])}
    return TransMorph(**arguments), RegistrationLoss(terms, padding_mode="zeros")


def _dual_pyramid(title: str, variant: str, seconds: float, gigabytes: float) -> Compared:
    published, ours = partial(_published_dual_pyramid, variant=variant), partial(_our_dual_pyramid, variant)
    return Compared(title, published, ours, seconds, gigabytes)


COMPARED = {
    "eoir": Compared("EOIR, LUMIR loss", _published_eoir, _our_eoir, 20.4, 3.3),
    "vfa": Compared("VFA, LUMIR loss", _published_vfa, _our_vfa, 21.6, 4.2),
    "sitreg": Compared("SITReg, size and first loss of LUMIR", _published_sitreg, _our_sitreg, 26.8, 4.1),
    "voxelmorph": _voxelmorph("VoxelMorph-2", 0, 6.8),
    "voxelmorph_diff": _voxelmorph("VoxelMorph-2, diffeomorphic", 7, 8.2),
    "transmorph": Compared("TransMorph, IXI loss", _published_transmorph, _our_transmorph, 8.1),
    "dp_conv_c": _dual_pyramid("DP-Conv-C", "conv_c", 15.1, 2.4),
    "dp_convic_c": _dual_pyramid("DP-ConvIC-C", "convic_c", 43.0, 5.0),
    "dp_vfa": _dual_pyramid("DP-VFA", "vfa", 14.9, 4.1),
}
"""By method; the published code was measured on one core (Zen 5) with torch 2.13 (EOIR) and 2.15."""
