# SPDX-License-Identifier: Apache-2.0
"""Registration of one pair by a package of the registry, in a process of its own: ``classical.py METHOD FOLDER``.

The packages get plain arrays with their spacing, origin zero and axes as they are, so that every vector they return is
(d_0, d_1, d_2) in millimetres along the array axes and the field in voxels is d_a / s_a. They are imported where they
are used: a package that is absent does not disturb the others, and its memory is its own.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from monai.utils import optional_import
from numpy.typing import NDArray

# Windows lacks it.
resource, _HAS_RESOURCE = optional_import("resource")

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
    """

    register: Callable[[Array, Array, Spacing, int, Mapping[str, Any]], tuple[Array, Array]]
    package: str | None = None
    modules: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


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


def _check_identity(transform: Any) -> None:
    parameters = np.asarray(transform.parameters)
    if not np.allclose(parameters, np.r_[np.eye(3).ravel(), np.zeros(3)], atol=1e-6):
        raise RuntimeError(f"the linear stage is not the identity: {parameters.tolist()}")


def _cpu_seconds() -> float:
    """Processor time of all threads, and of children that have ended."""
    if not _HAS_RESOURCE:
        return time.process_time()
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _peak_megabytes() -> float:
    """Largest resident memory of this process, in 10^6 bytes."""
    # The resource module's figure starts with what the parent held.
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6
    except (OSError, StopIteration):
        if not _HAS_RESOURCE:
            return math.nan
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def main(name: str, folder: Path) -> None:
    """Register what lies in ``images.npz`` of a folder; leave ``result.npz`` and ``cost.json`` there."""
    request = json.loads((folder / "request.json").read_text())
    threads = request["threads"]
    method = METHODS[name]
    for module in method.modules:
        importlib.import_module(module)
    with np.load(folder / "images.npz") as images:
        moving, fixed = images["moving"], images["fixed"]
    used, started = _cpu_seconds(), time.perf_counter()
    ddf, warped = method.register(moving, fixed, tuple(request["spacing"]), threads, request["options"])
    cost = {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": _cpu_seconds() - used,
        "peak_memory_mb": _peak_megabytes(),
    }
    np.savez(folder / "result.npz", ddf=ddf, warped=warped)
    (folder / "cost.json").write_text(json.dumps(cost))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
