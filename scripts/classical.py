# SPDX-License-Identifier: Apache-2.0
"""Registration of one pair by a package of the registry; ``baseline_worker.py`` calls it in a process of its own.

The packages get plain arrays with their spacing, origin zero and axes as they are, so that every vector they return is
(d_0, d_1, d_2) in millimetres along the array axes and the field in voxels is d_a / s_a. They are imported where they
are used: a package that is absent does not disturb the others. Beyond them this module needs NumPy alone, because a
package may have an environment of its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Spacing = tuple[float, float, float]
# What Greedy recommends by itself, in voxels, and what was published for 1 mm; coarser grids need the former.
SMOOTHING = {"voxels": "1.732vox 0.7071vox", "published": "1.5mm 0.5mm"}


@dataclass(frozen=True)
class Method:
    """One baseline.

    Attributes:
        register: (moving, fixed, spacing, threads, options) to the displacement (3, *spatial) in voxels, and the moving
            image (*spatial) as the package itself warps it.
        package: name in the registry; None where nothing is needed.
        modules: what is imported of it.
        options: parameters, as they are recorded with the result.
        requirements: file of the repository that pins the package.
    """

    register: Callable[[Array, Array, Spacing, int, Mapping[str, Any]], tuple[Array, Array]]
    package: str | None = None
    modules: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    requirements: str = "requirements-baselines.txt"


def zero(
    moving: Array, fixed: Array, spacing: Spacing, threads: int, options: Mapping[str, Any]
) -> tuple[Array, Array]:
    """No registration: what every method has to beat."""
    return np.zeros((fixed.ndim, *fixed.shape), np.float32), moving


def greedy(
    moving: Array, fixed: Array, spacing: Spacing, threads: int, options: Mapping[str, Any]
) -> tuple[Array, Array]:
    """Greedy diffeomorphic registration with windowed correlation (Yushkevich et al.; picsl-greedy)."""
    from picsl_greedy import Greedy3D

    tool = Greedy3D()
    tool.execute(
        f"-i fixed moving -o warp -wp {options['warp_precision']} -m {options['metric']} -n {options['iterations']} "
        f"-s {options['smoothing']} -threads {threads}",
        fixed=to_itk(fixed, spacing),
        moving=to_itk(moving, spacing),
        warp=None,
    )
    # Under a name of its own: the tool adds noise to the images that it registers.
    command = f"-rf fixed -rm original warped -r warp -threads {threads}"
    tool.execute(command, original=to_itk(moving, spacing), warped=None)
    return vectors_from_itk(tool["warp"], spacing), image_from_itk(tool["warped"])


def syn(moving: Array, fixed: Array, spacing: Spacing, threads: int, options: Mapping[str, Any]) -> tuple[Array, Array]:
    """Symmetric normalisation without a linear stage (Avants et al. 2008; ANTs through antspyx)."""
    import ants

    images = [ants.from_numpy(image.astype(np.float32), spacing=spacing) for image in (fixed, moving)]
    with tempfile.TemporaryDirectory() as folder:
        result = ants.registration(*images, outprefix=f"{folder}/", **options)
        warp, *linear = result["fwdtransforms"]
        for path in linear:
            _check_identity(ants.read_transform(path))
        vectors = ants.image_read(warp).numpy()
    return to_voxels(np.moveaxis(vectors, -1, 0), spacing), result["warpedmovout"].numpy()


def demons(
    moving: Array, fixed: Array, spacing: Spacing, threads: int, options: Mapping[str, Any]
) -> tuple[Array, Array]:
    """Fast symmetric forces demons after histogram matching (Vercauteren et al. 2009; SimpleITK)."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    target, source = to_itk(fixed, spacing), to_itk(moving, spacing)
    matching = sitk.HistogramMatchingImageFilter()
    matching.SetNumberOfHistogramLevels(options["histogram_levels"])
    matching.SetNumberOfMatchPoints(options["match_points"])
    matching.SetThresholdAtMeanIntensity(options["threshold_at_mean"])
    tool = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    tool.SetNumberOfIterations(options["iterations"])
    tool.SetStandardDeviations(options["standard_deviations"])
    vectors = tool.Execute(target, matching.Execute(source, target))
    ddf = vectors_from_itk(vectors, spacing)
    # The transform takes the field's content away from its image.
    transform = sitk.DisplacementFieldTransform(sitk.Cast(vectors, sitk.sitkVectorFloat64))
    return ddf, image_from_itk(sitk.Resample(source, target, transform, sitk.sitkLinear, 0.0))


