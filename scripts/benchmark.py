# SPDX-License-Identifier: Apache-2.0
"""Time and memory of the building blocks and of a training step, beside plain forms of the same, as Markdown tables.

    python scripts/benchmark.py ops     # losses, warps, pyramid, normalisation: about two minutes
    python scripts/benchmark.py eoir    # forward and training step; also vfa, sitreg: about five minutes each
    python scripts/benchmark.py metrics --threads 2    # evaluation of a full-size pair: about three minutes
    python scripts/benchmark.py contention --threads 2    # a training step beside two busy processes: some minutes

The variants of a comparison take turns, so that other load on the machine meets all of them alike; compare the ratios.
Peak memory comes from a fresh process for each variant.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from common.threads import share_cores
from scripts.training_steps import COMPARED, VARIANTS
from scripts.workers import Worker, resident


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "what", choices=("ops", *COMPARED, "metrics", "contention", "worker"), help="worker is for internal use"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1); more only on idle cores")
    parser.add_argument(
        "--repeats",
        type=int,
        help="timed repeats of each variant (default: 7 ops, 2 networks, 3 metrics, 5 contention)",
    )
    parser.add_argument("--size", type=int, nargs=3, default=(64, 96, 96), help="image of networks (default 64 96 96)")
    parser.add_argument("--forward_only", action="store_true", help="networks: the forward pass alone")
    parser.add_argument("--only", nargs="*", help="networks: variants by number from 0; else words in the name")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    if arguments.what != "worker":
        share_cores()
    tasks = {"ops": run_ops, "metrics": run_metrics, "contention": run_contention}
    tasks |= dict.fromkeys(COMPARED, run_network)
    {**tasks, "worker": run_worker}[arguments.what](arguments)


def table(header: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table."""
    print("| " + " | ".join(header) + " |\n|" + " --- |" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def run_worker(arguments: argparse.Namespace) -> None:
    """Run the task once per line of the standard input."""
    import torch

    torch.set_num_threads(arguments.threads)
    task = json.loads(arguments.task)
    call = _operation(task) if "operation" in task else _network(arguments, task)
    for _ in sys.stdin:
        before = resident("VmRSS")
        _forget_peak()
        cpu, wall = time.process_time(), time.perf_counter()
        call()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        peak = resident("VmHWM")
        print(json.dumps({"cpu": cpu, "wall": wall, "peak": peak, "growth": peak - before}), flush=True)


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _operation(task: dict[str, Any]) -> Callable[[], object]:
    if task.get("group") == "metrics":
        from scripts.evaluators import metrics

        return metrics()[task["operation"]][task["form"]]
    from scripts.operations import operations

    return operations()[task["operation"]].forms[task["form"]]


def _network(arguments: argparse.Namespace, task: dict[str, Any]) -> Callable[[], object]:
    import torch

    torch.manual_seed(0)
    size = arguments.size
    form = COMPARED[task["method"]].form(task["variant"], size, **task.get("arguments", {}))
    # The same intensities for all; what they show has no influence on the time.
    moving, fixed = torch.rand((2, 1, 1, *size))
    optimizer = torch.optim.Adam(form.network.parameters(), lr=4e-4, amsgrad=True)

    def step() -> None:
        optimizer.zero_grad()
        form.loss(moving, fixed).backward()
        optimizer.step()

    @torch.no_grad()
    def forward() -> None:
        form.forward(moving, fixed)

    return step if task["what"] == "training step" else forward


def run_network(arguments: argparse.Namespace) -> None:
    """Forward pass and training step of the variants, in turns."""
    chosen = [VARIANTS[int(n)] for n in arguments.only] if arguments.only else list(VARIANTS)
    size, compared = "x".join(map(str, arguments.size)), COMPARED[arguments.what]
    print(
        f"{compared.title}, {size}, batch 1, Adam with amsgrad, "
        f"{arguments.threads} thread(s); median of {arguments.repeats or 2} runs in turns after one to warm up\n"
    )
    for what in ("forward without gradient", "training step")[: 1 if arguments.forward_only else 2]:
        tasks = {name: {"method": arguments.what, "variant": name, "what": what} for name in chosen}
        workers = {name: Worker(arguments, task) for name, task in tasks.items()}
        runs = [{name: worker.run() for name, worker in workers.items()} for _ in range(1 + (arguments.repeats or 2))]
        for worker in workers.values():
            worker.close()
        seconds = {name: statistics.median(run[name]["cpu"] for run in runs[1:]) for name in chosen}
        peaks = {name: max(run[name]["peak"] for run in runs) / 1e9 for name in chosen}
        table(
            [what, "CPU s", "ratio", "peak GB", "ratio"],
            [
                [name, f"{seconds[name]:.2f}", f"{seconds[name] / seconds[chosen[0]]:.2f}"]
                + [f"{peaks[name]:.2f}", f"{peaks[name] / peaks[chosen[0]]:.2f}"]
                for name in chosen
            ],
        )
    reference = f"{compared.seconds} CPU s" + ("" if compared.gigabytes is None else f", {compared.gigabytes} GB")
    print(f"The published code itself, training step, 64x96x96, on one thread of a Zen 5 machine: {reference}")


def run_ops(arguments: argparse.Namespace) -> None:
    """Every operation in both forms, in turns, then the peak memory of each."""
    import torch

    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    from scripts.operations import SIZE, labels, operations

    bandwidth = _copy_bandwidth()
    volume = 4 * SIZE[0] * SIZE[1] * SIZE[2] / 1e6
    print(
        f"{'x'.join(map(str, SIZE))}, float32, {arguments.threads} thread(s), {labels()[0]}; medians; "
        f"copy {bandwidth / 1e9:.1f} GB/s, of which the floor follows\n"
    )
    rows = []
    for name, operation in operations().items():
        if arguments.only and not any(word in name for word in arguments.only):
            continue
        times = _in_turns(operation.forms, arguments.repeats or 7)
        reference = next(iter(times))
        moved = operation.volumes * volume
        floor = moved * 1e9 / bandwidth
        for form, milliseconds in times.items():
            peak = f"{_peak(arguments, name, form) / 1e6:.0f}" if operation.memory else ""
            faster = times[reference] / milliseconds
            numbers = [f"{milliseconds:.1f}", f"{faster:.2f}", peak, f"{moved:.1f}", f"{floor:.1f}"]
            rows.append([name if form == reference else "", form, *numbers, f"{milliseconds / floor:.0f}"])
    table(["operation", "form", "ms", "times faster", "peak MB", "MB moved", "floor ms", "ms / floor"], rows)


def run_metrics(arguments: argparse.Namespace) -> None:
    """Every metric in both forms, in turns, whether they agree, and the peak memory of a process with it alone."""
    import numpy as np
    import torch

    torch.set_num_threads(arguments.threads)
    from scripts.evaluators import LABELS, SIZE, case, metrics

    size, repeats = "x".join(map(str, SIZE)), arguments.repeats or 3
    print(f"{size}, {len(LABELS)} labels, {arguments.threads} thread(s), {case().source}; medians of {repeats}\n")
    rows = []
    for name, forms in metrics().items():
        if arguments.only and not any(word in name for word in arguments.only):
            continue
        values = [np.asarray(call(), np.float64) for call in forms.values()]
        np.testing.assert_allclose(values[1], values[0], rtol=1e-6, err_msg=f"the forms of {name} disagree")
        difference = np.nanmax(np.abs(values[0] - values[1]))
        times = _in_turns(forms, repeats)
        for form, milliseconds in times.items():
            worker = Worker(arguments, {"group": "metrics", "operation": name, "form": form})
            peak, run = worker.run()["peak"], worker.run()
            worker.close()
            faster = next(iter(times.values())) / milliseconds
            numbers = [milliseconds / 1e3, run["cpu"], faster, max(peak, run["peak"]) / 1e9]
            first = faster == 1
            cells = [f"{number:.2f}" for number in numbers]
            rows.append([name if first else "", form, *cells, "" if first else f"{difference:.1g}"])
    table(["metric", "form", "s", "CPU s", "times faster", "peak GB", "difference"], rows)


def run_contention(arguments: argparse.Namespace) -> None:
    """A training step of the demo, alone and beside busy processes, with torch's own way of waiting and with ours."""
    from scripts.contention import CHANNELS, SIZE, contention

    size, repeats = "x".join(map(str, SIZE)), arguments.repeats or 5
    print(f"EOIR, start_channel {CHANNELS}, {size}, {arguments.threads} threads; medians of {repeats} steps\n")
    table(["training step", "busy processes", "CPU s", "wall s", "fair s", "wall / fair"], contention(arguments))


def _in_turns(forms: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median wall milliseconds of each form."""
    times: dict[str, list[float]] = {form: [] for form in forms}
    for repeat in range(repeats + 1):
        for form, call in forms.items():
            start = time.perf_counter()
            call()
            if repeat:
                times[form].append(1e3 * (time.perf_counter() - start))
    return {form: statistics.median(values) for form, values in times.items()}


def _peak(arguments: argparse.Namespace, name: str, form: str) -> float:
    """Growth of the resident memory by the first call in a fresh process, in bytes."""
    worker = Worker(arguments, {"operation": name, "form": form})
    growth = worker.run()["growth"]
    worker.close()
    return growth


def _copy_bandwidth() -> float:
    """Bytes per second, read and written, of a copy beyond the caches."""
    import torch

    source = torch.rand(2**26)
    target = torch.empty_like(source).copy_(source)
    times = []
    for _ in range(9):
        start = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - start)
    return 8 * source.numel() / statistics.median(times)


if __name__ == "__main__":
    main()
