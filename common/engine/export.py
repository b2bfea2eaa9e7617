# SPDX-License-Identifier: Apache-2.0
"""Networks as files that need none of this code: ``model.ts`` of TorchScript, and ``model.pt2`` of ``torch.export``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.checks import InputError
from common.io.files import replacing

RECORDED = (40, 33, 48)
"""Voxels of the example that is recorded."""
OTHERS = ((33, 48, 20), (18, 24, 52))
"""Voxels of the pairs that a file has to register as the network does, before it is written."""
TOLERANCE = 1e-3
"""Voxels that displacements may differ: what is recorded adds up in another order."""
FORMATS = ("ts", "pt2")


def export_network(network: nn.Module, folder: Path, dims: int, formats: Sequence[str] = FORMATS) -> dict[Path, float]:
    """Write ``model.ts`` and ``model.pt2``, which take a pair (1, 2, *spatial) of any size and give the displacement.

    The first takes several pairs of one size, too; limits of the second stand in docs/export.md.

    Each is compared with the network at three sizes, before the first is written.

    Args:
        network: with its weights, on the CPU; what it returns beyond the displacement is in neither file.
        folder: where the files go, in place of those that are there.
        dims: spatial axes of its images, 2 or 3.
        formats: some of :data:`FORMATS`.

    Returns:
        The files, each with the largest difference from the network, in voxels.

    Raises:
        InputError: a recorded network differs by more than :data:`TOLERANCE`, or the folder cannot be written to.
    """
    network = network.eval()
    writers = {name: {"ts": _traced, "pt2": _exported}[name](network, dims) for name in formats}
    found = {folder / f"model.{name}": check_recorded(network, call, dims) for name, (call, _) in writers.items()}
    for path, name in zip(found, writers, strict=True):
        with replacing(path, f".{name}") as temporary:
            writers[name][1](temporary)
    return found


def check_recorded(network: nn.Module, recorded: Callable[[Tensor], Tensor], dims: int) -> float:
    """The largest difference in voxels between a network and what was recorded of it, at three sizes.

    Raises:
        InputError: it is above :data:`TOLERANCE`.
    """
    largest = 0.0
    for size in (RECORDED, *OTHERS):
        image = _example(size[:dims])
        with torch.no_grad():
            difference = float((recorded(image) - network(image)).abs().max())
        if not difference <= TOLERANCE:
            voxels = " x ".join(str(n) for n in size[:dims])
            raise InputError(
                f"The recorded network is {difference:g} voxel from the network itself for images of {voxels} voxels; "
                f"at most {TOLERANCE:g} is allowed, so that no file was written."
            )
        largest = max(largest, difference)
    return largest


Recorded = tuple[Callable[[Tensor], Tensor], Callable[[Path], None]]
"""A recorded network, and what writes it to a file."""


def _example(size: Sequence[int]) -> Tensor:
    """A pair of smooth images of values between 0 and 1, the same each time."""
    coarse = torch.rand(1, 2, *[6] * len(size), generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size=tuple(size), mode="bilinear" if len(size) == 2 else "trilinear")


def _traced(network: nn.Module, dims: int) -> Recorded:
    with torch.no_grad(), warnings.catch_warnings():
        # Of sizes that are numbers of Python, and of TorchScript's age.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(network, _example(RECORDED[:dims]), check_trace=False)

    def save(path: Path) -> None:
        torch.jit.save(traced, str(path))

    return traced, save


def _exported(network: nn.Module, dims: int) -> Recorded:
    program = exported(network, _example(RECORDED[:dims]))

    def save(path: Path) -> None:
        torch.export.save(program, path)

    return program.module(), save


def exported(network: nn.Module, image: Tensor) -> torch.export.ExportedProgram:
    """What ``torch.export`` makes of a network, for images of any size.

    Args:
        network: in evaluation.
        image: (1, 2, *spatial), an example.
    """
    from torch.fx.experimental import _config

    sizes = {axis: torch.export.Dim.DYNAMIC for axis in range(2, image.ndim)}
    # Without it torch binds the file to images whose padded axes are, or are not, as long as the axes themselves.
    # torch puts `patch` into the module when it is read, unseen by type checkers.
    patched = _config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with torch.no_grad(), patched:
        return torch.export.export(network, (image,), dynamic_shapes=(sizes,))
