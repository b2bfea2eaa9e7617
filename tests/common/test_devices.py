# SPDX-License-Identifier: Apache-2.0
"""Everything runs on torch's ``meta`` device, which has shapes and no values, without a tensor on the CPU beside it.

What a GPU would refuse is found here without one. What asks for a value cannot run, and on a GPU makes the CPU wait:
:data:`NEED_VALUES` lists it, with the reason.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common import losses, metrics, networks, spatial
from common.blocks.affine_norm import AffineNorm
from common.blocks.convolution import convolve, normalise_and_convolve, rectify_and_convolve
from common.blocks.correlation import local_correlation, reversed_correlation
from common.blocks.doubled_convolution import convolve_doubled
from common.blocks.edges import edges
from common.blocks.group_normalisation import group_norm_relu, group_norm_relu_and_convolve
from common.blocks.normalisation import instance_norm_prelu
from common.blocks.tall_unet import TallUNet
from common.blocks.vector_field_attention import expected_offset
from common.engine.inferer import RegistrationInferer
from common.losses import ImagePyramid, RegistrationLoss, Term
from common.networks.dual_pyramid import VARIANTS
from common.spatial import Grid, fixed_point

META = torch.device("meta")
BATCH, CLASSES, LABELS = 2, 4, [1, 2]
SIZES = {2: (36, 20), 3: (34, 20, 18)}
GRID = Grid((6, 5, 4), torch.eye(4))
Case = Callable[[], Any]

# Of one signature each.
STATISTICS = ("jacobian_statistics", "fold_fraction", "fold_fraction_interior", "sdlogj", "sdlogj_l2r")
OVERLAPS = ("dice_per_label", "dice_l2r", "dice_voi")
SURFACES = ("hd95_l2r", "hausdorff_per_label", "average_surface_distance", "label_surface_distances")
# What cannot run: it asks for values. Everything else must run, in both numbers of dimensions that it is for.
NEED_VALUES = {
    "invert": "chooses by value the voxels that need Newton steps",
    "invert_contraction": "stops by value",
    "resample": "its smallest value fills what lies outside, unless another one is given",
    "MutualInformationLoss with weights": "picks the voxels that have some",
    "MaskedLoss": "refuses images that nothing is left of",
    "WarpedDiceLoss": "refuses labels out of range, and interpolates in chosen voxels alone",
    "WeightedLoss": "refuses weights that are all 0",
    "label_pyramid": "refuses labels out of range, and works in the bounding box of each class",
    "ImagePyramid.labels": "is label_pyramid",
    "inverse_consistency_error with a mask": "picks the voxels of the mask",
    **dict.fromkeys(STATISTICS, "picks the voxels that do not fold"),
    **dict.fromkeys((*OVERLAPS, "labels_present"), "makes a table of the values that occur"),
    "tre_l2r": "SciPy's splines, on the CPU",
    "tre_lumir": "finds the landmarks by value",
    **dict.fromkeys((*SURFACES, "surface_dice", "surface_distances"), "surfaces are NumPy arrays, on the CPU"),
}
# Exported, but no function of a tensor.
OTHERS = {
    "losses": {"RegistrationLoss", "Term", "ImagePyramid", "similarity", "smoothness_weight"},
    "spatial": {"Grid", "bspline_bound", "working_grid"},
    "metrics": {"InverseConsistency", "JacobianStatistics", "NonDiffeomorphicVolume", "SurfaceDistances"}
    | {"neighbour_kernel", "surface_element_areas"},
}


@pytest.fixture(autouse=True)
def _autocast_for_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch has no autocast for this device, so that switching it off, or on, has to do nothing."""
    autocast, enabled = torch.autocast, torch.is_autocast_enabled

    def switched(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return nullcontext() if device_type == "meta" else autocast(device_type, *args, **kwargs)

    monkeypatch.setattr(torch, "autocast", switched)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind != "meta" and enabled(kind))