def convexadam(
    moving: Array, fixed: Array, spacing: Spacing, threads: int, options: Mapping[str, Any]
) -> tuple[Array, Array]:
    """Coupled convex optimisation and Adam on MIND features (Siebert et al. 2024; convexadam)."""
    import torch
    from convexAdam.apply_convex import apply_convex
    from convexAdam.convex_adam_MIND import convex_adam_pt

    torch.set_num_threads(threads)
    chosen = {**options, "dtype": getattr(torch, options["dtype"]), "device": torch.device("cpu")}
    vectors = convex_adam_pt(fixed, moving, **chosen)
    return np.ascontiguousarray(np.moveaxis(vectors, -1, 0), np.float32), apply_convex(vectors, moving)


def elastix(
    moving: Array, fixed: Array, spacing: Spacing, threads: int, options: Mapping[str, Any]
) -> tuple[Array, Array]:
    """B-splines with bending energy by stochastic gradient descent (Klein et al. 2010; itk-elastix)."""
    import itk

    itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(threads)
    images = [itk.image_from_array(np.ascontiguousarray(image.T, np.float32)) for image in (fixed, moving)]
    for image in images:
        image.SetSpacing(spacing)
    parameters = itk.ParameterObject.New()
    chosen = parameters.GetDefaultParameterMap("bspline", options["levels"])
    for key, value in options["parameters"].items():
        chosen[key] = [str(entry) for entry in value]
    chosen["FinalGridSpacingInPhysicalUnits"] = [str(options["grid_voxels"] * length) for length in spacing]
    parameters.AddParameterMap(chosen)
    warped, transform = itk.elastix_registration_method(*images, parameter_object=parameters, log_to_console=False)
    # It writes the field to a file, too.
    with tempfile.TemporaryDirectory() as folder:
        vectors = itk.transformix_deformation_field(images[1], transform, output_directory=folder)
    ddf = to_voxels(itk.array_from_image(vectors).transpose(3, 2, 1, 0), spacing)
    return ddf, itk.array_from_image(warped).T


def fireants(
    moving: Array, fixed: Array, spacing: Spacing, threads: int, options: Mapping[str, Any]
) -> tuple[Array, Array]:
    """Adam on composed updates, smoothed after each (Jena et al. 2024; fireants)."""
    import torch
    from fireants.io.image import BatchedImages, Image
    from fireants.registration.greedy import GreedyRegistration

    torch.set_num_threads(threads)
    images = [BatchedImages([Image(to_itk(image, spacing), device="cpu")]) for image in (fixed, moving)]
    tool = GreedyRegistration(fixed_images=images[0], moving_images=images[1], progress_bar=False, **options)
    tool.optimize()
    with torch.no_grad():
        positions, warped = tool.get_warped_coordinates(*images), tool.evaluate(*images)
    return from_normalised(positions[0].numpy()), warped[0, 0].numpy().T


