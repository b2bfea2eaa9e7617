# SPDX-License-Identifier: Apache-2.0
"""VoxelMorph: a U-Net proposes a displacement, or a velocity, or how velocities are distributed.

Papers: G. Balakrishnan et al., "VoxelMorph: a learning framework for deformable medical image registration", IEEE TMI
38(8), 2019, arXiv 1809.05231; A. Dalca et al., "Unsupervised learning of probabilistic diffeomorphic registration for
images and surfaces", MedIA 57, 2019, arXiv 1903.03545; M. Hoffmann et al., "SynthMorph: learning contrast-invariant
registration without acquired images", IEEE TMI 41(3), 2022, arXiv 2004.10282.
Repositories: voxelmorph/voxelmorph, huaibovip/DilateMorph_TMI (Apache-2.0), and
junyuchen245/TransMorph_Transformer_for_Medical_Image_Registration (MIT). Official weights:
:mod:`common.weights.voxelmorph`.

On purpose different from the published code: any image size (padded inside); the inverse is returned beside the
displacement. MONAI's ``VoxelMorph`` is one level shallower by default, has no half-resolution integration that agrees
with the published one, and no U-Net with strides.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.blocks.convolution import convolve
from common.blocks.draws import own_random_numbers, standard_deviation
from common.blocks.edges import edges
from common.blocks.voxelmorph import PairUNet, start_alike, start_as_he
from common.checks import InputError
from common.networks.contract import Details, check_numbers, check_pair, crop, padding, wants
from common.networks.passes import in_passes
from common.spatial import integrate, resize_image

VOXELMORPH_1: dict[str, Any] = {"encoder": (8, 32, 32, 32), "decoder": (32, 32, 32, 32, 32, 8, 8)}
FLOW_DEVIATION = 1e-5
"""Of the fresh weights of the last convolution: a fresh network leaves images where they are."""
LOG_VARIANCE, LOG_VARIANCE_DEVIATION = -10.0, 1e-10
"""What a fresh network says of every logarithm of a velocity's variance, and the spread of the weights that say it."""
NAMES = {
    "backbone": ("pool", "stride"),
    "padding_mode": ("zeros", "border"),
    "initialisation": ("torch", "he"),
    "sees": ("intensities", "edges"),
}
"""What arguments may be that are no numbers."""
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "voxelmorph1": VOXELMORPH_1,
    "voxelmorph2": {},
    "cvpr": {"decoder": (32, 32, 32, 32, 8, 8)},
    "diffeomorphic": {"int_steps": 7},
    "ixi1": {"backbone": "stride", **VOXELMORPH_1},
    "ixi2": {"backbone": "stride"},
    "lumir": {"backbone": "stride"},
    "probabilistic": {"int_steps": 7, "padding_mode": "border", "probabilistic": True},
    "synthmorph": {
        "encoder": (256,) * 4,
        "decoder": (256,) * 6,
        "int_steps": 5,
        "svf_resolution": 2,
        "padding_mode": "border",
        "initialisation": "he",
    },
    "tiny": {"encoder": (2, 4, 4), "decoder": (4, 4, 4, 2)},
}
"""Arguments of the published networks, and those that make any of them small enough for tests."""


