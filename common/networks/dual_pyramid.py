# SPDX-License-Identifier: Apache-2.0
"""The dual-pyramid networks: one encoder, six ways to go from two feature pyramids to a displacement.

Paper: H. Liu et al., "Unsupervised deformable image registration revisited", MIDL 2025 short papers (OpenReview
DGvFGbX0EG). Repository: HengjieLiu/Unsupervised-DL-DIR-Revisited (MIT). Layout of its weights:
:mod:`common.weights.dual_pyramid`.

On purpose different from the published code: the two correlations of an inverse-consistent network are of one set of
products; only what is returned is composed; each pair of a batch is solved by itself; the gradient of an inverse is
exact; two-dimensional images and any size (padded inside).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple, overload

import torch.nn.functional as F
from torch import Tensor, nn

from common.blocks.correlation_lines import PADDING, PaddingMode
from common.blocks.dual_pyramid import EXCHANGED, Encoder, FlowBlock, features_to_feed, joined
from common.blocks.memory_format import channels_last
from common.blocks.remade import not_stored
from common.blocks.room import make_room
from common.blocks.varied_block import OPTIONS
from common.blocks.vector_field_attention import VectorFieldAttention
from common.checks import InputError
from common.networks.contract import Details, check_numbers, check_pair, crop, wants
from common.networks.sitreg import MULTIPLIER
from common.spatial import bspline_bound, bspline_field, compose, resize_image, warp
from common.spatial.fixed_point import SOLVERS
from common.spatial.symmetric import Halves, advance, at_level


class Variant(NamedTuple):
    """What a level of the decoder is made of.

    Attributes:
        fed: to its block of convolutions, in this order (:func:`features_to_feed` says what they are); nothing where
            attention compares the features instead.
        symmetric: whether both images move towards each other, by updates that can be inverted.
    """

    fed: tuple[str, ...]
    symmetric: bool = False


VARIANTS = {
    "conv_mf": Variant(("moving", "fixed")),
    "conv_mfc": Variant(("moving", "correlation", "fixed")),
    "conv_c": Variant(("correlation",)),
    "convic_mf": Variant(("moving", "fixed"), symmetric=True),
    "convic_c": Variant(("correlation_back", "correlation"), symmetric=True),
    "vfa": Variant(()),
}
"""The six networks, in the order of the paper."""
FURTHER = {
    "conv_diff": Variant(("moving", "difference", "fixed")),
    "conv_diffonly": Variant(("difference",)),
    "conv_diffsum": Variant(("difference", "sum")),
    "conv_mfc_flip": Variant(("moving", "correlation_back", "fixed")),
    "conv_c_flip": Variant(("correlation_back",)),
    "convic_diffsum": Variant(("difference", "sum"), symmetric=True),
}
"""What else the published code can feed; there are no results of these."""
KNOWN = {**VARIANTS, **FURTHER}
ATTENTION = ("cosine", "temperature")
"""Options of the attention."""

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    **{variant: {"variant": variant} for variant in VARIANTS},
    "tiny": {"channels": (2, 3, 4), "solver": "tight"},
}
"""Arguments of the published networks, and those that make any of them small enough for tests."""


class DualPyramid(nn.Module):
    """Two feature pyramids of one encoder, and from coarse to fine what one level after the other finds.

    Networks of one direction warp the moving features by what is known and add what is found. Inverse-consistent ones
    move both images towards each other like :class:`common.networks.SITReg`, so that exchanging the images exchanges
    the results.

    Args:
        spatial_dims: 2 or 3.
        variant: what the levels look at, a name of :data:`VARIANTS` or :data:`FURTHER`.
        channels: of the features of each level, finest first.
        decoder_channels: hidden channels of each level; None for twice those of the features or, in attention, as many.
        radius: of the correlation, in voxels of the level.
        padding_mode: what the features are outside that the correlation searches, "zeros" or "border".
        attention: options of :class:`common.blocks.vector_field_attention.VectorFieldAttention`, None for none.
        encoder_block: options of blocks other than the published ones, see :class:`common.blocks.dual_pyramid.Encoder`.
        decoder_block: the same of the decoder.
        solver: of the inverses, "default" or "tight" (:data:`common.spatial.fixed_point.SOLVERS`).

    Raises:
        InputError: for another number of dimensions, an unknown variant or solver, a number below 1, or lists that
            differ in length.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        *,
        variant: str = "conv_c",
        channels: Sequence[int] = (16, 32, 32, 64, 64),
        decoder_channels: Sequence[int] | None = None,
        radius: int = 1,
        padding_mode: PaddingMode = "zeros",
        attention: Mapping[str, Any] | None = None,
        encoder_block: Mapping[str, Any] | None = None,
        decoder_block: Mapping[str, Any] | None = None,
        solver: str = "default",
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "spatial_dims": spatial_dims,
            "variant": variant,
            "channels": [*channels],
            "decoder_channels": None if decoder_channels is None else [*decoder_channels],
            "radius": radius,
            "padding_mode": padding_mode,
            "attention": attention and {**attention},
            "encoder_block": encoder_block and {**encoder_block},
            "decoder_block": decoder_block and {**decoder_block},
            "solver": solver,
        }
        _check(self.arguments)
        self.spatial_dims, self.levels = spatial_dims, len(channels)
        self.variant, self.solver, self.window = KNOWN[variant], SOLVERS[solver], (radius, padding_mode)
        self.encoder = Encoder(spatial_dims, channels, encoder_block)
        self.decoder = nn.ModuleList(
            FlowBlock(spatial_dims, fed_channels(variant, spatial_dims, features, radius), hidden, decoder_block)
            if self.variant.fed
            else VectorFieldAttention(spatial_dims, features, hidden, **(attention or {}))
            for features, hidden in zip(channels, decoder_channels or hidden_channels(variant, channels), strict=True)
        )
        self.bounds = [MULTIPLIER * bspline_bound((2**level,) * spatial_dims) for level in range(self.levels)]
        channels_last(self, spatial_dims)

    @overload
    def forward(self, image: Tensor, details: Literal[False] = False) -> Tensor: ...

    @overload
    def forward(self, image: Tensor, details: Literal[True] | Collection[str]) -> dict[str, Any]: ...

    def forward(self, image: Tensor, details: Details = False) -> Tensor | dict[str, Any]:
        """Register a pair.

        Args:
            image: (B, 2, *spatial), channel 0 moving, channel 1 fixed, any spatial size. Intensities of any scale.
            details: further outputs that are wanted, by name, or True for all.

        Returns:
            The ``ddf`` (B, d, *spatial), float32 voxels; with ``details`` a dict of it and, where asked for,

            - ``pyramid``: of networks of one direction the displacement of each level, finest first, in voxels of its
              grid, where level 0 covers the image padded at the far ends to the working size; of inverse-consistent
              ones the result after each level, finest first, all on the grid and in voxels of the image;
            - of inverse-consistent networks ``inverse_ddf``, the way back, which equals the ``ddf`` of the exchanged
              images, and ``inverse_pyramid``.

        Raises:
            ValueError: when ``image`` has not two channels or not ``spatial_dims`` spatial axes.
        """
        check_pair(image, self.spatial_dims)
        size = image.shape[2:]
        image = F.pad(image, _padding(size, 2 ** (self.levels - 1)))
        # One image after the other: the same numbers as a joint batch, at half the transient memory.
        moving, fixed = (self.encoder(image[:, c : c + 1]) for c in (0, 1))
        if self.variant.symmetric:
            return _outputs(self._towards_each_other(moving, fixed, image.shape[2:]), size, details)
        pyramid = self._one_way(moving, fixed)
        ddf = crop(pyramid[0], size)
        if not details:
            return ddf
        return {"ddf": ddf, **({"pyramid": pyramid} if wants(details, "pyramid") else {})}

    def _one_way(self, moving: list[Tensor], fixed: list[Tensor]) -> list[Tensor]:
        """Displacements of all levels, finest first."""
        ddfs: list[Tensor] = []
        for level in reversed(range(self.levels)):
            m, f = moving[level], fixed[level]
            if level == 0:
                make_room(m)
            # As published: twice the displacement from corner to corner, where it should be (2 n - 1) / (n - 1) times.
            known = 2 * resize_image(ddfs[0], f.shape[2:]) if ddfs else None
            if known is not None:
                m = warp(m, known).to(m.dtype)
            found = self._found(level, m, f)
            ddfs.insert(0, found if known is None else compose(known, found))
        make_room(ddfs[0])
        return ddfs

    def _found(self, level: int, moving: Tensor, fixed: Tensor) -> Tensor:
        """What one level finds between features that are warped by what is known."""
        names, block = self.variant.fed, self.decoder[level]
        if not names:
            result: Tensor = block(fixed, moving)
        else:
            made = features_to_feed(names, moving, fixed, self.window)
            fed = joined([made[name] for name in names])
            with not_stored(fed):
                result = block(fed.value)
        return result

    def _towards_each_other(self, moving: list[Tensor], fixed: list[Tensor], size: Sequence[int]) -> list[Halves]:
        """The halves after the updates of each level, finest first."""
        halves: list[Halves] = []
        for level in reversed(range(self.levels)):
            known = halves[0] if halves else None
            m, f = moving[level], fixed[level]
            if level == 0:
                make_room(m)
            if known is not None:
                # The way to the level takes coarse voxels to begin where the image does; convolutions of stride 2
                # put their centres elsewhere. As published.
                m, f = (
                    warp(x, at_level(half, 2**level)).to(x.dtype) for x, half in ((m, known.left), (f, known.right))
                )
            first, second = (
                bspline_field(self.bounds[level] * control.tanh(), size, 2**level)
                for control in self._both_found(level, m, f)
            )
            halves.insert(0, advance(known, first, second, self.solver))
        make_room(halves[0].left)
        return halves

    def _both_found(self, level: int, moving: Tensor, fixed: Tensor) -> Sequence[Tensor]:
        """What one level finds, and what it finds when the images are exchanged."""
        names, block = self.variant.fed, self.decoder[level]
        assert isinstance(block, FlowBlock)
        back = [EXCHANGED[name] for name in names]
        made = features_to_feed(names, moving, fixed, self.window)
        if back == [*reversed(names)]:
            return block.of_exchanged(*(made[name] for name in names))
        return [block(joined([made[name] for name in order]).value) for order in (names, back)]


