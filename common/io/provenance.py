# SPDX-License-Identifier: Apache-2.0
"""Where a result comes from: versions, machine, command, configuration, code state, time."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from monai.utils import optional_import

import common

# Windows lacks it.
resource, _HAS_RESOURCE = optional_import("resource")

PACKAGES = ("torch", "monai", "numpy", "pytorch-ignite", "nibabel")


def provenance() -> dict[str, Any]:
    """What a person needs to know to repeat a result.

    Returns:
        JSON-ready: ``versions``, ``machine``, ``command`` (with the options that override the configuration), ``git``
        (commit and whether files differ from it; None outside a checkout) and ``time`` (UTC).
    """
    versions = {"python": platform.python_version(), "common": common.__version__}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    return {
        "versions": versions,
        "machine": machine(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "git": _git_state(),
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def machine() -> dict[str, Any]:
    """Processor, threads, and GPU if there is one."""
    return {
        "system": platform.system(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def peak_memory(device: torch.device) -> dict[str, float]:
    """``peak_memory_gb``: largest memory of this process so far, resident on the CPU, allocated on a GPU.

    Empty where the system does not tell, which is Windows.
    """
    if device.type == "cuda":
        return {"peak_memory_gb": round(torch.cuda.max_memory_allocated(device) / 1e9, 3)}
    if not _HAS_RESOURCE:
        return {}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_memory_gb": round(peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9, 3)}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _git_state() -> dict[str, Any] | None:
    folder = Path(common.__file__).resolve().parent
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    answers = []
    for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            result = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, env=environment
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        if result.returncode != 0:
            return None
        answers.append(result.stdout.strip())
    return {"commit": answers[0], "modified": bool(answers[1])}
