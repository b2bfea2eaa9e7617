# SPDX-License-Identifier: Apache-2.0
"""One metric for ignite and MONAI engines that measures every registered pair once.

Kept out of ``common.metrics`` itself, so that plain metrics do not import ignite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from ignite.metrics import Metric
from torch import Tensor

from common.checks import InputError
from common.metrics.pair import HD95_UNITS, Landmarks, RegisteredPair, pair_figures
from common.spatial.finite import check_network_field
from common.spatial.foreground import foreground, mask_or_everywhere

_IMAGES = ("", "_label", "_keypoints", "_landmarks", "_id")
_KEYS = (
    "ddf",
    "inverse_ddf",
    "spacing",
    "affine",
    *(f"{image}{kind}" for image in ("moving", "fixed") for kind in _IMAGES),
)


class RegistrationMetrics(Metric):
    """Dice, folding and spread of the Jacobian over all pairs of an epoch, and the table of the pairs.

    Attach it under one of the names below, for instance ``key_val_metric={"dice": RegistrationMetrics(labels=...)}``;
    all of its figures then stand in ``engine.state.metrics``. Means are over pairs, leaving out pairs without a value
    (NaN); an infinite HD95 stays infinite.

    * ``dice``, ``dice_before``: mean over labels by the Learn2Reg rule, after and before warping, in [0, 1];
    * ``hd95``, ``hd95_before``: with ``hd95`` given, mean over labels by the same rule, after and before warping;
    * ``tre``, ``tre_before``: with landmarks, mean distance between corresponding points (Learn2Reg form); with volumes
      of landmarks instead, mean distance between their centroids (LUMIR form);
    * ``tre_back``: with landmarks and the inverse field, how far those of the moving image end up from the fixed ones;
    * ``inverse_consistency``, ``inverse_consistency_max``: with the inverse field, mean and largest distance by which
      it misses to undo ``ddf``, foreground;
    * ``fold_fraction``: percent of all voxels with determinant <= 0;
    * ``sdlogj``: std of log(det) over unfolded voxels of the foreground; ``sdlogj_l2r``: the official form, whole
      interior; ``sdlogj_l2r_masked``: that inside the foreground;
    * ``ndv``: non-diffeomorphic volume of the foreground in percent (LUMIR form; area in two dimensions).

    The engine's output is a dictionary, or a list of them as MONAI's decollation makes it, with ``ddf`` (d, *spatial)
    and, where known, ``moving_label`` and ``fixed_label`` (1, *spatial), ``moving`` and ``fixed`` (1, *spatial),
    ``moving_landmarks`` and ``fixed_landmarks`` (N, d) in voxels or (1, *spatial) integers, ``moving_keypoints`` and
    ``fixed_keypoints`` (N, d) in voxels, which then count, ``inverse_ddf`` (d, *spatial), ``spacing`` (d,) or
    ``affine`` (4, 4), ``moving_id`` and ``fixed_id``. A dictionary with one more, leading batch axis is taken apart.
    Figures whose inputs are missing are left out. Distances other than HD95 are in millimetres where spacing or affine
    are known, else in voxels.

    Under distributed evaluation every process gets the figures and the table of all pairs; pairs that a sampler
    repeated to fill up a round are counted once if they carry ids.

    Attributes:
        cases: one dictionary per pair of the last epoch: ``moving_id``, ``fixed_id``, every figure above as float, and
            ``dice_per_label``, ``dice_before_per_label`` and the same of ``hd95`` as {label: float}. For a table on
            disk.
    """

    def __init__(
        self,
        labels: Sequence[int] | None = None,
        output_transform: Callable[[Any], Any] = lambda output: output,
        mask: str | None = "fixed",
        hd95: str | None = None,
    ) -> None:
        """Configure what is measured.

        Args:
            labels: label values that count; None leaves label metrics out.
            output_transform: makes the dictionaries described above of ``engine.state.output``.
            mask: image whose foreground counts (:func:`common.spatial.foreground.foreground`), "fixed" or "moving" (as
                LUMIR has it), or None for all voxels. Without that image in the output all voxels count.
            hd95: unit of the surface distance, "voxels" (Learn2Reg) or "millimetres" (needs ``spacing`` or ``affine``);
                None leaves it out, since it takes longer than everything else.

        Raises:
            InputError: when ``mask`` or ``hd95`` is unknown.
        """
        if mask not in (None, "moving", "fixed"):
            raise InputError(f'mask is {mask!r}; it must be "moving", "fixed" or null.')
        if hd95 not in (None, *HD95_UNITS):
            raise InputError(f'hd95 is {hd95!r}; it must be "voxels", "millimetres" or null.')
        self.labels = None if labels is None else [int(label) for label in labels]
        self.mask = mask
        self.hd95 = hd95
        self.cases: list[dict[str, Any]] = []
        super().__init__(output_transform=output_transform)

    def reset(self) -> None:
        """Forget the pairs of the epoch before."""
        self.cases = []

    def update(self, output: Any) -> None:
        """Measure one output: a dictionary or a list of them."""
        for pair in _pairs(output):
            self.cases.append(self._measure(pair))

    def compute(self) -> dict[str, float]:
        """Mean of every figure over the pairs of all processes; ``cases`` then holds all of them."""
        if idist.get_world_size() > 1:
            gathered: Any = idist.all_gather(self.cases)
            self.cases = _merged(gathered)
        if not self.cases:
            raise InputError("There is no pair to average: the evaluation data set is empty.")
        names = dict.fromkeys(name for case in self.cases for name in case if isinstance(case[name], float))
        values = {name: [case[name] for case in self.cases if name in case] for name in names}
        return {name: float(torch.tensor(column, dtype=torch.float64).nanmean()) for name, column in values.items()}

    @torch.no_grad()
    def iteration_completed(self, engine: Engine) -> None:
        """Measure the engine's output; ignite's own version would look for ``y_pred`` and ``y``."""
        self.update(self._output_transform(engine.state.output))

    def completed(self, engine: Engine, name: str) -> None:
        """Put all figures into ``engine.state.metrics``, under their own names; NaN for ``name`` if no pair has labels.

        Raises:
            InputError: when ``name``, under which the metric was attached, is none of them.
        """
        result = self.compute()
        if self.labels is not None and (name == "dice" or (name == "hd95" and self.hd95 is not None)):
            result.setdefault(name, float("nan"))
        if name not in result:
            raise InputError(
                f"The registration metrics are attached as {name!r}, but the pairs gave {sorted(result)}: attach them "
                "under one of these names (label metrics need labels in the configuration and in the data)."
            )
        engine.state.metrics.update(result)

    def _measure(self, pair: Mapping[str, Any]) -> dict[str, Any]:
        if "ddf" not in pair:
            raise InputError(f"The engine's output has the keys {sorted(pair)}; the registration metrics need ddf.")
        ids = {name: _identity(pair.get(name)) for name in ("moving_id", "fixed_id")}
        check_network_field(torch.as_tensor(pair["ddf"]), *ids.values())
        return ids | pair_figures(_registered(pair, self.mask), self.labels, self.hd95)


def _registered(pair: Mapping[str, Any], mask: str | None) -> RegisteredPair:
    """One pair of the engine's output; without the image that is named as mask all voxels are foreground."""
    names = ("moving_label", "fixed_label", "inverse_ddf")
    known: dict[str, Any] = {name: _batched(pair[name]) for name in names if name in pair}
    ddf = _batched(pair["ddf"])
    spacing = _spacing(pair, ddf.ndim - 2)
    if mask is not None and mask in pair:
        image = _batched(pair[mask])
        if image.shape[2:] == ddf.shape[2:]:
            name = f"the {mask} image of {pair.get('moving_id', '?')} to {pair.get('fixed_id', '?')}"
            known["foreground"] = mask_or_everywhere(foreground(image[:, :1]), name)
    landmarks = {}
    # Where an output has both, points count.
    for moving, fixed in (("moving_landmarks", "fixed_landmarks"), ("moving_keypoints", "fixed_keypoints")):
        if moving in pair and fixed in pair:
            landmarks["tre"] = Landmarks(moving=_batched(pair[moving]), fixed=_batched(pair[fixed]), spacing=spacing)
    return RegisteredPair(ddf, **known, spacing=spacing, landmarks=landmarks)


