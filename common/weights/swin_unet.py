# SPDX-License-Identifier: Apache-2.0
"""What checkpoints of TransMorph and its relatives have in common: encoder and decoder, and the constants of both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from common.checks import InputError
from common.weights.state_dicts import Converted, KeyMap

# Of the parts of a group of voxels that become one: ours k is the official number PARTS[k], by the number of axes.
PARTS = {2: (0, 1, 2, 3), 3: (0, 3, 2, 5, 1, 6, 4, 7)}
Shapes = Mapping[str, tuple[int, ...]]
Entries = Iterator[tuple[str, tuple[int, ...]]]


def unet_map(arguments: Mapping[str, Any]) -> KeyMap:
    """Official name -> ours, of what is no convolution of the images and no head, of the network with these arguments.

    Where ``trans_skip`` is false, the decoder sees the last stage of the encoder alone.
    """
    parts = PARTS[arguments["spatial_dims"]]
    back = tuple(parts.index(k) for k in range(len(parts)))

    def sorted_parts(name: str) -> Converted:
        return Converted(name, lambda x: _sorted(x, parts), lambda x: _sorted(x, back))

    last = len(arguments["depths"]) - 1
    return {
        r"^transformer\.patch_embed\.": "unet.encoder.patch_embed.",
        r"^transformer\.layers\.(\d+)\.blocks\.(\d+)\.mlp\.fc": r"unet.encoder.stages.\1.blocks.\2.mlp.linear",
        r"^transformer\.layers\.(\d+)\.blocks\.": r"unet.encoder.stages.\1.blocks.",
        r"^transformer\.layers\.(\d+)\.downsample\.": sorted_parts(r"unet.encoder.merge.\1."),
        rf"^transformer\.norm({'.*' if arguments.get('trans_skip', True) else last})\.": r"unet.encoder.norms.\1.",
        r"^transformer\.norm\d+\.": None,
        r"^up(\d+)\.conv1\.0\.": r"unet.up.\1.first.conv.",
        r"^up(\d+)\.conv2\.0\.": r"unet.up.\1.second.conv.",
    }


def _sorted(value: Tensor, parts: Sequence[int]) -> Tensor:
    """Parts of the last axis in another order."""
    return value.unflatten(-1, (len(parts), -1))[..., [*parts], :].flatten(-2)


# Names of the entries that tell: of patches, of blocks, of the decoder's first convolutions.
OFFICIAL = {
    "patch": "transformer.patch_embed.proj.weight",
    "block": "transformer.layers.{}.blocks.{}",
    "up": "up{}.conv1.0.weight",
}
OURS = {
    "patch": "unet.encoder.patch_embed.proj.weight",
    "block": "unet.encoder.stages.{}.blocks.{}",
    "up": "unet.up.{}.first.conv.weight",
}


def describe_unet(
    state: Mapping[str, Tensor], names: Mapping[str, str], needed: Sequence[str], title: str
) -> dict[str, Any]:
    """Number of axes, widths and depths of the encoder.

    Args:
        state: name to tensor.
        names: :data:`OFFICIAL` or :data:`OURS`.
        needed: further entries without which it is no such network.
        title: of the network, for the message.

    Raises:
        InputError: where one of the entries that tell is missing.
    """
    table = names["block"].format("{}", 0) + ".attn.relative_position_bias_table"
    missing = [name for name in (names["patch"], table.format(0), names["up"].format(0), *needed) if name not in state]
    if missing:
        entries = ", ".join(list(state)[:3])
        raise InputError(f"This is no checkpoint of {title}: {missing[0]} is missing; its first are {entries}.")
    stages = count(state, table.format)
    patch = state[names["patch"]]
    return {
        "spatial_dims": patch.ndim - 2,
        "embed_dim": patch.shape[0],
        "depths": [count(state, f"{names['block'].format(i, '{}')}.norm1.weight".format) for i in range(stages)],
        "heads": [state[table.format(i)].shape[1] for i in range(stages)],
    }


def check_no_variant(title: str, variant: str | None) -> None:
    """Refuse ``--variant``.

    Raises:
        InputError: where one is stated.
    """
    if variant is not None:
        raise InputError(f"Which {title} it is, a checkpoint tells itself; leave --variant {variant} out.")


def size_of(state: Mapping[str, Tensor]) -> tuple[int, ...] | None:
    """Spatial size of the images that an official network was made for, where its coordinates tell."""
    grid = state.get("spatial_trans.grid")
    return None if grid is None else tuple(grid.shape[2:])


def count(state: Mapping[str, Any], name: Callable[[int], str]) -> int:
    """How many entries there are, numbered from 0 on."""
    number = 0
    while name(number) in state:
        number += 1
    return number


def window_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Sides of the windows, of the indices that official files hold; nothing where they do not.

    Raises:
        InputError: for indices that do not belong to windows, or to windows of several sizes.
    """
    indices = {name: value for name, value in state.items() if _is_index(name)}
    windows = set()
    for name, index in indices.items():
        dims = state["transformer.patch_embed.proj.weight"].ndim - 2
        window = _sides(index, dims)
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


def _sides(index: Tensor, dims: int) -> tuple[int, ...]:
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
    return _is_index(name) or name.endswith(".grid")


def indices(arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """Those of all blocks of the network with these arguments."""
    index = position_index(arguments["window"][: arguments["spatial_dims"]])
    blocks = [OFFICIAL["block"].format(i, j) for i, n in enumerate(arguments["depths"]) for j in range(n)]
    return {f"{block}.attn.relative_position_index": index.clone() for block in blocks}


def unet_entries(shapes: Shapes, arguments: Mapping[str, Any]) -> Entries:
    """(official name, shape) of encoder and decoder, in the official order.

    Args:
        shapes: our name to shape.
        arguments: of the network.
    """
    last = len(arguments["depths"]) - 1
    yield from renamed(shapes, "unet.encoder.patch_embed.", "transformer.patch_embed.")
    for i, depth in enumerate(arguments["depths"]):
        for j in range(depth):
            for name, shape in renamed(shapes, f"{OURS['block']}.".format(i, j), f"{OFFICIAL['block']}.".format(i, j)):
                yield name.replace("mlp.linear", "mlp.fc"), shape
        if i < last:
            yield from renamed(shapes, f"unet.encoder.merge.{i}.", f"transformer.layers.{i}.downsample.")
    for i in range(last + 1):
        width = arguments["embed_dim"] * 2**i
        yield from ((f"transformer.norm{i}.{part}", (width,)) for part in ("weight", "bias"))
    for k in range(count(shapes, OURS["up"].format)):
        yield from renamed(shapes, f"unet.up.{k}.first.conv.", f"up{k}.conv1.0.")
        yield from renamed(shapes, f"unet.up.{k}.second.conv.", f"up{k}.conv2.0.")


def renamed(shapes: Shapes, ours: str, official: str) -> Entries:
    """Entries that begin with ``ours``, which begin with ``official`` there."""
    for name, shape in shapes.items():
        if name.startswith(ours):
            yield official + name.removeprefix(ours), shape
