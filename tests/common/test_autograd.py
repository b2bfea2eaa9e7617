# SPDX-License-Identifier: Apache-2.0
"""What is differentiated twice is right or refuses: a gradient without history would train nothing, without a word."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import common
import common.blocks.field_map
import common.losses
import common.spatial
from common.blocks.affine_norm import AffineNorm
from common.blocks.convolution import convolve, normalise_and_convolve, rectify_and_convolve
from common.blocks.correlation import local_correlation, reversed_correlation
from common.blocks.doubled_convolution import convolve_doubled
from common.blocks.group_normalisation import group_norm_relu, group_norm_relu_and_convolve
from common.blocks.normalisation import instance_norm_prelu
from common.blocks.vector_field_attention import expected_offset
from common.checks import InputError
from common.losses import (
    BendingLoss,
    BlurredMSELoss,
    CycleConsistencyLoss,
    FoldingLoss,
    GaussianLNCCLoss,
    GradientInverseConsistencyLoss,
    GradientLoss,
    InverseConsistencyLoss,
    JacobianConsistencyLoss,
    LandmarkLoss,
    LatentLoss,
    LNCCLoss,
    LocalAndGlobalLoss,
    MINDSSCLoss,
    MSELoss,
    MutualInformationLoss,
    NCCLoss,
    NGFLoss,
    RegistrationLoss,
    SampledLoss,
    SoftDiceLoss,
    Term,
    VelocityKLLoss,
    WarpedDiceLoss,
    image_pyramid,
)
from common.networks import (
    EOIR,
    VFA,
    DualPyramid,
    GradICON,
    LKUNet,
    SITReg,
    TransMorph,
    TransMorphBSpline,
    TransMorphDiff,
    TransMorphTVF,
    VoxelMorph,
)
from common.networks.sitreg import CONFIGURATIONS
from common.spatial import (
    ComposedMap,
    Grid,
    bspline_field,
    cell_determinant,
    chain_ddf,
    chain_map,
    compose,
    determinant,
    field_map,
    gaussian_filter,
    integrate,
    invert,
    invert_contraction,
    jacobian_determinant,
    resample,
    resample_ddf,
    resize_ddf,
    resize_image,
    sample_at,
    warp,
    warp_within,
)
from common.spatial.world import displacement_to_moving

Function = Callable[..., Tensor]


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def slope() -> Tensor:
    return torch.full((1,), 0.25, dtype=torch.float64)


def registration(ddf: Tensor) -> Tensor:
    images = {name: normal(1, 1, 4, 5) for name in ("moving", "fixed")}
    return RegistrationLoss({"mse": Term(nn.MSELoss(), ["warped", "fixed"])})({"ddf": ddf}, images)


def consistency(loss: nn.Module, there: Tensor, back: Tensor) -> Tensor:
    penalty: Tensor = loss(field_map(there), field_map(back), IMAGE, torch.tensor([[0, 1, 2]]))
    return penalty


IMAGE, MANY, FIELD = normal(1, 1, 4, 5), normal(1, 9, 4, 5), normal(1, 2, 4, 5)
VOLUME, VECTORS = normal(1, 1, 3, 4, 5), normal(1, 3, 3, 4, 5)
LABEL = (IMAGE > 0).long()
GRID = Grid((3, 4, 5), torch.eye(4))
SOFT = normal(1, 3, 4, 5).softmax(1)
KERNEL, BIAS = normal(2, 9, 3, 3), normal(2)
MASK, CYCLE = torch.ones(1, 1, 4, 5), normal(3, 2, 4, 5)
SITREG = SITReg(2, **CONFIGURATIONS["tiny"]).double()
NETWORK = EOIR(2, start_channel=2, int_steps=1).double()
CHAIN = GradICON(2, channels=(3, 4), up_channels=(3, 3), halvings=(1, 0)).double()
PYRAMIDS = {variant: DualPyramid(2, variant=variant, channels=(2, 3)).double() for variant in ("conv_mf", "convic_c")}
KERNELS = LKUNet(2, start_channels=2).double()
SMALL: dict[str, Any] = {"embed_dim": 4, "depths": (1, 1), "heads": (1, 2), "window": (2, 3)}
WINDOWS = [
    TransMorph(2, **SMALL, head_channels=2).double(),
    TransMorphTVF(2, **SMALL, head_channels=2, time_steps=2).double(),
    TransMorphDiff(2, **SMALL, head_channels=2, int_steps=1).double(),
    TransMorphBSpline(2, **SMALL, lattice_channels=(2,), int_steps=1).double(),
]
UNET = VoxelMorph(2, encoder=(2, 2), decoder=(2, 2, 2), int_steps=1).double()
ATTENTION = VFA(2, downsamples=1, start_channels=2, matching_channels=2).double()

REFUSED: dict[str, tuple[Function, tuple[Tensor, ...]]] = {
    "warp": (warp, (IMAGE, FIELD)),
    "warp 3D": (warp, (VOLUME, VECTORS)),
    "warp of many channels": (warp, (MANY, FIELD)),
    "warp, nearest": (lambda image: warp(image, FIELD, mode="nearest"), (IMAGE,)),
    "warp_within": (warp_within, (IMAGE, FIELD)),
    "compose": (compose, (FIELD, FIELD)),
    "chain_ddf": (lambda *fields: chain_ddf(fields, (4, 5)), (FIELD, FIELD)),
    "integrate": (integrate, (FIELD,)),
    "resample": (lambda image: resample(image, GRID, GRID), (VOLUME,)),
    "resample_ddf": (lambda ddf: resample_ddf(ddf, GRID, GRID), (VECTORS,)),
    "LNCCLoss": (LNCCLoss(2, 3), (IMAGE, normal(1, 1, 4, 5) + 1)),
    "GaussianLNCCLoss": (GaussianLNCCLoss(1), (IMAGE, normal(1, 1, 4, 5) + 1)),
    "NCCLoss": (NCCLoss(), (IMAGE, normal(1, 1, 4, 5) * IMAGE)),
    "LocalAndGlobalLoss": (LocalAndGlobalLoss(), (IMAGE, normal(1, 1, 4, 5) * IMAGE)),
    "NGFLoss": (NGFLoss(), (IMAGE, normal(1, 1, 4, 5) + 1)),
    "CycleConsistencyLoss": (lambda x: CycleConsistencyLoss()(x, x, *[MASK.expand(3, 1, 4, 5)] * 2), (CYCLE,)),
    "FoldingLoss": (FoldingLoss(), (10 * FIELD,)),
    "GradientLoss": (GradientLoss(), (FIELD,)),
    "BendingLoss": (BendingLoss(), (FIELD,)),
    "VelocityKLLoss": (VelocityKLLoss(2.0), (FIELD, normal(1, 2, 4, 5) - 1)),
    "MINDSSCLoss": (MINDSSCLoss(1, 1), (IMAGE, normal(1, 1, 4, 5) + 1)),
    "MutualInformationLoss": (MutualInformationLoss(4), (IMAGE, normal(1, 1, 4, 5) + 1)),
    "MSELoss": (MSELoss(), (IMAGE, normal(1, 1, 4, 5) + 1)),
    "MutualInformationLoss, B-splines": (
        lambda image: MutualInformationLoss(4, "bspline", normalised=True)(image, IMAGE),
        (normal(1, 1, 4, 5) + 1,),
    ),
    "WarpedDiceLoss": (lambda ddf: WarpedDiceLoss(2)(LABEL, LABEL, ddf), (FIELD,)),
    "WarpedDiceLoss of soft maps": (lambda ddf: WarpedDiceLoss(3)(SOFT, SOFT, ddf), (FIELD,)),
    "RegistrationLoss": (registration, (FIELD,)),
    "convolve": (convolve, (MANY, KERNEL, BIAS)),
    "convolve_doubled": (
        lambda x, *rest: convolve_doubled(x[..., :2, :2], x[..., :4], *rest),
        (MANY, normal(2, 18, 3, 3), BIAS),
    ),
    "rectify_and_convolve": (lambda x, *rest: rectify_and_convolve(x.clone(), *rest), (MANY, KERNEL, BIAS)),
    "normalise_and_convolve": (normalise_and_convolve, (MANY, slope(), KERNEL, BIAS)),
    "instance_norm_prelu": (lambda x, y: instance_norm_prelu([x], y), (MANY, slope())),
    "group_norm_relu": (lambda x: group_norm_relu(x, 3, torch.ones(9).double(), torch.zeros(9).double()), (MANY,)),
    "group_norm_relu_and_convolve": (
        lambda x, *rest: group_norm_relu_and_convolve(x, 3, torch.ones(9).double(), torch.zeros(9).double(), *rest),
        (MANY, KERNEL, BIAS),
    ),
    "invert": (lambda ddf: invert(ddf)[0], (0.1 * FIELD,)),
    "invert_contraction": (invert_contraction, (0.1 * FIELD,)),
    "EOIR": (NETWORK, (normal(1, 2, 32, 32),)),
    "expected_offset": (expected_offset, (normal(1, 2, 4, 5), normal(1, 2, 6, 7))),
    "local_correlation": (local_correlation, (normal(1, 3, 4, 5), normal(1, 3, 4, 5))),
    "reversed_correlation": (lambda x: reversed_correlation(x).square(), (MANY,)),
    "AffineNorm": (lambda x: AffineNorm(9, 0.2).double()(x).value, (MANY,)),
    "VFA": (ATTENTION, (normal(1, 2, 8, 8),)),
    "GradICON": (CHAIN, (normal(1, 2, 9, 8),)),
    "VoxelMorph": (UNET, (normal(1, 2, 8, 8),)),
    "LKUNet": (KERNELS, (normal(1, 2, 16, 17),)),
    **{type(network).__name__: (network, (normal(1, 2, 8, 8),)) for network in WINDOWS},
    "SITReg": (SITREG, (normal(1, 2, 12, 9),)),
    **{f"DualPyramid, {variant}": (network, (normal(1, 2, 8, 8),)) for variant, network in PYRAMIDS.items()},
}
RIGHT: dict[str, tuple[Function, tuple[Tensor, ...]]] = {
    "sample_at": (sample_at, (IMAGE, normal(1, 6, 2))),
    "field_map": (lambda ddf, points: field_map(ddf)(points), (FIELD, normal(1, 6, 2))),
    "chain_map": (lambda ddf, points: chain_map([ddf, ddf], (7, 9))(points), (FIELD, normal(1, 6, 2))),
    "ComposedMap": (lambda x, points: ComposedMap(field_map(x), field_map(2 * x))(points), (FIELD, normal(1, 6, 2))),
    "bspline_field": (lambda control: bspline_field(control, (7, 10), 2), (FIELD,)),
    "gaussian_filter": (lambda image: gaussian_filter(image, 0.7), (IMAGE,)),
    "resize_image": (lambda image: resize_image(image, (3, 3)), (IMAGE,)),
    "resize_ddf": (lambda ddf: resize_ddf(ddf, (3, 3)), (FIELD,)),
    "cell_determinant": (cell_determinant, (FIELD,)),
    "jacobian_determinant": (jacobian_determinant, (FIELD,)),
    "determinant": (lambda x: determinant([[x[0], x[1]], [x[2], x[3]]]), (normal(4, 3),)),
    "MINDSSCLoss.context": (MINDSSCLoss(1, 1).context, (IMAGE,)),
    "BlurredMSELoss": (BlurredMSELoss(1), (IMAGE, normal(1, 1, 4, 5) + 1)),
    "InverseConsistencyLoss": (lambda x, y: consistency(InverseConsistencyLoss(), x, y), (FIELD, 2 * FIELD)),
    "GradientInverseConsistencyLoss": (
        lambda x, y: consistency(GradientInverseConsistencyLoss(), x, y),
        (FIELD, 2 * FIELD),
    ),
    "JacobianConsistencyLoss": (
        lambda x: JacobianConsistencyLoss().at(field_map(x), field_map(-x), x, normal(1, 6, 2)),
        (FIELD,),
    ),
    "LatentLoss": (LatentLoss(), (normal(2, 3), normal(2, 3, 2, 2))),
    "LandmarkLoss": (lambda x: LandmarkLoss()(normal(1, 6, 2), normal(1, 6, 2) + 1, x, (1, 2)), (FIELD,)),
    "SampledLoss": (
        lambda x: SampledLoss(nn.MSELoss()).at(field_map(x), IMAGE, IMAGE, normal(1, 6, 2)),
        (FIELD,),
    ),
    "SoftDiceLoss": (SoftDiceLoss(), (SOFT, normal(1, 3, 4, 5).softmax(1))),
    "image_pyramid": (lambda image: image_pyramid(image, 2)[1], (IMAGE,)),
    "ImagePyramid": (lambda image: common.losses.ImagePyramid()(image, 2)[1], (IMAGE,)),
}
WITHOUT_GRADIENT = {
    "IntensityConservingLoss": "hands on what its loss makes",
    "MaskedLoss": "hands on what its loss makes",
    "MultiScaleLoss": "hands on what its losses make",
    "WeightedLoss": "hands on what its loss makes",
    "similarity": "makes one of the losses",
    "smoothness_weight": "a number",
    "Term": "hands on what its loss makes",
    "Grid": "no tensor goes through it",
    "identity_grid": "made of a shape alone",
    "bspline_bound": "a number, made of factors",
    "displacement_to_moving": "made of headers; a field is added as it is",
    "working_grid": "made of headers alone",
    "label_pyramid": "of integers",
    "sample_labels_at": "of integers",
    "warp_labels": "of integers",
    "warp_labels_linear": "of integers",
    "warp_labels_to_even": "of integers",
}


@pytest.mark.parametrize("name", REFUSED)
def test_second_derivatives_are_refused_with_a_sentence(name: str) -> None:
    function, values = REFUSED[name]
    inputs = [value.clone().requires_grad_() for value in values]
    # A sum, whose gradient has no history: where torch's own check sees nothing.
    torch.autograd.grad(function(*inputs).sum(), inputs)
    with pytest.raises(InputError, match=r"differentiated twice \(create_graph=True\): use .*\.$"):
        torch.autograd.grad(function(*inputs).sum(), inputs, create_graph=True)


@pytest.mark.parametrize("name", RIGHT)
def test_second_derivatives_are_right(name: str) -> None:
    function, values = RIGHT[name]
    assert torch.autograd.gradgradcheck(function, [value.clone().requires_grad_() for value in values])


@pytest.mark.parametrize("package", [common.losses, common.spatial])
def test_every_function_of_the_package_is_looked_at(package: Any) -> None:
    names = {n for n, found in vars(package).items() if callable(found) and found.__module__.startswith("common.")}
    assert names <= {*REFUSED, *RIGHT, *WITHOUT_GRADIENT}


def test_what_has_no_gradient_has_no_history_either() -> None:
    field = VECTORS.clone().requires_grad_()
    assert not common.spatial.invert(field)[1].requires_grad
    # Linear in the field, so that its gradient is a constant.
    (gradient,) = torch.autograd.grad(displacement_to_moving(GRID, GRID, field).sum(), field, create_graph=True)
    torch.testing.assert_close(gradient, torch.ones_like(field))


def test_every_backward_pass_written_by_hand_refuses() -> None:
    for module in pkgutil.walk_packages(common.__path__, "common."):
        importlib.import_module(module.name)
    own = [cls for cls in torch.autograd.Function.__subclasses__() if cls.__module__.startswith("common.")]
    # Autograd makes its gradients, with a history where one is wanted: tests/common/blocks/test_field_map.py.
    own.remove(common.blocks.field_map._InPieces)
    assert len(own) >= 6
    for cls in own:
        with pytest.raises(InputError, match="cannot be differentiated twice"), torch.enable_grad():
            cls.backward(None, torch.ones(1))