def hidden_channels(variant: str, channels: Sequence[int]) -> list[int]:
    """Channels of the decoder's levels, as published for features of so many."""
    return [n if variant == "vfa" else 2 * n for n in channels]


def fed_channels(variant: str, spatial_dims: int, features: int, radius: int) -> int:
    """Channels that the block of a level takes, where an image has so many features."""
    window = (2 * radius + 1) ** spatial_dims
    return sum(window if name.startswith("correlation") else features for name in KNOWN[variant].fed)


def _outputs(halves: list[Halves], size: Sequence[int], details: Details) -> Tensor | dict[str, Any]:
    """What there is of halves, finest first, on the grid of the image."""
    if not details:
        return crop(compose(halves[0].left, halves[0].right_inverse), size)
    all_levels = wants(details, "pyramid") or wants(details, "inverse_pyramid")
    levels = [[crop(ddf, size) for ddf in half.between()] for half in (halves if all_levels else halves[:1])]
    pyramid, inverse_pyramid = ([level[side] for level in levels] for side in (0, 1))
    outputs = {"inverse_ddf": inverse_pyramid[0], "pyramid": pyramid, "inverse_pyramid": inverse_pyramid}
    return {"ddf": pyramid[0], **{name: output for name, output in outputs.items() if wants(details, name)}}