class OneDevice(TorchDispatchMode):
    """Refuses an operation on tensors of two devices, as CUDA does; ``meta`` itself lets some pass, such as products.

    Numbers may lie on the CPU, and copies go from one device to another.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        used = {x.device.type for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.ndim}
        if len(used) > 1 and func is not torch.ops.aten.copy_.default:
            raise AssertionError(f"{func} mixes tensors on {' and '.join(sorted(used))}.")
        return func(*args, **(kwargs or {}))


def values(*shape: int) -> Tensor:
    """Something that a network made."""
    return torch.empty(shape, device=META, requires_grad=True) * 1


def labels(*shape: int) -> Tensor:
    return torch.empty(shape, device=META, dtype=torch.uint8)


def spatial_cases(dims: int) -> dict[str, Case]:
    size = SIZES[dims]
    image, many, field = (values(BATCH, channels, *size) for channels in (1, 9, dims))
    label, points, scan = labels(BATCH, 1, *size), values(BATCH, 7, dims), values(1, 3, *GRID.shape)
    world: dict[str, Case] = {
        "displacement_to_moving": lambda: spatial.displacement_to_moving(GRID, GRID, scan, torch.eye(4).double()),
        "resample": lambda: spatial.resample(scan, GRID, GRID),
        "resample to a value": lambda: spatial.resample(scan, GRID, Grid((3, 3, 3), 2 * torch.eye(4)), outside=0.0),
        "resample_ddf": lambda: spatial.resample_ddf(scan, GRID, GRID),
    }
    return {
        "bspline_field": lambda: spatial.bspline_field(field, [2 * n - 1 for n in size], 2),
        "cell_determinant": lambda: spatial.cell_determinant(field),
        "chain_ddf": lambda: spatial.chain_ddf([values(BATCH, dims, *[5] * dims), field, field], size),
        "chain_map": lambda: spatial.chain_map([values(BATCH, dims, *[5] * dims), field], size)(points),
        "compose": lambda: spatial.compose(field, field),
        "ComposedMap": lambda: spatial.ComposedMap(spatial.field_map(field), spatial.field_map(field))(points),
        "determinant": lambda: spatial.determinant([[image] * dims] * dims),
        "field_map": lambda: spatial.field_map(field)(points),
        "gaussian_filter": lambda: spatial.gaussian_filter(field, 0.7, inside=True),
        "identity_grid": lambda: spatial.identity_grid(size, META),
        "integrate": lambda: spatial.integrate(field),
        "invert": lambda: spatial.invert(field),
        "invert_contraction": lambda: spatial.invert_contraction(field),
        "jacobian_determinant": lambda: spatial.jacobian_determinant(field),
        "resize_ddf": lambda: spatial.resize_ddf(field, [n + 3 for n in size]),
        "resize_image": lambda: spatial.resize_image(image, [n + 3 for n in size]),
        "resize_image, nearest": lambda: spatial.resize_image(label, [n + 3 for n in size], "nearest"),
        "sample_at": lambda: [spatial.sample_at(many, points, padding) for padding in ("border", "zeros")],
        "sample_labels_at": lambda: spatial.sample_labels_at(label, points),
        "warp": lambda: [spatial.warp(x, field, mode) for x in (image, many) for mode in ("bilinear", "nearest")],
        "warp_labels": lambda: spatial.warp_labels(label, field),
        "warp_labels_linear": lambda: spatial.warp_labels_linear(label, field),
        "warp_labels_to_even": lambda: spatial.warp_labels_to_even(label, field),
        "warp_within": lambda: spatial.warp_within(image, field),
        **(world if dims == 3 else {}),
    }


def loss_cases(dims: int) -> dict[str, Case]:
    size = SIZES[dims]
    image, field, maps = (values(BATCH, channels, *size) for channels in (1, dims, CLASSES))
    label, cycle, points = labels(BATCH, 1, *size), values(3, dims, *size), values(BATCH, 7, dims)
    function, draw = spatial.field_map(field), labels(BATCH, 3).long()
    return {
        "BendingLoss": lambda: losses.BendingLoss()(field),
        "BlurredMSELoss": lambda: losses.BlurredMSELoss(2)(image, image),
        "CycleConsistencyLoss": lambda: losses.CycleConsistencyLoss()(cycle, cycle, cycle[:, :1], cycle[:, :1]),
        "FoldingLoss": lambda: losses.FoldingLoss()(field),
        "GaussianLNCCLoss": lambda: [
            losses.GaussianLNCCLoss(2, square)(image, image, label) for square in (False, True)
        ],
        "GradientInverseConsistencyLoss": lambda: losses.GradientInverseConsistencyLoss()(
            function, function, image, draw
        ),
        "GradientLoss": lambda: [losses.GradientLoss(penalty)(field) for penalty in ("l1", "l2")],
        "IntensityConservingLoss": lambda: losses.IntensityConservingLoss(nn.MSELoss())(image, image, field),
        "InverseConsistencyLoss": lambda: losses.InverseConsistencyLoss()(function, function, image, draw),
        "LNCCLoss": lambda: [
            losses.LNCCLoss(dims, guard=guard, statistics="mean")(image, image * 1, weight)
            for guard in ("add", "max")
            for weight in (None, label)
        ],
        "MINDSSCLoss": lambda: losses.MINDSSCLoss()(image, image, label),
        "MSELoss": lambda: [losses.MSELoss()(image, image * 1, weight) for weight in (None, label)],
        "MaskedLoss": lambda: losses.MaskedLoss(nn.MSELoss())(image, image, field),
        "MultiScaleLoss": lambda: losses.MultiScaleLoss([nn.MSELoss(), nn.L1Loss()])(image, image),
        "MutualInformationLoss": lambda: [
            losses.MutualInformationLoss()(image, image),
            losses.MutualInformationLoss(window="bspline", normalised=True)(image, image.detach()),
        ],
        "MutualInformationLoss with weights": lambda: losses.MutualInformationLoss()(image, image, label),
        "NGFLoss": lambda: [losses.NGFLoss()(image, image * 1, weight) for weight in (None, label)],
        "NCCLoss": lambda: [losses.NCCLoss()(image, image * 1, weight) for weight in (None, label)],
        "LocalAndGlobalLoss": lambda: losses.LocalAndGlobalLoss()(image, image * 1, label),
        "JacobianConsistencyLoss": lambda: losses.JacobianConsistencyLoss()(function, function, image, draw),
        "LatentLoss": lambda: losses.LatentLoss()(values(BATCH, 4), maps),
        "LandmarkLoss": lambda: losses.LandmarkLoss()(points, points * 1, field, (1.5,) * dims),
        "SampledLoss": lambda: losses.SampledLoss(losses.NCCLoss())(function, image, image, draw),
        "SoftDiceLoss": lambda: losses.SoftDiceLoss()(maps, maps),
        "VelocityKLLoss": lambda: losses.VelocityKLLoss(2.0)(field, field - 1),
        "WarpedDiceLoss": lambda: losses.WarpedDiceLoss(CLASSES)(label, label, field),
        "WarpedDiceLoss of soft maps": lambda: losses.WarpedDiceLoss(CLASSES)(maps, maps, field),
        "WeightedLoss": lambda: losses.WeightedLoss(losses.MSELoss())(image, image, field, label),
        "image_pyramid": lambda: losses.image_pyramid(image, 3),
        "label_pyramid": lambda: losses.label_pyramid(label, CLASSES, 3),
        "ImagePyramid of images": lambda: ImagePyramid()(image, 3),
        "ImagePyramid.labels": lambda: ImagePyramid(num_classes=CLASSES).labels(label, 3),
    }


def metric_cases(dims: int) -> dict[str, Case]:
    size = SIZES[dims]
    field, points, block = values(BATCH, dims, *size), values(BATCH, 7, dims), values(dims, *size)
    label, scores = labels(BATCH, 1, *size), values(BATCH, 5)
    mask = label[0, 0]
    return {
        **{name: partial(getattr(metrics, name), field) for name in STATISTICS},
        **{name: partial(getattr(metrics, name), label, label, LABELS) for name in OVERLAPS + SURFACES},
        "central_determinant": lambda: metrics.central_determinant(block),
        "digital_determinants": lambda: [found for _, found in metrics.digital_determinants(block)],
        "inverse_consistency_error": lambda: metrics.inverse_consistency_error(field, field, [1.5] * dims),
        "inverse_consistency_error with a mask": lambda: metrics.inverse_consistency_error(field, field, mask=label),
        "labels_present": lambda: metrics.labels_present(label, LABELS),
        "mean_over_labels": lambda: metrics.mean_over_labels(scores),
        "ndv_map": lambda: [metrics.ndv_map(field, edges) for edges in (False, True)],
        "ndv_package": lambda: [metrics.ndv_package(field, mask) for mask in (None, label)],
        "surface_dice": lambda: metrics.surface_dice(label, label, LABELS, 1.0),
        "surface_distances": lambda: metrics.surface_distances(mask, mask),
        "tre_l2r": lambda: metrics.tre_l2r(field, points, points),
        "tre_l2r before registration": lambda: metrics.tre_l2r(None, points, points),
        "tre_lumir": lambda: metrics.tre_lumir(label, label, field),
        **({"nda": lambda: metrics.nda(field, label)} if dims == 2 else {}),
        **({"ndv_lumir": lambda: metrics.ndv_lumir(field, label)} if dims == 3 else {}),
    }


def block_cases(dims: int) -> dict[str, Case]:
    x, slope = values(BATCH, 2, *SIZES[dims]), values(1)
    weight, bias = values(3, 2, *[3] * dims), values(3)
    return {
        "convolve": lambda: convolve(x, weight, bias),
        "convolve_doubled": lambda: convolve_doubled(
            x, values(BATCH, 1, *(2 * n for n in SIZES[dims])), values(3, 3, *[3] * dims), bias
        ),
        "rectify_and_convolve": lambda: rectify_and_convolve(x * 1, weight, bias),
        "normalise_and_convolve": lambda: normalise_and_convolve(x, slope, weight, bias),
        "edges": lambda: edges(x),
        "AffineNorm": lambda: AffineNorm(2, 0.2).to(META)(x).value,
        "expected_offset": lambda: expected_offset(x, values(BATCH, 2, *(n + 2 for n in SIZES[dims]))),
        "local_correlation": lambda: local_correlation(x, x * 1, padding_mode="border"),
        "reversed_correlation": lambda: reversed_correlation(values(BATCH, 3**dims, *SIZES[dims])),
        "instance_norm_prelu": lambda: instance_norm_prelu([x, x * 1], slope, x * 1),
        "group_norm_relu": lambda: group_norm_relu(x, 2, values(2), values(2)),
        "TallUNet": lambda: TallUNet(dims, (3, 4), (2, 3)).to(META)(x),
        "group_norm_relu_and_convolve": lambda: group_norm_relu_and_convolve(
            x * 1, 2, values(2), values(2), weight, bias
        ),
    }


def tensors(result: Any) -> Iterator[Tensor]:
    """Of nested outputs, all."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, Mapping):
        yield from tensors(list(result.values()))
    elif isinstance(result, list | tuple):
        for part in result:
            yield from tensors(part)


