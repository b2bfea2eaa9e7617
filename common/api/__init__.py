# SPDX-License-Identifier: Apache-2.0
"""Bundles in Python: load one, register images in memory or files, go on with the results (docs/python.md)."""

from __future__ import annotations

import os
from typing import Any

from common.api.bundle import Bundle
from common.api.deformation import Deformation
from common.api.result import Result
from common.api.sources import bundle_class, find_bundle
from common.io.images import Image

__all__ = ["Bundle", "Deformation", "Image", "Result", "load_bundle", "register"]


def load_bundle(source: str | os.PathLike[str], *, device: Any = None, trust: bool = False, **options: Any) -> Bundle:
    """Load a bundle with its network and weights.

    Args:
        source: folder of a bundle, zip of a release, or name: of a folder in ``bundles`` of this checkout, or of one
            that ``monai.bundle.download`` has fetched.
        device: where it computes, such as "cpu" or "cuda:1"; None for what its configuration chooses.
        trust: whether its code may run where it comes from elsewhere than this checkout. Configurations are code, too.
        options: of its ``configs/inference.json``, by the names of the command line: ``spacing``, ``affine``,
            ``ckpt_path``; nested ones as ``**{"network_def#start_channel": 8}``.

    Returns:
        The bundle. That of a zip is made by the package in the zip, under its own name, so that several releases live
        in one process; what is refused there raises that package's ``InputError``, a ``ValueError``, too.

    Raises:
        InputError: when there is no such bundle, it comes from elsewhere and is not trusted, an option is refused, or
            there are no weights.
    """
    folder = find_bundle(source, trust)
    bundle: Bundle = bundle_class(folder)(folder, device=device, **options)
    return bundle


def register(
    moving: Any,
    fixed: Any,
    bundle: str | os.PathLike[str] = "instance_any",
    *,
    device: Any = None,
    trust: bool = False,
    **known: Any,
) -> Result:
    """Register two images with a bundle that is loaded for them alone: :func:`load_bundle`, then ``register``.

    Args:
        moving: the image that is warped, of any kind that :meth:`Bundle.register` takes.
        fixed: the image that stays.
        bundle: see :func:`load_bundle`; that without a network needs no weights.
        device: see there.
        trust: see there.
        known: label maps, masks, landmarks and options, see :meth:`Bundle.register`.

    Raises:
        InputError: as both.
    """
    sides = [f"{side}_{kind}" for kind in ("label", "mask", "landmarks") for side in ("moving", "fixed")]
    given = {name: known.pop(name) for name in sides if name in known}
    return load_bundle(bundle, device=device, trust=trust, **known).register(moving, fixed, **given)
