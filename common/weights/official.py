# SPDX-License-Identifier: Apache-2.0
"""Published weights into a bundle, and a bundle's weights back into the published layout."""

from __future__ import annotations

import inspect
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from common.checks import InputError
from common.io.checkpoints import check_finite_weights, load_checkpoint, save_atomically
from common.weights.families import family_of
from common.weights.family import Description, Family, to_official, to_ours
from common.weights.state_dicts import differing_keys, pack_state_dict, unpack_state_dict


def import_weights(
    bundle: Path,
    path: Path,
    output: Path | None = None,
    variant: str | None = None,
    overwrite: bool = False,
    config: str | None = None,
) -> list[str]:
    """Write an official checkpoint as a bundle's ``models/model.pt``.

    Args:
        bundle: folder of the bundle.
        path: official checkpoint; only tensors and plain values are read, no code is run.
        output: file to write; default: ``models/model.pt`` of the bundle.
        variant: which network of the family it is, where the checkpoint does not tell.
        overwrite: whether ``output`` may exist.
        config: configuration of the bundle that exchanges the network, such as "diff" of TransMorph's.

    Returns:
        Sentences for the user: what was found, what was written, what to add to the commands.

    Raises:
        InputError: the file is no checkpoint of the bundle's family, is one of another variant, or does not fit;
            ``output`` exists.
    """
    output = _target(output or bundle / "models" / "model.pt", overwrite)
    family, configured = _configured(bundle, config)
    state, stated = _read(family, path)
    weights = family.describe_official(state, variant)
    weights.arguments.update(stated)
    weights.arguments.update({name: configured[name] for name in family.tied if name not in weights.arguments})
    kinds = [{name: arguments[name] for name in family.kinds} for arguments in (weights.arguments, configured)]
    if kinds[0] != kinds[1]:
        raise InputError(
            f"{path} is of the {family.title(kinds[0])}, {bundle.name} has the "
            f"{family.title(kinds[1]).removesuffix(' network')} one; import it into a bundle of that network. "
            f"Differing keys: {_differing(family, weights.arguments, configured)}."
        )
    ours = to_ours(family, state, weights.arguments)
    _check_untold(family, bundle, path, ours, {**configured, **weights.arguments})
    save_atomically(ours, output)
    return [
        f"{path}: {_sentence(family, weights)}, {sum(value.numel() for value in ours.values()):,} parameters.",
        *_advice(family, bundle, weights, configured),
        f"Wrote {output}.",
    ]


def export_weights(
    bundle: Path,
    output: Path,
    path: Path | None = None,
    size: Sequence[int] | None = None,
    overwrite: bool = False,
    config: str | None = None,
) -> list[str]:
    """Write a bundle's weights in the official layout: official names and order, constant entries, and the container.

    Args:
        bundle: folder of the bundle.
        output: file to write, the state dict in its container, if it has one; there is no optimiser in it.
        path: weights of the bundle; default: its ``models/model.pt``.
        size: spatial size for the constant entries; default: the size that the bundle's metadata state.
        overwrite: whether ``output`` may exist.
        config: see :func:`import_weights`.

    Returns:
        Sentences for the user.

    Raises:
        InputError: no weights, weights of another network or with NaN or infinite values, or no size.
    """
    output = _target(output, overwrite)
    path = path or bundle / "models" / "model.pt"
    state = unpack_state_dict(load_checkpoint(path), str(path), "network")
    check_finite_weights(state, str(path))
    family, configured = _configured(bundle, config)
    weights = family.describe_ours(state, configured)
    size = size or training_size(bundle)
    if family.constants is not None and size is None:
        raise InputError(
            f"{bundle.name} states no training size, and the official layout holds grids of one: add --size, such as "
            "--size 160 224 192."
        )
    official = to_official(family, state, weights.arguments, size)
    if family.pack is None or size is None:
        content = pack_state_dict(official, family.container, family.parts)
    else:
        content = family.pack(official, {**configured, **weights.arguments}, size)
    save_atomically(content, output)
    built = f", for {_times(size)} voxels" if size is not None else ""
    return [f"Wrote {output}: {_sentence(family, weights)}{built}."]


