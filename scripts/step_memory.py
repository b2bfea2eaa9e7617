# SPDX-License-Identifier: Apache-2.0
"""Peak memory and time of one training step against the size of the volume: what ``study.py memory`` measures.

``python scripts/step_memory.py NETWORK EDGE`` measures one step in this process and prints the figures as JSON.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from torch import Tensor, nn

from common.losses import (
    GaussianLNCCLoss,
    GradientInverseConsistencyLoss,
    JacobianConsistencyLoss,
    LatentLoss,
    NCCLoss,
    RegistrationLoss,
    SampledLoss,
    Term,
)
from common.memory import keep_freed_memory
from common.networks import GradICON, NePhi
from scripts.training_steps import COMPARED
from scripts.workers import resident

Step = tuple[list[nn.Parameter], Callable[[Tensor, Tensor], Tensor]]
"""What is trained, and the loss of (moving, fixed), (1, 1, *size) each."""
Figures = dict[str, dict[int, dict[str, Any]]]
"""What :func:`measure` returns, by name of the network and edge of the volume."""
MUCH = 2**40
"""Points that no volume has."""


def _nephi(edge: int, most: int, most_derivatives: int) -> tuple[NePhi, RegistrationLoss]:
    """The published network for a volume, and its loss with so many points at most."""
    octaves = round(math.log2(edge))
    channels = [8, 16, 32, 64, 128, 256] + [256] * (octaves - 7)
    while -(-edge // 2 ** len(channels)) == 1:
        channels.pop()
    terms, ways = {}, (("map", "inverse_map", "moving", "fixed"), ("inverse_map", "map", "fixed", "moving"))
    for stream, (there, back, moving, fixed) in enumerate(ways):
        similarity = SampledLoss(NCCLoss(), most=most, stream=stream)
        consistency = JacobianConsistencyLoss(most=most_derivatives, stream=2 + stream)
        terms[f"ncc_{there}"] = Term(similarity, [there, moving, fixed, "draw"], 0.5)
        terms[f"consistency_{there}"] = Term(consistency, [there, back, fixed, "draw"], 5)
    terms["prior"] = Term(LatentLoss(), ["latent", "local_latent"], 0.01)
    return NePhi(size=edge, channels=channels, local_level=max(octaves - 5, 0)), RegistrationLoss(terms)


def nephi(edge: int, most: int = MUCH, most_derivatives: int = MUCH) -> Step:
    """NePhi, all of it."""
    return _step(*_nephi(edge, most, most_derivatives))


def nephi_of_a_pair(edge: int, most: int, most_derivatives: int) -> Step:
    """NePhi's code and fields, of which the encoder is no longer a part."""
    network, loss = _nephi(edge, most, most_derivatives)
    size = (edge,) * 3
    with torch.no_grad():
        code = network.code(torch.zeros(1, 2, *size))
    latent, local = map(nn.Parameter, code)
    there, back = network.maps(type(code)(latent, local), size)
    outputs = {"map": there, "inverse_map": back, "latent": latent, "local_latent": local}
    trained = [latent, local, *network.field.parameters(), *network.inverse_field.parameters()]
    return trained, lambda moving, fixed: loss(outputs, _targets(moving, fixed))


def gradicon(edge: int, halvings: tuple[int, ...]) -> Step:
    """U-Nets on the volume, after so many halvings each, and GradICON's loss."""
    terms = {
        "lncc": Term(GaussianLNCCLoss(), ["warped", "fixed"]),
        "lncc_back": Term(GaussianLNCCLoss(), ["warped_back", "moving"]),
        "consistency": Term(GradientInverseConsistencyLoss(), ["map", "inverse_map", "fixed", "draw"], 1.5),
    }
    return _step(GradICON(halvings=halvings), RegistrationLoss(terms))


def eoir(edge: int) -> Step:
    """EOIR of published width with its loss for LUMIR."""
    return _step(*COMPARED["eoir"].ours())


NETWORKS: dict[str, Callable[[int], Step]] = {
    "NePhi, all points": nephi,
    "NePhi, 100000 and 500 points": partial(nephi, most=100_000, most_derivatives=500),
    "NePhi on a pair, 100000 and 500 points": partial(nephi_of_a_pair, most=100_000, most_derivatives=500),
    "GradICON, one U-Net": partial(gradicon, halvings=(0,)),
    "GradICON, three levels": partial(gradicon, halvings=(2, 1, 0)),
    "EOIR": eoir,
}
"""By name: all points are 0.02 of the voxels for the similarity and 0.0001 for the regularisation."""


def measure(name: str, edge: int) -> dict[str, float]:
    """One step of Adam with one pair of cubes, in this process.

    Returns:
        ``peak_gb``, by how much the most resident memory exceeds that at the start, with weights, gradients and
        Adam's state; ``step_cpu_seconds``; ``parameters``, those that are trained.
    """
    keep_freed_memory()
    start = resident("VmRSS")
    torch.manual_seed(0)
    parameters, loss = NETWORKS[name](edge)
    optimizer = torch.optim.Adam(parameters, lr=1e-4)
    # Adam's state is there before the step, as in all steps but the first.
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    moving, fixed = torch.rand(2, 1, 1, edge, edge, edge)
    seconds = time.process_time()
    loss(moving, fixed).backward()
    optimizer.step()
    seconds = time.process_time() - seconds
    count = sum(parameter.numel() for parameter in parameters)
    return {"peak_gb": (resident("VmHWM") - start) / 1e9, "step_cpu_seconds": seconds, "parameters": count}


def measure_all(names: Iterable[str], edges: Iterable[int], known: Figures, keep: Callable[[Figures], None]) -> Figures:
    """Measure what is not known yet, small volumes first, each in a process of its own, on one thread.

    A volume that would need more than the memory that is free is left out with a word, and so are all larger ones.

    Args:
        names: of :data:`NETWORKS`.
        edges: of the cubes.
        known: what was found before.
        keep: is called with all that is known after each measurement.
    """
    found = {name: dict(known.get(name, {})) for name in {**known, **dict.fromkeys(names)}}
    left = [*names]
    for edge in sorted({*edges}):
        for name in left:
            done = found[name]
            smaller = max((other for other in done if other < edge), default=0)
            needed = done[smaller]["peak_gb"] * (edge / smaller) ** 3 if smaller and edge not in done else 0.0
            if needed > free_gb():
                print(f"{name}: {edge} and more are left out, {needed:.0f} GB are needed and {free_gb():.0f} are free.")
                left = [other for other in left if other != name]
            elif edge not in done:
                done[edge] = _measured_apart(name, edge)
                keep(found)
    return found


def free_gb() -> float:
    """Memory that a process can have, in GB."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024 / 1e9


def _measured_apart(name: str, edge: int) -> dict[str, Any]:
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", __file__, name, str(edge)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **one_thread})
    figures: dict[str, Any] = json.loads(result.stdout)
    return figures


def _step(network: nn.Module, loss: RegistrationLoss) -> Step:
    network.train()

    def total(moving: Tensor, fixed: Tensor) -> Tensor:
        result: Tensor = loss(network(torch.cat([moving, fixed], dim=1), loss.details), _targets(moving, fixed))
        return result

    return list(network.parameters()), total


def _targets(moving: Tensor, fixed: Tensor) -> dict[str, Tensor]:
    return {"moving": moving, "fixed": fixed, "draw": torch.zeros(1, 3, dtype=torch.long)}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
