# SPDX-License-Identifier: Apache-2.0
"""TransMorph's published checkpoints: what they tell of the network, and their entries under our names and back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from common.checks import InputError
from common.networks.transmorph import TransMorph
from common.spatial import identity_grid
from common.weights.family import Description, Family
from common.weights.state_dicts import Converted, KeyMap

# Of the parts of a group of voxels that become one: ours k is the official number PARTS[k], by the number of axes.
PARTS = {2: (0, 1, 2, 3), 3: (0, 3, 2, 5, 1, 6, 4, 7)}


def key_map(arguments: Mapping[str, Any]) -> KeyMap:
    """Official name -> ours, of the network with these arguments."""
    parts = PARTS[arguments["spatial_dims"]]
    back = tuple(parts.index(k) for k in range(len(parts)))

    def sorted_parts(name: str) -> Converted:
        return Converted(name, lambda x: _sorted(x, parts), lambda x: _sorted(x, back))

    full, conv_skip = arguments["output_resolution"] == "full", arguments["conv_skip"]
    last = len(arguments["depths"]) - 1
    return {
        r"^transformer\.patch_embed\.": "unet.encoder.patch_embed.",
        r"^transformer\.layers\.(\d+)\.blocks\.(\d+)\.mlp\.fc": r"unet.encoder.stages.\1.blocks.\2.mlp.linear",
        r"^transformer\.layers\.(\d+)\.blocks\.": r"unet.encoder.stages.\1.blocks.",
        r"^transformer\.layers\.(\d+)\.downsample\.": sorted_parts(r"unet.encoder.merge.\1."),
        rf"^transformer\.norm({'.*' if arguments['trans_skip'] else last})\.": r"unet.encoder.norms.\1.",
        r"^transformer\.norm\d+\.": None,
        r"^up(\d+)\.conv1\.0\.": r"unet.up.\1.first.conv.",
        r"^up(\d+)\.conv2\.0\.": r"unet.up.\1.second.conv.",
        r"^c1\.0\.": "unet.of_images.0.conv." if conv_skip else None,
        r"^c2\.0\.": "unet.of_images.1.conv." if conv_skip and full else None,
        r"^reg_head\.0\.": "head.conv.",
    }


def _sorted(value: Tensor, parts: Sequence[int]) -> Tensor:
    """Parts of the last axis in another order."""
    return value.unflatten(-1, (len(parts), -1))[..., [*parts], :].flatten(-2)


def describe_official(state: Mapping[str, Tensor], variant: str | None = None) -> Description:
    """Read widths, depths and the form of the network off an official state dict.

    Args:
        state: official name to tensor.
        variant: there is none.

    Raises:
        InputError: not a TransMorph network, a variant, or indices that do not belong to windows.
    """
    if variant is not None:
        raise InputError(f"What network of TransMorph it is, a checkpoint tells itself; leave --variant {variant} out.")
    grid = state.get("spatial_trans.grid")
    described = _description(state, _OFFICIAL)
    described |= _window(state)
    return Description(described, None if grid is None else tuple(grid.shape[2:]))


def describe_ours(state: Mapping[str, Tensor], configured: Mapping[str, Any]) -> Description:
    """The same of a state dict under our names.

    Args:
        state: what ``models/model.pt`` holds.
        configured: arguments of the bundle's network.

    Raises:
        InputError: not a TransMorph network.
    """
    return Description({**configured, **_description(state, _OURS)})


# Names of the entries that tell: of patches, of blocks, of the decoder's first convolutions, of the head.
_OFFICIAL = {
    "patch": "transformer.patch_embed.proj.weight",
    "block": "transformer.layers.{}.blocks.{}",
    "up": "up{}.conv1.0.weight",
    "head": "reg_head.0.weight",
}
_OURS = {
    "patch": "unet.encoder.patch_embed.proj.weight",
    "block": "unet.encoder.stages.{}.blocks.{}",
    "up": "unet.up.{}.first.conv.weight",
    "head": "head.conv.weight",
}


def _description(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Any]:
    first = names["block"].format(0, 0)
    needed = [names["patch"], f"{first}.attn.relative_position_bias_table", names["up"].format(0), names["head"]]
    missing = [name for name in needed if name not in state]
    if missing:
        entries = ", ".join(list(state)[:3])
        raise InputError(f"This is no checkpoint of TransMorph: {missing[0]} is missing; its first are {entries}.")
    depths: list[int] = []
    while f"{names['block'].format(len(depths), 0)}.norm1.weight" in state:
        stage = len(depths)
        depths.append(_count(state, lambda j, i=stage: f"{names['block'].format(i, j)}.norm1.weight"))
    tables = [f"{names['block'].format(i, 0)}.attn.relative_position_bias_table" for i in range(len(depths))]
    patch, ups = state[names["patch"]], _count(state, lambda k: names["up"].format(k))
    full = ups > len(depths)
    of_skip = state[names["up"].format(ups - 1)].shape[1] - _inputs(state, names, ups - 1)
    return {
        "spatial_dims": patch.ndim - 2,
        "embed_dim": patch.shape[0],
        "depths": depths,
        "heads": [state[name].shape[1] for name in tables],
        "output_resolution": "full" if full else "half",
        "align_corners": full,
        "head_channels": state[names["head"]].shape[1],
        "qkv_bias": f"{first}.attn.qkv.bias" in state,
        "conv_skip": of_skip > 0,
        "trans_skip": state[names["up"].format(0)].shape[1] > patch.shape[0] * 2 ** (len(depths) - 1),
    }


def _count(state: Mapping[str, Tensor], name: Any) -> int:
    count = 0
    while name(count) in state:
        count += 1
    return count


def _inputs(state: Mapping[str, Tensor], names: Mapping[str, str], k: int) -> int:
    """Channels that a block of the decoder has from the one before."""
    return state[names["up"].format(k - 1)].shape[0]


def _window(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Sides of the windows, of the indices that official files hold; nothing where they do not."""
    indices = {name: value for name, value in state.items() if _is_index(name)}
    windows = set()
    for name, index in indices.items():
        dims = state["transformer.patch_embed.proj.weight"].ndim - 2
        window = _window_of(index, dims)
        if not torch.equal(index.long(), position_index(window)):
            raise InputError(f"The entry {name} is not the index of any window; the checkpoint is damaged.")
        windows.add(window)
    if len(windows) > 1:
        raise InputError(f"The blocks have windows of several sizes, {sorted(windows)}; this network has one.")
    return {"window": [*windows.pop()]} if windows else {}


