# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

import pytest
import torch
from monai.data import decollate_batch
from torch import Tensor, nn

from common.engine import PrepareRegistrationBatch, RegistrationInferer, inferer, registered


class Recorder(nn.Module):
    """Returns a field whose value tells which type the convolution inside computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2, 3, 1)
        self.seen: list[torch.dtype] = []
        self.asked: list[Any] = []

    def forward(self, image: Tensor, details: Any = False) -> Tensor | dict[str, Tensor]:
        self.asked.append(details)
        out = self.conv(image)
        self.seen.append(out.dtype)
        return {"ddf": out.float(), "velocity": out.float()} if details else out.float()


def test_channel_0_is_moving_and_channel_1_is_fixed() -> None:
    batch = {"moving": torch.zeros(2, 1, 3, 3, 3), "fixed": torch.ones(2, 1, 3, 3, 3), "moving_id": ["a", "b"]}
    inputs, targets = PrepareRegistrationBatch()(batch, device="cpu")
    assert inputs.shape == (2, 2, 3, 3, 3)
    assert inputs[:, 0].eq(0).all() and inputs[:, 1].eq(1).all()
    assert targets["moving_id"] == ["a", "b"]


def test_every_tensor_moves_whatever_its_name() -> None:
    tensors = {"moving": torch.zeros(1, 1, 2, 2), "fixed": torch.ones(1, 1, 2, 2), "fixed_mask": torch.ones(1, 1, 2, 2)}
    batch = {**tensors, "moving_keypoints": torch.zeros(1, 5, 2), "draw": torch.tensor([[1, 2, 3]]), "fixed_id": ["a"]}
    _, targets = PrepareRegistrationBatch()(batch, device="meta")
    assert all(targets[name].is_meta for name in batch if name != "fixed_id") and targets["fixed_id"] == ["a"]


@pytest.mark.parametrize(("flags", "kept"), [([True, False], True), ([False, False], False), ([True, True], True)])
def test_labels_that_no_pair_of_the_batch_has_are_left_out(flags: list[bool], kept: bool) -> None:
    batch = {name: torch.zeros(2, 1, 2, 2) for name in ("moving", "fixed", "moving_label", "fixed_label")}
    _, targets = PrepareRegistrationBatch()({**batch, "labelled": torch.tensor(flags)}, device="cpu")
    assert targets["labelled"] == flags and ("moving_label" in targets) == ("fixed_label" in targets) == kept


def test_a_pair_without_labels_has_none_after_decollation() -> None:
    batch = {name: torch.zeros(2, 1, 2, 2) for name in ("moving", "fixed", "moving_label", "fixed_label")}
    _, targets = PrepareRegistrationBatch()({**batch, "labelled": torch.tensor([True, False])}, device="cpu")
    pairs = registered([{"label": label, "pred": {}} for label in decollate_batch(targets)])
    assert [set(pair) for pair in pairs] == [set(batch), {"moving", "fixed"}]


def test_images_may_be_made_of_label_maps_on_the_device() -> None:
    def synthesis(batch: dict[str, Any]) -> dict[str, Tensor]:
        seeds = batch["draw"].sum(1).view(-1, 1, 1, 1)
        return {side: batch[f"{side}_label"] * 10.0 + seeds for side in ("moving", "fixed")}

    labels = {"moving_label": torch.tensor([[[[1]]]]), "fixed_label": torch.tensor([[[[2]]]])}
    inputs, targets = PrepareRegistrationBatch(synthesis)({**labels, "draw": torch.tensor([[0, 2, 5]])}, device="cpu")
    assert (
        inputs.flatten().tolist() == [17, 27] and targets["fixed"].item() == 27 and targets["fixed_label"].item() == 2
    )


def test_registered_joins_targets_and_prediction() -> None:
    output = [{"image": 0, "label": {"fixed": 1, "fixed_id": "f"}, "pred": {"ddf": 2}}]
    assert registered(output) == [{"fixed": 1, "fixed_id": "f", "ddf": 2}]


def test_details_are_asked_for_only_when_wanted() -> None:
    image = torch.rand(1, 2, 4, 4, 4)
    assert set(RegistrationInferer()(image, Recorder())) == {"ddf"}
    assert set(RegistrationInferer(details=True)(image, Recorder())) == {"ddf", "velocity"}
    recorder = Recorder().eval()
    RegistrationInferer(details=["inverse_ddf", "*_map"])(image, recorder)
    assert recorder.asked == [("inverse_ddf", "*_map")]


@pytest.mark.parametrize("training", [True, False])
def test_a_way_back_that_a_network_lacks_is_that_of_the_exchanged_images_in_training(training: bool) -> None:
    image, network = torch.rand(1, 2, 4, 4, 4), Recorder().train(training)
    asked = ["ddf", "inverse_ddf", "inverse_velocity", "inverse_map", "moving"]
    outputs = RegistrationInferer(details=asked)(image, network)
    if not training:
        assert set(outputs) == {"ddf", "velocity"} and len(network.asked) == 1
        return
    assert network.asked == [tuple(asked), ("ddf", "velocity", "map")]
    assert set(outputs) == {"ddf", "velocity", "inverse_ddf", "inverse_velocity"}
    back = network(image.flip(1))
    assert torch.equal(outputs["inverse_ddf"], back) and torch.equal(outputs["inverse_velocity"], back)
    assert not torch.equal(outputs["ddf"], back)


def test_a_network_is_called_once_that_has_a_way_back_or_is_not_asked_for_it_by_name() -> None:
    class Inverse(Recorder):
        def forward(self, image: Tensor, details: Any = False) -> Any:
            field = super().forward(image)
            return {"ddf": field, "inverse_ddf": field}

    image = torch.rand(1, 2, 4, 4, 4)
    for network, details in ((Inverse(), ["inverse_ddf", "inverse_map"]), (Recorder(), ["*_ddf"]), (Recorder(), True)):
        RegistrationInferer(details=details)(image, network)
        assert len(network.asked) == 1


def test_nothing_leaves_a_single_slice() -> None:
    def network(image: Tensor, details: Any = False) -> Any:
        ddf = torch.ones(2, 3, 4, 1, 5)
        also = {"inverse_ddf": 2 * ddf, "weight_map": ddf[:, :1], "deviation": ddf}
        return {"ddf": ddf, **also} if details else ddf

    outputs = RegistrationInferer(details=True)(torch.rand(2, 2, 4, 1, 5), network)
    assert outputs["ddf"][:, 1].eq(0).all() and outputs["ddf"][:, ::2].eq(1).all()
    assert outputs["inverse_ddf"][:, 1].eq(0).all() and outputs["weight_map"].eq(1).all()
    assert torch.equal(outputs["deviation"], outputs["ddf"])
    assert torch.equal(RegistrationInferer()(torch.rand(2, 2, 4, 1, 5), network)["ddf"], outputs["ddf"])


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_a_network_of_two_dimensions_sees_a_slice_as_the_image_that_it_is(axis: int) -> None:
    class Flat(nn.Module):
        arguments: ClassVar[dict[str, Any]] = {"spatial_dims": 2}

        def forward(self, image: Tensor, details: Any = False) -> dict[str, Tensor]:
            assert image.ndim == 4
            return {"ddf": image * 3, "weight_map": image[:, :1]}

    image = torch.rand(2, 2, 4, 6, 5).narrow(axis, 0, 1)
    outputs = RegistrationInferer(details=["*_map"])(image, Flat().eval())
    moved = [k for k in range(3) if k != axis - 2]
    assert torch.equal(outputs["ddf"][:, moved], image * 3) and outputs["ddf"][:, axis - 2].eq(0).all()
    assert torch.equal(outputs["weight_map"], image[:, :1])


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Says whether processors have bfloat16."""
    monkeypatch.setattr(inferer, "_can_use_bfloat16", cache(inferer._can_use_bfloat16.__wrapped__))
    return lambda able: monkeypatch.setattr(inferer, "has_bfloat16", lambda device: able)


