# SPDX-License-Identifier: Apache-2.0
"""The engine's metric: what it writes, which outputs it takes, and how processes are merged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.engines import SupervisedEvaluator

import common.metrics.handlers as handlers_module
from common.checks import InputError
from common.metrics import (
    dice_l2r,
    hd95_l2r,
    inverse_consistency_error,
    jacobian_statistics,
    mean_over_labels,
    nda,
    ndv_lumir,
    tre_l2r,
    tre_lumir,
)
from common.metrics.handlers import RegistrationMetrics
from common.spatial.labels import warp_labels


def pair(seed: int, shape: tuple[int, ...] = (8, 9, 7)) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (2, 1, *shape), generator=generator, dtype=torch.uint8)
    return {
        "fixed_label": labels[0],
        "moving_label": labels[1],
        "ddf": 0.7 * torch.randn(len(shape), *shape, generator=generator),
        # Without values below 0: as published, the foreground is above 0.
        "fixed": (torch.rand(1, *shape, generator=generator) - 0.2).clamp(min=0),
        "fixed_id": f"f{seed}",
        "moving_id": seed,
        "spacing": torch.tensor([2.0, 1.0, 1.5][: len(shape)]),
    }


def run(metric: RegistrationMetrics, outputs: list[Any], name: str = "dice") -> dict[str, float]:
    engine = Engine(lambda _, output: output)
    metric.attach(engine, name)
    return dict(engine.run(outputs).metrics)


@pytest.mark.parametrize("shape", [(10, 9), (8, 9, 7)])
def test_figures_are_means_of_the_plain_functions_over_pairs(shape: tuple[int, ...]) -> None:
    pairs = [pair(seed, shape) for seed in (1, 2, 3)]
    metric = RegistrationMetrics(labels=[1, 2], hd95="millimetres")
    metrics = run(metric, [pairs[:2], pairs[2:]])
    columns: dict[str, list[float]] = {name: [] for name in metrics}
    for one in pairs:
        fixed, moving, ddf = (one[name][None] for name in ("fixed_label", "moving_label", "ddf"))
        warped, mask = warp_labels(moving, ddf), one["fixed"][None] > 0
        statistics = jacobian_statistics(ddf, mask)
        columns["dice"].append(float(mean_over_labels(dice_l2r(warped, fixed, [1, 2], moving))))
        columns["dice_before"].append(float(mean_over_labels(dice_l2r(moving, fixed, [1, 2], moving))))
        for name, candidate in (("hd95", warped), ("hd95_before", moving)):
            values = hd95_l2r(candidate, fixed, [1, 2], moving, one["spacing"].tolist())
            columns[name].append(float(mean_over_labels(values)))
        columns["fold_fraction"].append(100 * float(statistics.fold_fraction))
        for name in ("sdlogj", "sdlogj_l2r", "sdlogj_l2r_masked"):
            columns[name].append(float(getattr(statistics, name)))
        columns["ndv"].append(float((nda if len(shape) == 2 else ndv_lumir)(ddf, mask).percent))
    assert metrics == pytest.approx({name: sum(values) / 3 for name, values in columns.items()})
    assert [(case["fixed_id"], case["moving_id"]) for case in metric.cases] == [("f1", 1), ("f2", 2), ("f3", 3)]
    assert metric.cases[0]["dice"] == columns["dice"][0]
    assert set(metric.cases[0]["dice_per_label"]) == {1, 2}


def test_monais_evaluator_takes_it_as_key_metric() -> None:
    pairs = [pair(seed) for seed in (1, 2)]
    batch = {name: torch.stack([p[name] for p in pairs]) for name in ("fixed_label", "moving_label", "ddf")}
    metric = RegistrationMetrics(labels=[1, 2])
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[batch],
        network=torch.nn.Identity(),
        epoch_length=1,
        prepare_batch=lambda batch, *_: (batch["ddf"], batch["ddf"]),
        iteration_update=lambda engine, batch: batch,
        key_val_metric={"dice": metric},
    )
    evaluator.run()
    assert evaluator.state.best_metric == evaluator.state.metrics["dice"]
    expected = run(RegistrationMetrics(labels=[1, 2], mask=None), pairs)
    assert evaluator.state.metrics == pytest.approx(expected)
    assert len(metric.cases) == 2


def test_batched_single_and_decollated_outputs_are_the_same() -> None:
    pairs = [pair(seed) for seed in (1, 2)]
    stacked = ("fixed_label", "moving_label", "ddf", "fixed", "spacing")
    batch: dict[str, Any] = {name: torch.stack([p[name] for p in pairs]) for name in stacked}
    batch |= {"fixed_id": ["f1", "f2"], "moving_id": torch.tensor([1, 2]), "loss": torch.tensor(0.5)}
    tables = []
    for outputs in (pairs, [pairs], [batch]):
        metric = RegistrationMetrics(labels=[1])
        run(metric, outputs)
        tables.append(metric.cases)
    assert tables[0] == tables[1] == tables[2]


def test_meta_tensors_and_an_output_transform_are_understood() -> None:
    one = pair(1)
    wrapped = {name: MetaTensor(value) if isinstance(value, torch.Tensor) else value for name, value in one.items()}
    expected = run(RegistrationMetrics(labels=[1, 2]), [one])
    nested = RegistrationMetrics(labels=[1, 2], output_transform=lambda output: output["result"])
    assert run(nested, [{"result": wrapped}]) == expected


def test_pairs_without_labels_give_folding_only() -> None:
    one = {name: value for name, value in pair(1).items() if not name.endswith("label")}
    metrics = run(RegistrationMetrics(labels=[1, 2]), [one], name="fold_fraction")
    assert set(metrics) == {"fold_fraction", "sdlogj", "sdlogj_l2r", "sdlogj_l2r_masked", "ndv"}
    assert "dice" not in run(RegistrationMetrics(), [pair(1)], name="ndv")


def test_moving_labels_on_another_grid_have_figures_after_warping_only() -> None:
    one = pair(1)
    one["moving_label"] = torch.nn.functional.pad(one["moving_label"], (0, 0, 0, 0, 0, 3))
    metrics = run(RegistrationMetrics(labels=[1, 2], hd95="voxels"), [one])
    fixed, moving = one["fixed_label"][None], one["moving_label"][None]
    table = hd95_l2r(warp_labels(moving, one["ddf"][None]), fixed, [1, 2])
    assert metrics["hd95"] == float(mean_over_labels(table)) > 0
    assert not {"dice_before", "hd95_before"} & set(metrics)


@pytest.mark.parametrize("kind", ["landmarks", "keypoints"])
@pytest.mark.parametrize("known", ["spacing", "affine", None])
def test_landmarks_and_an_inverse_field_give_their_figures_in_millimetres_where_known(
    known: str | None, kind: str
) -> None:
    one, generator = pair(1), torch.Generator().manual_seed(2)
    if known != "spacing":
        del one["spacing"]
    if known == "affine":
        # The columns of an oblique affine have the lengths of the voxel.
        turn = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
        one["affine"] = torch.eye(4, dtype=torch.float64)
        one["affine"][:3, :3] = turn * torch.tensor([2.0, 1.0, 1.5])
    one[f"fixed_{kind}"], one[f"moving_{kind}"] = 6 * torch.rand(2, 5, 3, generator=generator)
    one["inverse_ddf"] = -one["ddf"]
    metrics = run(RegistrationMetrics(), [one], name="tre")
    spacing = [1.0, 1.0, 1.0] if known is None else [2.0, 1.0, 1.5]
    ddf, mask = one["ddf"][None], one["fixed"][None] > 0
    points = one[f"moving_{kind}"][None], one[f"fixed_{kind}"][None]
    expected = {
        "tre": tre_l2r(ddf, *points, spacing).mean(),
        "tre_before": tre_l2r(None, *points, spacing).mean(),
        "tre_back": tre_l2r(-ddf, *points[::-1], spacing).mean(),
        "inverse_consistency": inverse_consistency_error(ddf, -ddf, spacing, mask).mean,
        "inverse_consistency_max": inverse_consistency_error(ddf, -ddf, spacing, mask).maximum,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx({n: float(v) for n, v in expected.items()})


def test_volumes_of_landmarks_give_the_error_of_their_centroids() -> None:
    one = pair(1)
    one["fixed_landmarks"], one["moving_landmarks"] = one["fixed_label"].int(), one["moving_label"].int()
    metrics = run(RegistrationMetrics(), [one], name="tre")
    volumes = one["moving_landmarks"][None], one["fixed_landmarks"][None]
    assert metrics["tre"] == pytest.approx(tre_lumir(*volumes, one["ddf"][None], [2.0, 1.0, 1.5]).item())
    assert metrics["tre_before"] == pytest.approx(tre_lumir(*volumes, None, [2.0, 1.0, 1.5]).item())


def test_a_pair_without_common_label_does_not_spoil_the_mean() -> None:
    one, other = pair(1), pair(2)
    other["moving_label"] = torch.zeros_like(other["moving_label"])
    metric = RegistrationMetrics(labels=[1])
    assert run(metric, [one, other])["dice"] == metric.cases[0]["dice"]


def test_cases_of_the_epoch_before_are_forgotten() -> None:
    metric = RegistrationMetrics(labels=[1])
    engine = Engine(lambda _, output: output)
    metric.attach(engine, "dice")
    engine.run([pair(1)])
    engine.run([pair(2)])
    assert [case["moving_id"] for case in metric.cases] == [2]


def test_processes_are_merged_in_the_samplers_order_and_repeated_pairs_count_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tables = []
    for seeds in ((1, 3), (2, 1)):
        metric = RegistrationMetrics(labels=[1])
        metric.update([pair(seed) for seed in seeds])
        tables.append(metric.cases)
    monkeypatch.setattr(handlers_module.idist, "get_world_size", lambda: 2)
    monkeypatch.setattr(handlers_module.idist, "all_gather", lambda cases: tables)
    merged = metric.compute()
    assert [case["moving_id"] for case in metric.cases] == [1, 2, 3]
    monkeypatch.undo()
    assert merged == pytest.approx(run(RegistrationMetrics(labels=[1]), [pair(seed) for seed in (1, 2, 3)]))


def test_the_moving_images_foreground_is_taken_on_request() -> None:
    one = pair(1)
    one["moving"] = (torch.rand(1, 8, 9, 7, generator=torch.Generator().manual_seed(8)) - 0.5).clamp(min=0)
    found = run(RegistrationMetrics(mask="moving"), [one], name="ndv")["ndv"]
    assert found == pytest.approx(ndv_lumir(one["ddf"][None], one["moving"][None] > 0).percent.item())


def test_bad_input_is_refused_in_words() -> None:
    with pytest.raises(InputError, match="attached as 'accuracy'"):
        run(RegistrationMetrics(labels=[1]), [pair(1)], name="accuracy")
    with pytest.raises(InputError, match="need ddf"):
        RegistrationMetrics().update([{"pred": torch.zeros(3, 4, 4, 4)}])
    with pytest.raises(InputError, match="were given Tensor"):
        RegistrationMetrics().update(torch.zeros(3, 4, 4, 4))
    with pytest.raises(InputError, match="evaluation data set is empty"):
        RegistrationMetrics().compute()
    with pytest.raises(InputError, match="mask is 'brain'"):
        RegistrationMetrics(mask="brain")
    with pytest.raises(InputError, match="hd95 is 'mm'"):
        RegistrationMetrics(hd95="mm")
    with pytest.raises(InputError, match="needs the spacing"):
        one = pair(1)
        del one["spacing"]
        RegistrationMetrics(labels=[1], hd95="millimetres").update(one)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_field_that_is_not_finite_is_not_measured(value: float) -> None:
    broken = pair(3)
    broken["ddf"][1, 2, 3, 4] = value
    with pytest.raises(InputError, match="1 values that are NaN or infinite for 3 to f3"):
        RegistrationMetrics([1, 2]).update([broken])