def run(case: Case) -> list[Tensor]:
    """Forward and, where there is a gradient, backward."""
    with OneDevice():
        results = list(tensors(case()))
        assert results and all(result.device == META for result in results)
        differentiable = [result.sum() for result in results if result.requires_grad]
        if differentiable:
            torch.stack(differentiable).sum().backward()
    return results


PACKAGES = {"spatial": spatial_cases, "losses": loss_cases, "metrics": metric_cases, "blocks": block_cases}
CASES = [
    pytest.param(cases, name, dims, id=f"{package}-{name}-{dims}D")
    for package, cases in PACKAGES.items()
    for dims in SIZES
    for name in cases(dims)
]


@pytest.mark.parametrize(("cases", "name", "dims"), CASES)
def test_runs_without_values_or_is_known_to_need_them(cases: Any, name: str, dims: int) -> None:
    case = cases(dims)[name]
    if name not in NEED_VALUES:
        run(case)
        return
    with pytest.raises((RuntimeError, NotImplementedError), match=r"meta tensor|register_meta"):
        run(case)


@pytest.mark.parametrize("package", [spatial, losses, metrics])
def test_everything_that_is_exported_is_run(package: Any) -> None:
    kind = package.__name__.rpartition(".")[2]
    exported = {name for name, found in vars(package).items() if callable(found) and name[0] != "_"}
    run_here = {name for dims in SIZES for name in PACKAGES[kind](dims)}
    assert exported - run_here == OTHERS[kind]


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("network", [getattr(networks, name) for name in networks.__all__])
def test_networks_infer_and_train(network: Any, amp: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # What a solver stops by is the only value that a network may ask for.
    monkeypatch.setattr(fixed_point, "_outcome", lambda size, tolerance: 1)
    net = network(**sys.modules[network.__module__].CONFIGURATIONS["tiny"]).to(META)
    pair = torch.empty(BATCH, 2, *SIZES[net.spatial_dims], device=META)
    with torch.no_grad():
        assert run(lambda: RegistrationInferer(amp=amp)(pair, net))[0].shape[2:] == pair.shape[2:]
    run(lambda: RegistrationInferer(details=True, amp=amp)(pair, net))
    assert all(p.grad is not None and p.grad.device == META for p in net.parameters())


def test_a_network_behind_a_frozen_one_infers_and_trains() -> None:
    first, second = (
        network(**sys.modules[network.__module__].CONFIGURATIONS["tiny"])
        for network in (networks.GradICON, networks.NePhi)
    )
    net = networks.PreAligned(first, second, 1).to(META)
    pair = torch.empty(BATCH, 2, *SIZES[3], device=META)
    with torch.no_grad():
        assert all(
            field.shape[2:] == pair.shape[2:] for field in run(lambda: RegistrationInferer(["inverse_ddf"])(pair, net))
        )
    points = values(BATCH, 7, 3)

    def maps() -> Any:
        found = RegistrationInferer(["map", "inverse_map"])(pair, net.train())
        return [function.with_derivative(points) for function in found.values()]

    run(maps)


@pytest.mark.parametrize("variant", ["plain", "acdc", "oasis"])
def test_variants_of_eoir_train(variant: Any) -> None:
    net = networks.EOIR(variant=variant, start_channel=2, int_steps=2).to(META)
    run(lambda: net(torch.empty(BATCH, 2, *SIZES[3], device=META), details=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_the_dual_pyramid_train(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed_point, "_outcome", lambda size, tolerance: 1)
    net = networks.DualPyramid(2, variant=variant, channels=(2, 3)).to(META)
    run(lambda: net(torch.empty(BATCH, 2, *SIZES[2], device=META), details=True))


class Slope(nn.Module):
    """A penalty on the derivative of a map of points."""

    def forward(self, function: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
        """Mean square of the derivative at as many points as the image has rows."""
        points = torch.zeros(len(image), image.shape[2], image.ndim - 2, device=image.device, requires_grad=True)
        (slope,) = torch.autograd.grad(function(points).sum(), points, create_graph=True)
        return slope.square().mean()


def terms(dims: int) -> dict[str, Term]:
    return {
        "similarity": Term(losses.LNCCLoss(dims, 5), ["warped", "fixed"]),
        "back": Term(losses.LNCCLoss(dims, 5), ["warped_back", "moving"]),
        "smoothness": Term(losses.GradientLoss(), ["velocity"]),
        "bending": Term(losses.BendingLoss(), ["ddf"]),
        "slope": Term(Slope(), ["map", "fixed"]),
    }


def step(dims: int, terms: Mapping[str, Term], levels: int, label_classes: int | None = None) -> Tensor:
    """The loss of one training step, on the fields and images that it looks at."""
    sizes = [[n // 2**level for n in SIZES[dims]] for level in range(levels)]
    fields = {
        name: [values(BATCH, dims, *size) for size in sizes] for name in ("pyramid", "inverse_pyramid", "velocity")
    }
    outputs = {"ddf": fields["pyramid"][0], "inverse_ddf": fields["inverse_pyramid"][0], **fields}
    targets = {name: torch.empty(BATCH, 1, *SIZES[dims], device=META) for name in ("moving", "fixed")}
    targets |= {f"{name}_label": labels(BATCH, 1, *SIZES[dims]) for name in ("moving", "fixed")}
    pyramid = ImagePyramid(num_classes=label_classes) if levels > 1 else None
    return RegistrationLoss(terms, [1.0] * levels, pyramid)(outputs, targets)


@pytest.mark.parametrize("dims", SIZES)
@pytest.mark.parametrize("levels", [1, 3])
def test_a_training_step_asks_for_no_value(levels: int, dims: int) -> None:
    (total,) = run(lambda: step(dims, terms(dims), levels))
    assert total.shape == ()


@pytest.mark.parametrize("levels", [1, 3])
def test_labels_in_a_training_step_ask_for_values(levels: int) -> None:
    overlap = {"dice": Term(losses.WarpedDiceLoss(CLASSES), ["moving_label", "fixed_label", "ddf"])}
    with pytest.raises(RuntimeError, match="meta tensor"):
        step(3, overlap, levels, CLASSES)


@pytest.mark.parametrize("operation", [torch.add, torch.mul, torch.matmul, torch.maximum])
def test_a_tensor_left_behind_is_noticed(operation: Any) -> None:
    with pytest.raises(AssertionError, match="mixes tensors on cpu and meta"):
        run(lambda: operation(values(3, 3), torch.zeros(3, 3)))
