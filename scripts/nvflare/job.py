# SPDX-License-Identifier: Apache-2.0
"""Make an NVFlare job that trains a bundle at several sites, whose data stay where they are.

Example: ``python scripts/nvflare/job.py eoir_oasis --site north=/data/oasis --site south=/srv/oasis --output_dir job``.
The job is complete: configurations, code and first weights travel in it. The server needs neither MONAI nor the bundle.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from common.threads import share_cores

share_cores()

import torch
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser
from monai.utils import set_determinism

from common.checks import InputError
from common.cli import run_tool, whole
from common.engine.option_names import SEPARATORS, check_nested
from common.io.checkpoints import load_weights, save_atomically
from scripts.package import find_bundle, pack

FIRST = "first_weights.pt"


def make_job(
    bundle: Path,
    folder: Path,
    sites: Mapping[str, str],
    rounds: int,
    local_epochs: int,
    timeout: int,
    options: Mapping[str, Any],
    start_from: Path | None = None,
) -> None:
    """Write the job's folder.

    Args:
        bundle: folder of the bundle.
        folder: to make.
        sites: data folder of each client, by the client's name.
        rounds: of training at all sites and averaging.
        local_epochs: of each round.
        timeout: seconds after which a round ends without the sites that have not answered.
        options: of ``configs/train.json``, by name; those that ``configs/evaluate.json`` has count there, too.
        start_from: weights to begin with; None for the network as the seed makes it.

    Raises:
        InputError: when the folder exists, an option does not, or the weights do not fit.
    """
    if folder.exists():
        raise InputError(f"{folder} exists: choose another --output_dir, or remove it.")
    options = {"max_epochs": rounds * local_epochs, "overwrite": True, **options}
    network = _first_network(bundle, options, start_from)
    clients = [f"app_{site}" for site in sites]
    _write(folder / "meta.json", _meta(bundle.name, sites))
    _write(folder / "app_server" / "config" / "config_fed_server.json", _server(sites, rounds, timeout))
    (folder / "app_server" / "custom").mkdir()
    shutil.copy(Path(__file__).with_name("missing_sites.py"), folder / "app_server" / "custom")
    save_atomically(network.state_dict(), folder / "app_server" / "custom" / FIRST)
    with tempfile.TemporaryDirectory() as place, zipfile.ZipFile(pack(bundle, Path(place), False)) as archive:
        for app, data in zip(clients, sites.values(), strict=True):
            archive.extractall(folder / app / "config")
            kwargs = {"dataset_dir": data, **options}
            _write(folder / app / "config" / "config_fed_client.json", _client(bundle, kwargs, local_epochs))


def _first_network(bundle: Path, options: Mapping[str, Any], start_from: Path | None) -> torch.nn.Module:
    """The network that all sites begin with."""
    path = bundle / "configs" / "train.json"
    if not path.is_file():
        raise InputError(f"{bundle.name} has no network that is trained.")
    config = ConfigParser.load_config_file(str(path))
    for name in options:
        top, *nested = SEPARATORS.split(name)
        if top not in config:
            raise InputError(f"{path} has no option {name}.")
        check_nested(config[top], nested, name)
    parser = ConfigParser(config)
    parser.update(dict(options))
    set_determinism(parser.get_parsed_content("seed"))
    network: torch.nn.Module = parser.get_parsed_content("network_def")
    return network if start_from is None else load_weights(network, start_from)


def _meta(name: str, sites: Mapping[str, str]) -> dict[str, Any]:
    places = {"app_server": ["server"]} | {f"app_{site}": [site] for site in sites}
    return {"name": name, "resource_spec": {}, "deploy_map": places, "min_clients": len(sites), "mandatory_clients": []}


def _server(sites: Mapping[str, str], rounds: int, timeout: int) -> dict[str, Any]:
    """The server's part: it keeps the weights, sends them, and averages what comes back by the number of steps."""
    flare = "nvflare.app_common"
    parts = {
        "persistor": (
            "nvflare.app_opt.pt.file_model_persistor.PTFileModelPersistor",
            {"source_ckpt_file_full_name": FIRST, "load_weights_only": True},
        ),
        "shareable_generator": (
            f"{flare}.shareablegenerators.full_model_shareable_generator.FullModelShareableGenerator",
            {},
        ),
        "aggregator": (
            f"{flare}.aggregators.intime_accumulate_model_aggregator.InTimeAccumulateWeightedAggregator",
            {"expected_data_kind": "WEIGHT_DIFF", "aggregation_weights": dict.fromkeys(sites, 1.0)},
        ),
    }
    parts["missing_sites"] = ("missing_sites.MissingSites", {"sites": [*sites], "timeout": timeout})
    loop = {
        "min_clients": len(sites),
        "num_rounds": rounds,
        "start_round": 0,
        "wait_time_after_min_received": 5,
        "aggregator_id": "aggregator",
        "persistor_id": "persistor",
        "shareable_generator_id": "shareable_generator",
        "train_task_name": "train",
        "train_timeout": timeout,
    }
    return {
        "format_version": 2,
        "task_data_filters": [],
        "task_result_filters": [],
        "components": [{"id": name, "path": path, "args": args} for name, (path, args) in parts.items()],
        "workflows": [{"id": "rounds", "path": f"{flare}.workflows.scatter_and_gather.ScatterAndGather", "args": loop}],
    }