def _padding(size: Sequence[int], unit: int) -> list[int]:
    """Zeros at the far end of each axis: multiples of ``unit``, and more than one voxel on the coarsest level.

    Arithmetic alone, see :func:`common.networks.contract.padded`, which gives two voxels along each axis.
    """
    units = [(n + unit - 1) // unit for n in size]
    units[0] = units[0] + 1 // math.prod(units)
    missing = [count * unit - n for count, n in zip(units, size, strict=True)]
    return [amount for n in reversed(missing) for amount in (0, n)]


def _check(arguments: dict[str, Any]) -> None:
    dims, variant, solver = arguments["spatial_dims"], arguments["variant"], arguments["solver"]
    if dims not in (2, 3):
        raise InputError(f"spatial_dims is {dims!r}; expected 2 or 3.")
    if variant not in KNOWN:
        raise InputError(f"variant is {variant!r}; expected one of {list(KNOWN)}.")
    if arguments["padding_mode"] not in PADDING:
        raise InputError(f"padding_mode is {arguments['padding_mode']!r}; expected one of {list(PADDING)}.")
    if solver not in SOLVERS:
        raise InputError(f"solver is {solver!r}; expected one of {sorted(SOLVERS)}.")
    channels, hidden = arguments["channels"], arguments["decoder_channels"]
    if not channels or (hidden is not None and len(hidden) != len(channels)):
        raise InputError(f"channels is {channels} and decoder_channels {hidden}; give one number for each level.")
    for name, known in {"attention": ATTENTION, "encoder_block": OPTIONS, "decoder_block": OPTIONS}.items():
        if unknown := sorted(set(arguments[name] or ()) - set(known)):
            raise InputError(f"{name} has {', '.join(unknown)}; its options are {', '.join(known)}.")
    check_numbers(1, radius=arguments["radius"])
    for name in ("channels", "decoder_channels"):
        for level, number in enumerate(arguments[name] or ()):
            check_numbers(1, **{f"{name}[{level}]": number})