class VoxelMorph(nn.Module):
    """A U-Net and a convolution, whose result is the displacement or, with ``int_steps``, a stationary velocity.

    The default is the displacement of the library's network, "VoxelMorph-2" of the published tables.

    Args:
        spatial_dims: 2 or 3.
        backbone: "pool" (the library) or "stride" (the tables of IXI and LUMIR), see :mod:`common.blocks.voxelmorph`.
        encoder: channels of the convolutions on the way down, finest first, ``convs_per_level`` for each halving.
        decoder: those on the way up, coarsest first, as many, and one or more after the last enlargement.
        convs_per_level: convolutions of each level; 1 with strides.
        int_steps: squarings of scaling and squaring; 0 takes the result as displacement.
        int_downsize: how much coarser than the image the grid is that the velocity is integrated on.
        svf_resolution: how much coarser than the image the result of the U-Net is; the enlargements beyond it are left
            out. 2 is the published ``unet_half_res``.
        padding_mode: what the velocity is outside of its grid while it is integrated: "zeros" (PyTorch) or "border"
            (TensorFlow, SynthMorph).
        probabilistic: whether the U-Net proposes a normal distribution of the velocity at each voxel, from which
            training draws, and whose mean counts otherwise.
        samples: draws of the velocity that ``deviation`` is found from, 2 or more.
        initialisation: of the U-Net's fresh weights: "torch" (that of its convolutions) or "he" (TensorFlow's library,
            SynthMorph: He et al., ICCV 2015, biases 0), by which the deep levels have a say from the start.
        sees: what the U-Net gets: "intensities", as published, or "edges" (:func:`common.blocks.edges.edges`), which a
            narrow network can compare in images of unlike contrasts without having to find them first.
        passes: how often it registers outside of training, where there is one pass. The published network has one. Of
            more, each sees the moving image as those before have warped it (:mod:`common.networks.passes`), and takes
            the mean of the velocity and of the opposite one of the exchanged images.

    Raises:
        InputError: for another number of dimensions, backbone, padding, initialisation or input, lists of channels that
            do not fit together, a resolution that is no power of two within the depth of the U-Net, or several passes
            of a network that has no velocity, or a distribution of it.
    """

    levels = 1

    def __init__(
        self,
        spatial_dims: int = 3,
        *,
        backbone: Literal["pool", "stride"] = "pool",
        encoder: Sequence[int] = (16, 32, 32, 32),
        decoder: Sequence[int] = (32, 32, 32, 32, 32, 16, 16),
        convs_per_level: int = 1,
        int_steps: int = 0,
        int_downsize: int = 2,
        svf_resolution: int = 1,
        padding_mode: Literal["zeros", "border"] = "zeros",
        probabilistic: bool = False,
        samples: int = 20,
        initialisation: Literal["torch", "he"] = "torch",
        sees: Literal["intensities", "edges"] = "intensities",
        passes: int = 1,
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "spatial_dims": spatial_dims,
            "backbone": backbone,
            "encoder": [*encoder],
            "decoder": [*decoder],
            "convs_per_level": convs_per_level,
            "int_steps": int_steps,
            "int_downsize": int_downsize,
            "svf_resolution": svf_resolution,
            "padding_mode": padding_mode,
            "probabilistic": probabilistic,
            "samples": samples,
            "initialisation": initialisation,
            "sees": sees,
            "passes": passes,
        }
        _check_names(spatial_dims, self.arguments)
        check_numbers(1, convs_per_level=convs_per_level, passes=passes)
        check_numbers(0, int_steps=int_steps)
        check_numbers(2, samples=samples)
        _check_channels(encoder, decoder, convs_per_level, backbone)
        if passes > 1 and (not int_steps or probabilistic):
            raise InputError(
                f"passes is {passes}; more than 1 need int_steps above 0 and a network that says one velocity."
            )
        halvings = len(encoder) // convs_per_level
        _check_resolutions(2**halvings, int_downsize=int_downsize, svf_resolution=svf_resolution)
        self.spatial_dims, self.unit = spatial_dims, 2**halvings
        self.int_steps, self.int_downsize = int_steps, int_downsize
        self.svf_resolution, self.padding_mode = svf_resolution, padding_mode
        self.probabilistic, self.samples = probabilistic, samples
        self.sees, self.passes = sees, passes
        left_out = svf_resolution.bit_length() - 1
        self.unet = PairUNet(spatial_dims, encoder, decoder, convs_per_level, backbone == "stride", left_out)
        if initialisation == "he":
            start_as_he(self.unet)
        kind: type[nn.Conv2d] | type[nn.Conv3d] = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.flow = kind(self.unet.channels, spatial_dims, 3, padding=1)
        start_alike(self.flow, FLOW_DEVIATION)
        if probabilistic:
            self.log_variance = kind(self.unet.channels, spatial_dims, 3, padding=1)
            start_alike(self.log_variance, LOG_VARIANCE_DEVIATION, LOG_VARIANCE)

    @overload
    def forward(self, image: Tensor, details: Literal[False] = False) -> Tensor: ...

    @overload
    def forward(self, image: Tensor, details: Literal[True] | Collection[str]) -> dict[str, Any]: ...

    def forward(self, image: Tensor, details: Details = False) -> Tensor | dict[str, Any]:
        """Register a pair.

        Args:
            image: (B, 2, *spatial), channel 0 moving, channel 1 fixed, any spatial size. Intensities from 0 to 1.
            details: further outputs that are wanted, by name, or True for all.

        Returns:
            The ``ddf`` (B, d, *spatial), float32 voxels; with ``details`` a dict of it and, where asked for,

            - ``velocity``: what is integrated, in voxels of its grid, which covers the image padded at the far ends to
              the working size of the network; the displacement itself where ``int_steps`` is 0; not of several passes;
            - ``inverse_ddf``: the displacement of the opposite velocity, where there is one.

            A probabilistic network draws its velocity in training and takes the mean otherwise. ``velocity`` is the
            mean in either case, on the grid of the U-Net's result, and there are, too,

            - ``log_sigma``: the logarithm of its standard deviation, of the same shape;
            - ``deviation``: the standard deviation of the displacement, (B, d, *spatial) in voxels, found from
              ``samples`` draws, the same each time, and without a gradient.

        Raises:
            ValueError: when ``image`` has not two channels or not ``spatial_dims`` spatial axes.
        """
        check_pair(image, self.spatial_dims)
        if self.passes > 1 and not self.training:
            return in_passes(image, self.passes, self._there_and_back, details)
        size = image.shape[2:]
        image = self._seen(image)
        proposed, log_sigma = self._proposed(image)
        chosen = proposed
        if log_sigma is not None and self.training:
            chosen = proposed + log_sigma.exp() * torch.randn_like(proposed)
        velocity = self._on_its_grid(chosen, image.shape[2:])
        ddf = crop(self._integrated(velocity, image.shape[2:]), size)
        if not details:
            return ddf
        outputs: dict[str, Any] = {"ddf": ddf}
        if wants(details, "velocity"):
            outputs["velocity"] = velocity if log_sigma is None else proposed
        if self.int_steps and wants(details, "inverse_ddf"):
            outputs["inverse_ddf"] = crop(self._integrated(-velocity, image.shape[2:]), size)
        if log_sigma is not None and wants(details, "log_sigma"):
            outputs["log_sigma"] = log_sigma
        if log_sigma is not None and wants(details, "deviation"):
            draws = self._draws(proposed.detach(), log_sigma.detach(), image.shape[2:])
            outputs["deviation"] = crop(standard_deviation(draws), size)
        return outputs

    def _seen(self, image: Tensor) -> Tensor:
        """A pair as the U-Net gets it."""
        return F.pad(edges(image) if self.sees == "edges" else image, padding(image.shape[2:], self.unit))

    def _there_and_back(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """One of several passes: the displacement and that of the way back, which the exchanged images exchange."""
        size, seen = image.shape[2:], self._seen(image)
        proposed = (self._proposed(seen)[0] - self._proposed(seen.flip(1))[0]) / 2
        velocity = self._on_its_grid(proposed, seen.shape[2:])
        there, back = (crop(self._integrated(v, seen.shape[2:]), size) for v in (velocity, -velocity))
        return there, back

    def _proposed(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the U-Net says: velocity or its mean, and in the second case the logarithm of its standard deviation."""
        features = self.unet(image)
        assert self.flow.bias is not None
        field = convolve(features, self.flow.weight, self.flow.bias)
        field = field.to(torch.promote_types(field.dtype, torch.float32))
        # Published weights speak of variances.
        return field, 0.5 * self.log_variance(features).to(field.dtype) if self.probabilistic else None

    def _on_its_grid(self, field: Tensor, size: Sequence[int]) -> Tensor:
        """What is integrated, on the grid that it is integrated on."""
        return _resized(field, size, self.svf_resolution, self.int_downsize if self.int_steps else 1)

    @torch.no_grad()
    def _draws(self, mean: Tensor, log_sigma: Tensor, size: Sequence[int]) -> Iterator[Tensor]:
        """Displacements of random velocities, on the grid of the padded image, of all pairs with the same noise."""
        sigma = log_sigma.exp()
        with own_random_numbers(mean.device):
            for _ in range(self.samples):
                velocity = mean + sigma * torch.randn_like(mean[:1])
                yield self._integrated(self._on_its_grid(velocity, size), size)

    def _integrated(self, velocity: Tensor, size: Sequence[int]) -> Tensor:
        """The displacement of a velocity, on the grid of the padded image."""
        if not self.int_steps:
            return velocity
        ddf = integrate(velocity, self.int_steps, self.padding_mode)
        return _resized(ddf, size, self.int_downsize, 1)


def _resized(field: Tensor, size: Sequence[int], old: int, new: int) -> Tensor:
    """A field in voxels on a grid of another coarseness, corner to corner; its values change as the coarseness does.

    The voxels of such grids differ by a little less, (n - 1) / (n / 2 - 1) instead of 2: it is the published rule.
    """
    return field if old == new else resize_image(field, [n // new for n in size]) * (old / new)


def _check_names(spatial_dims: int, arguments: dict[str, Any]) -> None:
    if spatial_dims not in (2, 3):
        raise InputError(f"spatial_dims is {spatial_dims!r}; expected 2 or 3.")
    for name, known in NAMES.items():
        if arguments[name] not in known:
            raise InputError(f"{name} is {arguments[name]!r}; expected {known[0]!r} or {known[1]!r}.")


def _check_channels(encoder: Sequence[int], decoder: Sequence[int], convs_per_level: int, backbone: str) -> None:
    for name, numbers in (("encoder", encoder), ("decoder", decoder)):
        check_numbers(1, **{f"{name}[{i}]": n for i, n in enumerate(numbers)})
    if backbone == "stride" and convs_per_level != 1:
        raise InputError(f"convs_per_level is {convs_per_level}; a U-Net with strides has 1.")
    if not encoder or len(encoder) % convs_per_level:
        raise InputError(f"encoder is {encoder}; give {convs_per_level} numbers of channels for each level.")
    if len(decoder) <= len(encoder):
        raise InputError(f"decoder is {decoder}; give more numbers than encoder has, which are {len(encoder)}.")


def _check_resolutions(coarsest: int, **resolutions: int) -> None:
    check_numbers(1, **resolutions)
    for name, coarseness in resolutions.items():
        if coarsest % coarseness:
            raise InputError(f"{name} is {coarseness}; give a power of two up to {coarsest}, which the U-Net reaches.")
