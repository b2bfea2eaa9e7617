# SPDX-License-Identifier: Apache-2.0
"""Every bundle: what MONAI's own tools want of it, without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, load, verify_net_in_out

import common
from common.checks import InputError
from common.cli import sentence_of
from common.engine import save_atomically

from .conftest import BUNDLES, NETWORKS, TRAINED, dimensions, few_shapes, phantom_options, tiny

every_bundle = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
every_trained = pytest.mark.parametrize("bundle", TRAINED, ids=lambda path: path.name)
every_network = pytest.mark.parametrize("bundle", NETWORKS, ids=lambda path: path.name)


def workflow(bundle: Path, config: str, kind: str, **override: Any) -> ConfigWorkflow:
    made = ConfigWorkflow(
        str(bundle / "configs" / config), workflow_type=kind, logging_file=False, bundle_root=str(bundle), **override
    )
    made.initialize()
    return made


@every_bundle
def test_bundle_folder_is_complete(bundle: Path) -> None:
    files = ["LICENSE", "docs/README.md", "configs/logging.conf", "configs/metadata.json", "common/__init__.py"]
    training = ("train", "multi_gpu_train") if bundle in TRAINED else ()
    files += [f"configs/{name}.json" for name in ("evaluate", "inference", *training)]
    assert [file for file in files if not (bundle / file).is_file()] == []
    assert (bundle / "common").is_symlink() and not Path(bundle / "common").readlink().is_absolute()


@every_bundle
def test_metadata_fits_the_schema(bundle: Path) -> None:
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    jsonschema.validate(metadata, json.loads((Path(__file__).parent / "metadata_schema.json").read_text()))
    assert metadata["version"] in metadata["changelog"]
    assert metadata["common_version"] == common.__version__
    channels = metadata["network_data_format"]["inputs"]["image"]["channel_def"]
    assert channels == {"0": "moving", "1": "fixed"}


@every_bundle
def test_metadata_names_the_pinned_versions(bundle: Path) -> None:
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    lines = (bundle.parents[1] / "requirements.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    assert metadata["monai_version"] == pins["monai"]
    assert metadata["pytorch_version"] == pins["torch"]
    assert metadata["numpy_version"] == pins["numpy"]
    named_above = {"torch", "monai", "numpy"}
    assert metadata["required_packages_version"] == {name: pins[name] for name in pins.keys() - named_above}


@every_trained
@pytest.mark.parametrize(("config", "kind"), [("train.json", "train"), ("inference.json", "infer")])
def test_all_properties_are_there(bundle: Path, config: str, kind: str, phantoms: Path, tmp_path: Path) -> None:
    weights = tmp_path / "model.pt"
    override = {**phantom_options(bundle, phantoms, kind), "output_dir": str(tmp_path), **tiny(bundle)}
    if kind == "train":
        # There are four pairs.
        override |= {"labels": list(range(1, 9)), "batch_size": 1, **few_shapes(bundle)}
    made = workflow(bundle, config, kind, ckpt_path=str(weights), **override)
    if kind == "infer":
        save_atomically(made.network_def.state_dict(), weights)
    assert made.check_properties() == []
    assert made.max_epochs > 0 if kind == "train" else made.evaluator is not None


@every_bundle
def test_network_takes_and_gives_what_the_metadata_says(bundle: Path) -> None:
    configs = bundle / "configs"
    verify_net_in_out(
        "network_def",
        str(configs / "metadata.json"),
        str(configs / "inference.json"),
        device="cpu",
        any=20,
        **tiny(bundle),
    )


@every_network
def test_traced_export_gives_the_same_field(bundle: Path, tmp_path: Path) -> None:
    network = workflow(bundle, "inference.json", "infer", **tiny(bundle)).network_def.eval()
    save_atomically(network.state_dict(), tmp_path / "model.pt")
    shape = [1, 2, 32, 40, 33][: 2 + dimensions(bundle)]
    ckpt_export(
        "network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(tmp_path / "model.pt"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "inference.json"),
        use_trace=True,
        input_shape=shape,
        # Compared below, with another pair.
        converter_kwargs={"check_trace": False},
        **tiny(bundle),
    )
    image = torch.rand(shape)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(image), network(image), rtol=1e-4, atol=1e-4)


@every_network
def test_load_returns_the_network_with_its_weights(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / bundle.name).symlink_to(bundle, target_is_directory=True)
    network = workflow(bundle, "inference.json", "infer", **tiny(bundle)).network_def
    weights = tmp_path / "weights.pt"
    save_atomically(network.state_dict(), weights)
    loaded = load(
        bundle.name,
        bundle_dir=str(tmp_path),
        model_file=str(weights),
        workflow_type="inference",
        net_override={name.rpartition("#")[2]: value for name, value in tiny(bundle).items()},
        device="cpu",
    )
    assert isinstance(loaded, type(network))
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


@every_trained
def test_all_workflows_of_a_bundle_mean_the_same_network(bundle: Path) -> None:
    configs = [
        json.loads((bundle / "configs" / f"{name}.json").read_text()) for name in ("train", "evaluate", "inference")
    ]
    assert configs[0]["network_def"] == configs[1]["network_def"] == configs[2]["network_def"]
    # Optimisation on a pair goes on with what was trained, except where the field is what is unknown.
    unknown = [config["inferer"]["unknown"]["_target_"] for config in configs[1:]]
    assert len({*unknown}) == 1
    if unknown[0] != "common.optimisation.Field":
        assert configs[0]["loss"] == configs[1]["loss"] == configs[2]["loss"]


@every_trained
@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_labels_that_are_named_are_those_of_loss_and_measures(bundle: Path, name: str) -> None:
    config = json.loads((bundle / "configs" / f"{name}.json").read_text())
    if "num_shapes" in config:
        # Shapes have numbers of their own.
        config["num_shapes"] = None
    label = torch.tensor([[[-7, 0, 2], [41, 614454277, 5]]])

    def parse(labels: Any) -> tuple[Any, ...]:
        parser = ConfigParser({**config, "labels": labels})
        checked = parser.get_parsed_content("preprocessing").transforms
        (check,) = (step for step in checked if type(step).__name__ == "CheckSubjectd")
        metric = "validate::key_metric::dice" if name == "train" else "metrics"
        return parser, check, parser.get_parsed_content(metric).labels

    parser, check, measured = parse([614454277, 41, -7])
    assert check.labels is None and check.counted == measured == [614454277, 41, -7]
    if name == "train":
        classes = parser.get_parsed_content("train::preprocessing").flatten().transforms[-1]
        assert classes({"label": label})["label"].tolist() == [[[1, 0, 0], [2, 3, 0]]]
        assert parser.get_parsed_content("num_classes", default=4) == 4
    # Without names those of the data set, and nothing else passes for a label of it.
    parser, check, measured = parse(None)
    assert check.counted == measured and set(measured) <= check.labels
    if bundle.name == "eoir_oasis" and name == "train":
        # The published loss has 36 classes with their own numbers.
        classes = parser.get_parsed_content("train::preprocessing").flatten().transforms[-1]
        every = torch.arange(36)[None, None]
        assert parser.get_parsed_content("num_classes") == 36
        assert torch.equal(classes({"label": every})["label"].long(), every)
    with pytest.raises((InputError, RuntimeError)) as error:
        parse(4)
    assert "--labels is 4: give a list" in str(sentence_of(error.value))


@every_bundle
def test_fields_of_other_networks_are_not_mixed(bundle: Path) -> None:
    for name in ("inference", "submission"):
        path = bundle / "configs" / f"{name}.json"
        if path.is_file():
            assert json.loads(path.read_text())["folder"]["settings"]["network"] == "$@network_def.arguments"


@every_trained
def test_labels_are_in_the_loss_where_the_recipe_has_them(bundle: Path, phantoms: Path, tmp_path: Path) -> None:
    options = {**phantom_options(bundle, phantoms), "ckpt_path": str(tmp_path / "model.pt"), **tiny(bundle)}
    options |= few_shapes(bundle)
    config = json.loads((bundle / "configs" / "train.json").read_text())
    # Where one key chooses, both recipes are looked at.
    choices: list[dict[str, Any]] = (
        [{"supervised": value} for value in (True, False)] if "supervised" in config else [{}]
    )
    for choice in choices:
        made = workflow(bundle, "train.json", "train", output_dir=str(tmp_path), **choice, **options)
        loss = made.parser.get_parsed_content("loss")
        expected = choice.get("supervised", "dice" in config["loss"]["terms"])
        # A term of the way back has one of the way there beside it.
        there = {name.removesuffix("_back") for name in loss.terms}
        assert there <= set(loss.terms) and there & {"smoothness", "consistency"}
        # Images that are made have no contrast in common, and no similarity; brains have a local and a global one.
        similarities = 0 if "num_shapes" in config else 2 if bundle.name.endswith("_brains") else 1
        assert ("dice" in there) == expected and len(there - {"prior"}) == 1 + similarities + expected
        # On the final displacement alone, or on every level.
        assert len(loss.level_weights) in (1, made.network_def.levels)


@every_trained
def test_resume_without_a_checkpoint_keeps_the_weights(bundle: Path, phantoms: Path, tmp_path: Path) -> None:
    weights = tmp_path / "model.pt"
    weights.touch()
    options: dict[str, Any] = {**phantom_options(bundle, phantoms), "output_dir": str(tmp_path), **tiny(bundle)}
    options |= {"labels": list(range(1, 9)), **few_shapes(bundle)}
    made = workflow(bundle, "train.json", "train", resume=True, ckpt_path=str(weights), **options)
    with pytest.raises(RuntimeError) as error:
        made.parser.get_parsed_content("train::handlers")
    assert "There are weights at" in str(sentence_of(error.value))