def test_amp_runs_convolutions_in_bfloat16(able: Callable[[bool], None]) -> None:
    able(True)
    network = Recorder()
    outputs = RegistrationInferer(amp=True)(torch.rand(1, 2, 4, 4, 4), network)
    RegistrationInferer()(torch.rand(1, 2, 4, 4, 4), network)
    assert network.seen == [torch.bfloat16, torch.float32]
    assert outputs["ddf"].dtype == torch.float32


def test_amp_is_float32_and_one_warning_where_there_is_no_bfloat16(able: Callable[[bool], None]) -> None:
    able(False)
    network = Recorder()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for details in (True, False, False):
            RegistrationInferer(details, amp=True)(torch.rand(1, 2, 4, 4, 4), network)
    assert network.seen == [torch.float32] * 3
    assert [str(w.message) for w in seen] == [
        "--amp true has no effect: this processor has no bfloat16, float32 is used."
    ]


def test_what_the_inferer_may_know_is_handed_to_it_by_name() -> None:
    batch = {"moving": torch.zeros(1, 1, 3, 3), "fixed": torch.ones(1, 1, 3, 3), "fixed_mask": torch.ones(1, 1, 3, 3)}
    batch["fixed_label"] = torch.ones(1, 1, 3, 3)
    inputs, targets, args, kwargs = PrepareRegistrationBatch(known=["moving_mask", "fixed_mask"])(batch)
    assert inputs.shape == (1, 2, 3, 3) and args == () and set(targets) == set(batch)
    assert set(kwargs) == {"targets"} and set(kwargs["targets"]) == {"fixed_mask"}