def training_size(bundle: Path) -> tuple[int, ...] | None:
    """Spatial size of the published training images, from ``training_spatial_shape`` of the metadata."""
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    size = metadata.get("training_spatial_shape")
    return None if size is None else tuple(int(n) for n in size)


def _read(family: Family, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Official entries of a file, and arguments that it states beside them."""
    if family.read is not None:
        return family.read(path)
    return unpack_state_dict(load_checkpoint(path), str(path), family.container, family.parts), {}


def _target(output: Path, overwrite: bool) -> Path:
    if output.exists() and not overwrite:
        raise InputError(f"{output} exists: name another file, or replace it with --overwrite true.")
    return output


def _configured(bundle: Path, config: str | None) -> tuple[Family, dict[str, Any]]:
    """Family of the bundle's network, and its arguments, the defaults of the class included."""
    from monai.bundle import ConfigParser

    files = [bundle / "configs" / f"{name}.json" for name in ("inference", config) if name is not None]
    if not files[-1].is_file():
        raise InputError(f"{files[-1]} is missing; --config names a configuration of {bundle.name} without its ending.")
    parser = ConfigParser()
    parser.read_config([str(file) for file in files])
    network = parser.get_parsed_content("network_def", instantiate=False).get_config()
    family = family_of(network["_target_"])
    parameters = inspect.signature(family.network).parameters
    arguments = {name: network.get(name, parameter.default) for name, parameter in parameters.items()}
    # As JSON has them.
    return family, {name: [*value] if isinstance(value, tuple) else value for name, value in arguments.items()}


def _check_untold(
    family: Family, bundle: Path, path: Path, ours: Mapping[str, Any], arguments: Mapping[str, Any]
) -> None:
    """Refuse weights that do not fit what a checkpoint does not tell, as the bundle has it."""
    if not family.untold:
        return
    said = ", ".join(f"{name} {arguments[name]}" for name in family.untold)
    try:
        differing = differing_keys(ours, family.shapes(arguments))
    except ValueError as error:
        differing = [str(error)]
    if differing:
        more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
        raise InputError(
            f"{path} is of another network than that of {bundle.name}, which has {said}: {differing[0]}{more}; import "
            "it into a bundle of that network."
        )


def _advice(family: Family, bundle: Path, weights: Description, configured: dict[str, Any]) -> list[str]:
    lines = []
    other = {name: value for name, value in weights.arguments.items() if value != configured[name]}
    if other:
        options = " ".join(f"--network_def#{name} {shlex.quote(str(value))}" for name, value in other.items())
        lines.append(f"The network of {bundle.name} is configured otherwise: add {options} to every command.")
    expected = training_size(bundle)
    if weights.size is not None and expected not in (None, weights.size):
        lines.append(
            f"WARNING: trained at {_times(weights.size)} voxels, {bundle.name} is for {_times(expected or ())}; "
            "weights fit any size, but were not trained for this one."
        )
    untold = (name for name in family.untold if name not in weights.arguments)
    lines += [f"A checkpoint does not tell {name}: {name} is {configured[name]} here." for name in untold]
    return lines


def _sentence(family: Family, weights: Description) -> str:
    options = [f"{name} {value}" for name, value in weights.arguments.items() if name not in family.kinds]
    trained = [] if weights.size is None else [f"trained at {_times(weights.size)} voxels"]
    return ", ".join([family.title(weights.arguments), *options, *trained])


def _differing(family: Family, found: Mapping[str, Any], configured: Mapping[str, Any]) -> str:
    """Entries that the bundle's network has and the other one lacks, or the other way round, under our names."""
    like_found = {name: configured[name] for name in found}
    names = [set(family.shapes(arguments)) for arguments in (found, like_found)]
    lists = [sorted(names[0] - names[1]), sorted(names[1] - names[0])]
    phrases = [
        f"{what} {', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}"
        for what, keys in zip(("unknown", "missing"), lists, strict=True)
        if keys
    ]
    return "; ".join(phrases) or "none, both have entries of the same names"


def _times(size: Sequence[int]) -> str:
    return "x".join(str(n) for n in size)