def _client(bundle: Path, options: Mapping[str, Any], local_epochs: int) -> dict[str, Any]:
    """A site's part: MONAI's client of the bundle."""
    algorithm = {
        "bundle_root": f"config/{bundle.name}",
        "local_epochs": local_epochs,
        "train_kwargs": dict(options),
        "eval_kwargs": _of_evaluation(bundle, options),
    }
    executor = {
        "path": "monai_nvflare.client_algo_executor.ClientAlgoExecutor",
        "args": {"client_algo_id": "client", "key_metric": "dice"},
    }
    return {
        "format_version": 2,
        "executors": [{"tasks": ["train", "validate", "submit_model"], "executor": executor}],
        "task_data_filters": [],
        "task_result_filters": [],
        "components": [{"id": "client", "path": "monai.fl.client.MonaiAlgo", "args": algorithm}],
    }


def _of_evaluation(bundle: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """What leads somewhere in ``evaluate.json`` on top of ``train.json``, as the client reads them."""
    files = [str(bundle / "configs" / name) for name in ("train.json", "evaluate.json")]
    config = ConfigParser.load_config_files(files)
    kept = {}
    for name, value in options.items():
        top, *nested = SEPARATORS.split(name)
        try:
            check_nested(config[top], nested, name)
        except InputError:
            continue
        kept[name] = value
    return kept


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


def _named(words: Sequence[str], what: str) -> dict[str, str]:
    """NAME=VALUE, each name once."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not value or name in found:
            raise InputError(f"{what} {word}: give NAME=VALUE, each name once.")
        found[name] = value
    return found


def parser() -> argparse.ArgumentParser:
    """Options of this script."""
    options = argparse.ArgumentParser(
        description="Make an NVFlare job that trains a bundle at several sites.",
        epilog="Example: python scripts/nvflare/job.py eoir_oasis --site north=/data/oasis --site south=/srv/oasis",
    )
    options.add_argument("bundle", help="name of a folder in bundles, e.g. eoir_oasis")
    options.add_argument(
        "--site", action="append", required=True, metavar="NAME=FOLDER", help="a client and its data there; repeat it"
    )
    options.add_argument("--rounds", type=whole(1), default=10, help="default: %(default)s")
    options.add_argument("--local_epochs", type=whole(1), default=1, help="epochs of a round; default: %(default)s")
    options.add_argument(
        "--timeout",
        type=whole(1),
        default=24 * 3600,
        metavar="SECONDS",
        help="a round ends then without the sites that have not answered; default: %(default)s",
    )
    options.add_argument("--start_from", type=Path, metavar="FILE", help="weights to begin with; default: by the seed")
    options.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="of train.json; repeat it for more"
    )
    options.add_argument("--output_dir", type=Path, default=Path("job"), help="folder to make; default: %(default)s")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    arguments = parser().parse_args(argv)
    sites = _named(arguments.site, "--site")
    for name, data in sites.items():
        if not re.fullmatch(r"[A-Za-z0-9-]+", name) or name == "server":
            raise InputError(f"--site {name}: a client's name has letters, digits and -, and is not 'server'.")
        if not Path(data).is_absolute():
            raise InputError(f"--site {name}={data}: give the absolute path of the data at the site.")
    options = {name: DefaultParseValue(value) for name, value in _named(arguments.option, "--option").items()}
    make_job(
        *(find_bundle(arguments.bundle), arguments.output_dir, sites, arguments.rounds, arguments.local_epochs),
        *(arguments.timeout, options, arguments.start_from),
    )
    print(
        f"{arguments.output_dir} is the job. Try it on this machine: nvflare simulator {arguments.output_dir} "
        f"-w workspace -c {','.join(sites)} -t {len(sites)}"
    )


if __name__ == "__main__":
    run_tool(main)