METHODS: dict[str, Method] = {
    "zero": Method(zero),
    "greedy": Method(
        greedy,
        "picsl-greedy",
        ("picsl_greedy", "SimpleITK"),
        {
            "metric": "WNCC 2x2x2",
            "iterations": "100x100x40",
            "smoothing": SMOOTHING["voxels"],
            # The field as it was computed, instead of rounded to a tenth of a voxel.
            "warp_precision": 0,
        },
    ),
    "syn": Method(
        syn,
        "antspyx",
        ("ants",),
        {"type_of_transform": "SyNOnly", "syn_metric": "meansquares", "reg_iterations": [160, 80, 40]},
    ),
    "demons": Method(
        demons,
        "SimpleITK",
        ("SimpleITK",),
        {
            "iterations": 200,
            "standard_deviations": 1.0,
            "histogram_levels": 1024,
            "match_points": 7,
            "threshold_at_mean": True,
        },
    ),
    "convexadam": Method(convexadam, "convexadam", ("convexAdam", "SimpleITK"), {"dtype": "float32", "grid_sp": 4}),
    "elastix": Method(
        elastix,
        "itk-elastix",
        ("itk.itkElastixRegistrationMethodPython",),
        {
            "levels": 3,
            "grid_voxels": 4,
            "parameters": {
                "Metric": ["AdvancedNormalizedCorrelation", "TransformBendingEnergyPenalty"],
                "Metric1Weight": [0.1],
                "MaximumNumberOfIterations": [300],
                # Its own image is to be comparable with ours; the registration interpolates linearly anyway.
                "ResampleInterpolator": ["FinalLinearInterpolator"],
                "ResultImagePixelType": ["float"],
                "RandomSeed": [0],
            },
        },
    ),
    "fireants": Method(
        fireants,
        "fireants",
        ("fireants.io.image", "fireants.registration.greedy"),
        {
            "scales": [4, 2, 1],
            "iterations": [250, 200, 100],
            "deformation_type": "compositive",
            "optimizer": "adam",
            "optimizer_lr": 0.5,
            "cc_kernel_size": 5,
            "smooth_grad_sigma": 1.0,
            "smooth_warp_sigma": 0.25,
        },
        "requirements-fireants.txt",
    ),
}


def to_itk(image: Array, spacing: Spacing) -> Any:
    """SimpleITK image of an array (*spatial), origin zero, axes as they are."""
    import SimpleITK as sitk

    # ITK's fastest index is the first, an array's the last.
    result = sitk.GetImageFromArray(np.ascontiguousarray(image.T))
    result.SetSpacing(spacing)
    return result


def image_from_itk(image: Any) -> Array:
    """Array (*spatial) of a SimpleITK image."""
    import SimpleITK as sitk

    return np.asarray(sitk.GetArrayFromImage(image).T)


def vectors_from_itk(image: Any, spacing: Spacing) -> Array:
    """Displacement (3, *spatial) float32 in voxels of a SimpleITK vector image in millimetres, axes as they are."""
    import SimpleITK as sitk

    return to_voxels(sitk.GetArrayFromImage(image).transpose(3, 2, 1, 0), spacing)


def to_voxels(vectors: Array, spacing: Spacing) -> Array:
    """Displacement (3, *spatial) in millimetres along the array axes to float32 voxels."""
    return np.ascontiguousarray(vectors / np.reshape(spacing, (-1, 1, 1, 1)), np.float32)


def from_normalised(positions: Array) -> Array:
    """Displacement (3, *spatial) float32 in voxels of sampling positions (d_2, d_1, d_0, 3) from -1 to 1.

    The components are in the order of the array axes; -1 and 1 are the centres of the first and the last voxel.
    """
    places = positions.transpose(3, 2, 1, 0).astype(np.float64)
    ends = np.reshape(places.shape[1:], (3, 1, 1, 1)) - 1
    return ((places + 1) * ends / 2 - np.indices(places.shape[1:])).astype(np.float32)


def _check_identity(transform: Any) -> None:
    parameters = np.asarray(transform.parameters)
    if not np.allclose(parameters, np.r_[np.eye(3).ravel(), np.zeros(3)], atol=1e-6):
        raise RuntimeError(f"the linear stage is not the identity: {parameters.tolist()}")