def position_index(window: Sequence[int]) -> Tensor:
    """Which entry of its table biases the attention between two tokens of a window: (N, N) for N tokens.

    Args:
        window: tokens along each axis.
    """
    places = torch.cartesian_prod(*(torch.arange(n) for n in window)).view(-1, len(window))
    index = torch.zeros(len(places), len(places), dtype=torch.long)
    for axis, n in enumerate(window):
        index = index * (2 * n - 1) + places[:, None, axis] - places[None, :, axis] + n - 1
    return index


def _window_of(index: Tensor, dims: int) -> tuple[int, ...]:
    """Sides of a window by its index, as far as it is one: how long the first row falls by one, and by what then."""
    row, rest, unit = index[0].long(), index.shape[0], 1
    sides: list[int] = []
    for _ in range(dims - 1):
        falls = row[0] - row[:: max(index.shape[0] // rest, 1)]
        side = int((falls == unit * torch.arange(len(falls))).long().cumprod(0).sum())
        sides.insert(0, side)
        unit, rest = unit * (2 * side - 1), rest // side
    return rest, *sides


def _is_index(name: str) -> bool:
    return name.endswith("attn.relative_position_index")


def is_constant(name: str) -> bool:
    """Whether an official entry holds coordinates or indices."""
    return _is_index(name) or re.fullmatch(r"spatial_trans\w*\.grid", name) is not None


def constants(arguments: Mapping[str, Any], size: Sequence[int]) -> dict[str, Tensor]:
    """Coordinates and indices of the official layout, for images of a size."""
    index = position_index(arguments["window"][: arguments["spatial_dims"]])
    blocks = [f"transformer.layers.{i}.blocks.{j}" for i, n in enumerate(arguments["depths"]) for j in range(n)]
    indices = {f"{block}.attn.relative_position_index": index.clone() for block in blocks}
    return {**indices, "spatial_trans.grid": identity_grid(size)}


def official_entries(arguments: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(official name, shape) of every entry but the constant ones, in the official order."""
    dims, dim = arguments["spatial_dims"], arguments["embed_dim"]
    shapes, last = FAMILY.shapes(arguments), len(arguments["depths"]) - 1
    yield from _renamed(shapes, "unet.encoder.patch_embed.", "transformer.patch_embed.")
    for i, depth in enumerate(arguments["depths"]):
        for j in range(depth):
            block, ours = f"transformer.layers.{i}.blocks.{j}.", f"unet.encoder.stages.{i}.blocks.{j}."
            for name, shape in _renamed(shapes, ours, block):
                yield name.replace("mlp.linear", "mlp.fc"), shape
        if i < last:
            yield from _renamed(shapes, f"unet.encoder.merge.{i}.", f"transformer.layers.{i}.downsample.")
    for i in range(last + 1):
        yield from ((f"transformer.norm{i}.{part}", (dim * 2**i,)) for part in ("weight", "bias"))
    ups = last + (2 if arguments["output_resolution"] == "full" else 1)
    for k in range(ups):
        for n, part in ((1, "first"), (2, "second")):
            yield f"up{k}.conv{n}.0.weight", shapes[f"unet.up.{k}.{part}.conv.weight"]
    for n, channels in ((1, dim // 2), (2, arguments["head_channels"])):
        yield f"c{n}.0.weight", (channels, 2, *[3] * dims)
    yield from _renamed(shapes, "head.conv.", "reg_head.0.")


def _renamed(shapes: Mapping[str, tuple[int, ...]], ours: str, official: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, shape in shapes.items():
        if name.startswith(ours):
            yield official + name.removeprefix(ours), shape


FAMILY = Family(
    network=TransMorph,
    describe_official=describe_official,
    describe_ours=describe_ours,
    key_map=key_map,
    entries=official_entries,
    is_constant=is_constant,
    constants=constants,
    kinds=("output_resolution",),
    untold=("drop_path",),
    container="state_dict",
)
