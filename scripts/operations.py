# SPDX-License-Identifier: Apache-2.0
"""The operations that ``benchmark.py ops`` compares: inputs, both forms of each, and what must move in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from monai.losses import BendingEnergyLoss, DiffusionLoss, LocalNormalizedCrossCorrelationLoss
from monai.networks.blocks import DVF2DDF, Warp
from torch import Tensor, nn

from common.blocks.correlation import local_correlation
from common.blocks.field_map import FieldMap
from common.blocks.hybrid_code import HybridCode
from common.blocks.nephi import ModulatedField
from common.blocks.normalisation import instance_norm_prelu
from common.blocks.vector_field_attention import expected_offset
from common.losses import (
    BendingLoss,
    GradientLoss,
    JacobianConsistencyLoss,
    LNCCLoss,
    NGFLoss,
    WarpedDiceLoss,
    image_pyramid,
)
from common.spatial import integrate, warp
from common.spatial.maps import PointMap
from scripts.operation import Call, Operation, gradient_of
from scripts.textbook import StoredGridWarp, blurred_pyramid, edge_directions, one_hot_dice
from scripts.textbook_dual_pyramid import shifted_correlation, unfolded_correlation
from scripts.textbook_vfa import unfolded_attention
from scripts.unlike_contrasts import unlike_contrasts

SIZE = (80, 112, 96)
CLASSES = 36
CHANNELS = 32
# Channels that VFA compares voxels in at full resolution.
MATCHED = 8
# Channels of the finest features of the dual-pyramid networks.
CORRELATED = 16
BRAINS = Path(__file__).resolve().parents[2] / "shared" / "data" / "brain"


def _brain_labels() -> tuple[Tensor, Tensor] | None:
    files = sorted((BRAINS / "aligned_2mm" / "labelsTr").glob("*.nii.gz"))[:2]
    groups = BRAINS / "label_groups.json"
    if len(files) < 2 or not groups.is_file():
        return None
    import nibabel

    table = json.loads(groups.read_text())["lookup_table"]
    if isinstance(table, dict):
        table = [table.get(str(i), 0) for i in range(max(map(int, table)) + 1)]
    lookup = np.asarray(table, np.int64)
    lookup[lookup >= CLASSES] = 0
    labels = []
    for file in files:
        array = lookup[np.asarray(nibabel.load(file).dataobj).astype(int)].astype(np.uint8)
        # Centre crop, zeros where the image is smaller.
        missing = [max(wanted - n, 0) for wanted, n in zip(SIZE, array.shape, strict=True)]
        array = np.pad(array, [(m // 2, m - m // 2) for m in missing])
        start = [(n - wanted) // 2 for wanted, n in zip(SIZE, array.shape, strict=True)]
        labels.append(array[tuple(slice(s, s + n) for s, n in zip(start, SIZE, strict=True))])
    moving, fixed = (torch.from_numpy(np.ascontiguousarray(label))[None, None] for label in labels)
    return moving, fixed


def labels() -> tuple[str, Tensor, Tensor]:
    """Where two label maps (1, 1, *SIZE) come from, and the maps."""
    brains = _brain_labels()
    if brains is not None:
        return "labels of two brains, 2 mm", *brains
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn((2, CLASSES, 10, 14, 12), generator=generator)
    maps = F.interpolate(noise, size=SIZE, mode="trilinear").argmax(1, keepdim=True).to(torch.uint8)
    return "synthetic blobs", maps[:1], maps[1:]


def operations() -> dict[str, Operation]:
    """All comparisons, by name."""
    generator = torch.Generator().manual_seed(0)
    moving, fixed = torch.rand((2, 1, 1, *SIZE), generator=generator)
    coarse = 2 * torch.randn((1, 3, 10, 14, 12), generator=generator)
    ddf = F.interpolate(coarse, size=SIZE, mode="trilinear", align_corners=True)
    moving_label, fixed_label = labels()[1:]
    monai_lncc, lncc = LocalNormalizedCrossCorrelationLoss(spatial_dims=3, kernel_size=9), LNCCLoss()
    monai_warp, monai_exp = Warp("bilinear", "border"), DVF2DDF(num_steps=7, mode="bilinear", padding_mode="zeros")
    sampler, dice = StoredGridWarp(SIZE), WarpedDiceLoss(CLASSES)
    found = {
        "LNCC 9, gradient of the warped image": Operation(
            {
                "MONAI LocalNormalizedCrossCorrelationLoss": gradient_of(lambda x: monai_lncc(x, fixed), moving),
                "LNCCLoss": gradient_of(lambda x: lncc(x, fixed), moving),
            },
            11,
            True,
        ),
        "normalised gradient fields, gradient of the warped image": Operation(
            {
                "torch.gradient, autograd": gradient_of(lambda x: edge_directions(x, fixed), moving),
                "NGFLoss": gradient_of(lambda x: NGFLoss()(x, fixed), moving),
            },
            11,
            True,
        ),
        f"Dice loss, {CLASSES - 1} labels and background, gradient of the field": Operation(
            {
                "one-hot": gradient_of(lambda u: one_hot_dice(moving_label, fixed_label, u, CLASSES, sampler), ddf),
                "WarpedDiceLoss": gradient_of(lambda u: dice(moving_label, fixed_label, u), ddf),
            },
            6.5,
            True,
        ),
        "warp, forward": Operation(
            {"MONAI Warp": lambda: monai_warp(moving, ddf), "warp": lambda: warp(moving, ddf)}, 5
        ),
        "warp, forward and backward to the field": Operation(
            {
                "MONAI Warp": gradient_of(lambda u: monai_warp(moving, u), ddf),
                "warp": gradient_of(lambda u: warp(moving, u), ddf),
            },
            13,
            True,
        ),
        "diffusion regulariser": Operation(
            {
                "MONAI DiffusionLoss": gradient_of(DiffusionLoss(), ddf),
                "GradientLoss": gradient_of(GradientLoss(), ddf),
            },
            6,
            True,
        ),
        "bending energy": Operation(
            {
                "MONAI BendingEnergyLoss": gradient_of(BendingEnergyLoss(), ddf),
                "BendingLoss": gradient_of(BendingLoss(), ddf),
            },
            6,
            True,
        ),
        "scaling and squaring, 7 steps, forward": Operation(
            {"MONAI DVF2DDF": lambda: monai_exp(ddf), "integrate": lambda: integrate(ddf)}, 42
        ),
        "scaling and squaring, forward and backward": Operation(
            {"MONAI DVF2DDF": gradient_of(monai_exp, ddf), "integrate": gradient_of(integrate, ddf)}, 98, True
        ),
        "image pyramid, 5 levels, forward": Operation(
            {"dense blur": lambda: blurred_pyramid(moving), "image_pyramid": lambda: image_pyramid(moving, 5)}, 1.3
        ),
    }
    found |= unlike_contrasts(moving, fixed)
    found |= _of_features(ddf, generator) | _of_attention(generator) | _of_correlation(generator)
    return found | _of_derivative(generator)


def _of_features(ddf: Tensor, generator: torch.Generator) -> dict[str, Operation]:
    features = torch.randn((1, CHANNELS, *SIZE), generator=generator)
    last = features.contiguous(memory_format=torch.channels_last_3d)
    modules, slope = nn.Sequential(nn.InstanceNorm3d(CHANNELS), nn.PReLU()), torch.full((1,), 0.25, requires_grad=True)
    sampler = StoredGridWarp(SIZE)
    return {
        f"instance norm and PReLU, {CHANNELS} channels, forward and backward": Operation(
            {
                "torch modules": gradient_of(modules, features),
                "instance_norm_prelu": gradient_of(lambda x: instance_norm_prelu([x], slope), last),
            },
            5 * CHANNELS,
            True,
        ),
        f"warp of {CHANNELS} channels, forward and backward to both": Operation(
            {
                "grid_sample, stored grid": _both(sampler, features, ddf),
                "warp": _both(lambda x, u: warp(x, u, padding_mode="zeros"), last, ddf),
            },
            5 * CHANNELS + 6,
            True,
        ),
    }


def _of_attention(generator: torch.Generator) -> dict[str, Operation]:
    query = torch.randn((1, MATCHED, *SIZE), generator=generator)
    key = torch.randn((1, MATCHED, *(n + 2 for n in SIZE)), generator=generator)
    last = [x.contiguous(memory_format=torch.channels_last_3d) for x in (query, key)]
    return {
        f"attention among 27 neighbours, {MATCHED} channels, forward and backward to both": Operation(
            {
                "unfolded keys": _both(unfolded_attention, query, key),
                "expected_offset": _both(expected_offset, *last),
            },
            6 * MATCHED + 6,
            True,
        ),
    }


def _of_correlation(generator: torch.Generator) -> dict[str, Operation]:
    found = {}
    for size in (tuple(n // 2 for n in SIZE), SIZE):
        pair = torch.randn((2, 1, CORRELATED, *size), generator=generator)
        last = [x.contiguous(memory_format=torch.channels_last_3d) for x in pair]
        found[
            f"correlation of radius 1, {CORRELATED} channels, {'x'.join(map(str, size))}, forward and backward to both"
        ] = Operation(
            {
                "unfolded neighbours": _both(unfolded_correlation, *pair),
                "one shift after the other": _both(shifted_correlation, *pair),
                "local_correlation": _both(local_correlation, *last),
            },
            4 * CORRELATED + 2 * 27,
            True,
        )
    return found


def _of_derivative(generator: torch.Generator) -> dict[str, Operation]:
    code = HybridCode(
        *(torch.randn((1, 32, *grid), generator=generator).requires_grad_() for grid in ((), (22, 22, 22)))
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fields = [ModulatedField(3, (32, 32), 128, 2, 128) for _ in range(2)]
        for field in fields:
            nn.init.normal_(field.head.weight, std=0.002)
    size = (175, 175, 175)
    image = torch.empty((1, 1, *size), device="meta")
    points = 174 * torch.rand((1, 500, 3), generator=generator)
    there, back = (FieldMap(field, code, size) for field in fields)
    # The derivative does not see the last bias of the second map.
    leaves = [*code, *fields[0].parameters(), *list(fields[1].parameters())[:-1]]
    loss = JacobianConsistencyLoss()
    return {
        "derivative of NePhi's maps, published size, 500 points, forward and backward to all": Operation(
            {
                "autograd, twice for each axis": lambda: torch.autograd.grad(
                    twice_derived(there, back, points), leaves
                ),
                "JacobianConsistencyLoss": lambda: torch.autograd.grad(loss.at(there, back, image, points), leaves),
            },
            10,
            True,
        )
    }


def twice_derived(first: PointMap, second: PointMap, points: Tensor) -> Tensor:
    """What :class:`common.losses.JacobianConsistencyLoss` is, of images as long as wide, as it was published."""
    points = points.detach().requires_grad_()
    left = second(first(points)) - points
    rows = [torch.autograd.grad(left[..., i].sum(), points, create_graph=True)[0] for i in range(points.shape[-1])]
    return torch.stack(rows).square().mean()


def _both(function: Callable[[Tensor, Tensor], Tensor], image: Tensor, ddf: Tensor) -> Call:
    """A call of ``function`` with a backward pass to both."""

    def call() -> list[Tensor | None]:
        leaves = image.detach().requires_grad_(), ddf.detach().requires_grad_()
        function(*leaves).sum().backward()
        return [leaf.grad for leaf in leaves]

    return call