def _spacing(pair: Mapping[str, Any], dims: int) -> list[float] | None:
    """Voxel size of a pair along the array axes, from its spacing or the columns of its affine."""
    if "spacing" in pair:
        return [float(size) for size in torch.as_tensor(pair["spacing"]).flatten()]
    if "affine" in pair:
        return [float(size) for size in torch.as_tensor(pair["affine"]).double()[:dims, :dims].norm(dim=0)]
    return None


def _pairs(output: Any) -> list[Mapping[str, Any]]:
    """The output as one dictionary per pair."""
    if isinstance(output, Mapping):
        ddf = output.get("ddf")
        if isinstance(ddf, Tensor) and ddf.ndim in (4, 5) and ddf.shape[1] == ddf.ndim - 2:
            return [{name: output[name][b] for name in _KEYS if name in output} for b in range(len(ddf))]
        return [output]
    if isinstance(output, Sequence) and all(isinstance(pair, Mapping) for pair in output):
        return list(output)
    raise InputError(
        f"The registration metrics were given {type(output).__name__}; they need a dictionary with ddf, or a list "
        "of such."
    )


def _batched(value: Any) -> Tensor:
    """A plain tensor with a batch axis; MONAI's MetaTensor would carry its metadata through every operation."""
    tensor: Tensor = value.as_tensor() if hasattr(value, "as_tensor") else torch.as_tensor(value)
    return tensor.unsqueeze(0)


def _identity(value: Any) -> str | int | None:
    """An id as the table shows it."""
    if isinstance(value, Tensor):
        return int(value.item())
    return value if value is None or isinstance(value, int) else str(value)


def _merged(per_process: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Pairs of all processes in the order of a sampler that deals them out in turn, repeated ones left out."""
    merged: dict[Any, dict[str, Any]] = {}
    for turn in zip_longest(*per_process):
        for case in turn:
            if case is not None:
                known = case["moving_id"] is not None and case["fixed_id"] is not None
                merged.setdefault((case["moving_id"], case["fixed_id"]) if known else len(merged), case)
    return list(merged.values())
