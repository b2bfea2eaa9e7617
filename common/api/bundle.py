# SPDX-License-Identifier: Apache-2.0
"""A bundle that stays in memory: its own ``configs/inference.json``, run pair by pair."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.api.result import Result
from common.api.sources import CONFIG
from common.api.workflow import forget_pair, network_settings, prepared, registered_pair
from common.checks import InputError
from common.cli import sentence_of
from common.io.held_points import points_of
from common.io.image_kinds import image_of

_IMAGES = ("", "_label", "_mask")


class Bundle:
    """A bundle with its network, see :func:`common.api.load_bundle`; one pair at a time.

    Args:
        folder: of the bundle.
        device: see :func:`common.api.load_bundle`.
        options: likewise.

    Attributes:
        folder: of the bundle.
        metadata: what its ``metadata.json`` says.

    Raises:
        InputError: for an option that is refused, and where there are no weights.
    """

    def __init__(self, folder: str | os.PathLike[str], device: Any = None, **options: Any) -> None:
        self.folder = Path(folder)
        self.metadata: dict[str, Any] = json.loads((self.folder / "configs" / "metadata.json").read_text("utf-8"))
        self._options = options if device is None else {**options, "device": str(device)}
        self._lock = threading.Lock()
        self._made: tuple[str, Any] | None = None
        self._network: tuple[str, nn.Module] | None = None
        with self._lock, _sentences():
            self._workflow({})

    @property
    def name(self) -> str:
        """Of the bundle's folder, such as "eoir_oasis"."""
        return self.folder.name

    @property
    def version(self) -> str:
        """Of the bundle."""
        return str(self.metadata["version"])

    @property
    def network(self) -> nn.Module:
        """The network with its weights, on the device; input (B, 2, *spatial), moving first."""
        with self._lock, _sentences():
            network: nn.Module = self._workflow({}).parser["network"]
        return network

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        with self._lock, _sentences():
            return torch.device(self._workflow({}).parser.get_parsed_content("device"))

    def __repr__(self) -> str:
        return f"Bundle({self.name!r}, version {self.version}, {self.folder / CONFIG})"

    def register(
        self,
        moving: Any,
        fixed: Any,
        *,
        moving_label: Any = None,
        fixed_label: Any = None,
        moving_mask: Any = None,
        fixed_mask: Any = None,
        moving_landmarks: Any = None,
        fixed_landmarks: Any = None,
        **options: Any,
    ) -> Result:
        """Register a pair, with the numbers of ``python -m monai.bundle run infer`` to the bit; no file is written.

        Images are paths (NIfTI, PNG, folders of DICOM slices), nibabel's images, MONAI's MetaTensors, SimpleITK's or
        ANTs' images, or :class:`common.api.Image`. They may have any grid and orientation.

        Args:
            moving: the image that is warped.
            fixed: the image that stays.
            moving_label: label map on the grid of ``moving``, warped like its image.
            fixed_label: label map on the grid of ``fixed``; with both there is a Dice.
            moving_mask: on the grid of ``moving``, other than 0 where it counts; for optimisation on the pair.
            fixed_mask: the same of ``fixed``.
            moving_landmarks: points of ``moving``, a path or an array (N, d) of voxels, or of what the option
                ``landmark_coordinates`` says.
            fixed_landmarks: those of ``fixed``, row by row the same places.
            options: of ``configs/inference.json``, for this pair; the network is made anew only where it depends on
                them.

        Returns:
            What came of it; fields, images and figures are made when they are asked for.

        Raises:
            InputError: as the command line, with its sentence.
        """
        given = locals()
        names = [f"{side}{kind}" for kind in _IMAGES for side in ("moving", "fixed")]
        sources: dict[str, Any] = {n: image_of(given[n], n) for n in names if given[n] is not None}
        landmarks = {"moving_landmarks": moving_landmarks, "fixed_landmarks": fixed_landmarks}
        sources |= {name: points_of(points, name) for name, points in landmarks.items() if points is not None}
        with self._lock, _sentences():
            workflow = self._workflow(options)
            try:
                return Result(*registered_pair(workflow, sources))
            finally:
                forget_pair(workflow)

    def _workflow(self, options: dict[str, Any]) -> Any:
        """The bundle's workflow with these options, checked, with the network in it; the last one is kept."""
        whole = {**self._options, **options}
        if self._made is None or self._made[0] != repr(whole):
            workflow = prepared(self.folder, whole)
            settings = network_settings(workflow)
            if self._network is None or self._network[0] != settings:
                self._network = settings, workflow.parser.get_parsed_content("network").eval()
            workflow.parser["network"] = self._network[1]
            self._made = repr(whole), workflow
        return self._made[1]


class _sentences:
    """What a user can mend comes out as an InputError, whatever MONAI has wrapped it in."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, InputError):
            sentence = sentence_of(error)
            if sentence is not None:
                raise InputError(sentence) from error
