# SPDX-License-Identifier: Apache-2.0
"""What all networks agree on: ``network(image)`` returns ``ddf``, ``network(image, details=...)`` a dictionary.

Besides, a network says with ``arguments`` how it was constructed and with ``levels`` how many fields its ``pyramid``
has, so that configurations need not know its parts. The names of the outputs stand in docs/conventions.md.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

from torch import Tensor

from common.checks import InputError

Details = bool | Collection[str]
"""True for all outputs, or the names of those wanted beside ``ddf``, of which a network returns what it has."""

FUNCTIONS = ("map", "inverse_map")
"""Outputs that are no tensors: a loss may ask for them, but no batch of them can be taken apart."""


def wants(details: Details, name: str) -> bool:
    """Whether an output is asked for.

    Args:
        details: True, False, or names and patterns such as "*_map"; functions are asked for by their whole names.
        name: of the output.
    """
    if isinstance(details, bool) or name in FUNCTIONS:
        return details if isinstance(details, bool) else name in details
    return any(fnmatchcase(name, pattern) for pattern in details)


def names_field(details: Details, name: str) -> bool:
    """Whether a field is asked for by its whole name, or all outputs are.

    A loss of maps asks by a pattern for the fields that stand in for the maps of a network without any. One that has
    maps need not make those in training.

    Args:
        details: True, False, or names and patterns.
        name: of the field.
    """
    return details if isinstance(details, bool) else name in details


def check_pair(image: Tensor, spatial_dims: int) -> None:
    """Refuse what is no pair.

    Args:
        image: (B, 2, *spatial), channel 0 moving, channel 1 fixed.
        spatial_dims: number of spatial axes of the network.

    Raises:
        InputError: images have another number of axes than the network; with what to do.
        ValueError: for all else, naming the shape.
    """
    dims = image.ndim - 2
    if dims in (2, 3) and dims != spatial_dims and image.shape[1] == 2:
        size = " x ".join(str(n) for n in image.shape[2:])
        also = "; or save these slices with two axes" if dims == 3 and image.shape[-1] == 1 else ""
        raise InputError(
            f"The images are {dims}D ({size}), but the network is {spatial_dims}D: add --network_def#spatial_dims "
            f"{dims}, to training and to all that uses its weights{also}."
        )
    if dims != spatial_dims or image.shape[1] != 2:
        shape = tuple(image.shape)
        raise ValueError(f"image has shape {shape}; expected (B, 2, *spatial) with {spatial_dims} spatial axes.")


def check_numbers(lowest: int, **arguments: object) -> None:
    """Refuse arguments of a network that are no whole numbers from ``lowest`` on.

    Raises:
        InputError: naming the argument and its value.
    """
    for name, value in arguments.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
            raise InputError(f"{name} is {value!r}; give a whole number from {lowest} on.")


def crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """The part of (B, C, *spatial) that is left when what was padded at the far ends is taken away."""
    for axis, n in enumerate(size, start=2):
        x = x.narrow(axis, 0, n)
    return x


def padded(n: int, unit: int) -> int:
    """The least multiple of ``unit`` that is ``n`` or more, and two units or more.

    Arithmetic alone, as an exported network works its sizes out by itself: a comparison would be kept as it came out
    for the size of the export. And without negative numbers, as integer division of ONNX does not round down.
    """
    units = (n + unit - 1) // unit
    return (units + 1 // units) * unit


def padding(size: Sequence[int], unit: int) -> list[int]:
    """Zeros at the far end of each axis, up to a multiple of ``unit``, in the order of ``F.pad``.

    Arithmetic alone, see :func:`padded`.
    """
    missing = [(n + unit - 1) // unit * unit - n for n in size]
    return [amount for n in reversed(missing) for amount in (0, n)]
