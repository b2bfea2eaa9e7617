# SPDX-License-Identifier: Apache-2.0
"""The plain form of each network that is benchmarked is the same function as ours, in value and in gradient."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from scripts.training_steps import COMPARED, VARIANTS

SIZE = (32, 48, 32)

Rules = dict[str, str | Callable[[re.Match[str]], str]]


class Case(NamedTuple):
    """How the two forms of a network are compared.

    Attributes:
        arguments: of both forms, small.
        rules: pattern and replacement that make of the name of a parameter of the plain form that of ours.
        size: of the images.
        larger: how many times larger than fresh the weights of the field are, where fresh ones move nothing.
    """

    arguments: dict[str, Any]
    rules: Rules
    size: tuple[int, int, int] = (16, 24, 16)
    larger: float = 1


VFA: Rules = {
    r"^first\.0\.": "encoder.first_norm.",
    r"^first\.1\.": "encoder.first.",
    r"^(down|up)\.(\d)\.0\.": r"encoder.\1.\2.0.conv.",
    r"^(down|up)\.(\d)\.1\.": r"encoder.\1.\2.0.norm.",
    r"^(down|up)\.(\d)\.3\.": r"encoder.\1.\2.1.conv.",
    r"^(down|up)\.(\d)\.4\.": r"encoder.\1.\2.1.norm.",
    r"^enlarge\.(\d)\.1\.": r"encoder.enlarge.\1.conv.",
    r"^enlarge\.(\d)\.2\.": r"encoder.enlarge.\1.norm.",
    r"^project\.(\d)\.": r"attention.\1.project.",
    r"^encoder\.down\.4\.": "encoder.bottom.",
}
SITREG: Rules = {
    r"^projection\.": "extractor.projection.",
    r"^strided\.(\d)\.": r"extractor.downsamplings.\1.downsampling.",
    r"^skips\.(\d)\.": r"extractor.downsamplings.\1.projection.",
    r"^updates\.(\d)\.1\.": r"updates.\1.head.",
    r"^updates\.(\d)\.0\.": r"updates.\1.block.",
    r"^blocks\.0\.": "extractor.block.",
    r"^blocks\.(\d)\.": lambda found: f"extractor.downsamplings.{int(found[1]) - 1}.block.",
    r"block\.(0|3)\.": lambda found: f"block.convolutions.{int(found[1]) // 3}.",
    r"block\.(1|4)\.": lambda found: f"block.normalisations.{int(found[1]) // 3}.",
}
DUAL_PYRAMID: Rules = {
    r"^decoder\.(\d)\.0\.": r"decoder.\1.residual.",
    r"^decoder\.(\d)\.1\.": r"decoder.\1.flow.",
    r"^decoder\.(\d)\.(weight|bias)": r"decoder.\1.project.\2",
    r"main\.0\.": "first.",
    r"main\.1\.": "first_norm.",
    r"main\.3\.": "second.",
    r"main\.4\.": "second_norm.",
    r"skip\.0\.": "skip.",
    r"skip\.1\.": "skip_norm.",
}
VOXELMORPH: Rules = {
    r"^unet\.down\.(\d)\.0\.": r"unet.encoder.\1.0.",
    r"^unet\.up\.(\d)\.0\.": r"unet.decoder.\1.0.",
    r"^unet\.last\.(\d)\.0\.": r"unet.decoder.3.\1.",
}
TRANSMORPH: Rules = {
    r"^patches\.": "unet.encoder.patch_embed.proj.",
    r"^norm\.": "unet.encoder.patch_embed.norm.",
    r"^stages\.(\d)\.(\d)\.": r"unet.encoder.stages.\1.blocks.\2.",
    r"attention\.table": "attn.relative_position_bias_table",
    r"attention\.": "attn.",
    r"mlp\.(0|2)\.": lambda found: f"mlp.linear{int(found[1]) // 2 + 1}.",
    r"^(merging|norms)\.": lambda found: f"unet.encoder.{found[1].replace('merging', 'merge')}.",
    r"^of_(half|full)\.0\.": lambda found: f"unet.of_images.{['half', 'full'].index(found[1])}.conv.",
    r"^ups\.(\d)\.(\w+)\.0\.": r"unet.up.\1.\2.conv.",
    r"^head\.": "head.conv.",
}
SWIN = {"embed_dim": 4, "depths": (1, 2), "heads": (1, 2), "window": (2, 3, 2), "drop_path": 0.0}
FIELDS = ("flow.weight", "head.conv.weight")
UNET = {"encoder": (4, 6, 8), "decoder": (8, 6, 5, 4, 3)}
CASES = {
    "voxelmorph": Case(UNET, VOXELMORPH, larger=1e6),
    "voxelmorph_diff": Case(UNET, VOXELMORPH, larger=1e6),
    "transmorph": Case(SWIN, TRANSMORPH, larger=1e4),
    "vfa": Case({"channels": 4}, VFA, SIZE),
    "sitreg": Case({"channels": (4, 8, 8), "update_channels": (4, 8, 8)}, SITREG),
    "dp_conv_c": Case({"channels": (4, 6, 8), "decoder_channels": (6, 8, 8)}, DUAL_PYRAMID),
    "dp_convic_c": Case({"channels": (4, 6, 8), "decoder_channels": (6, 8, 8)}, DUAL_PYRAMID),
    "dp_vfa": Case({"channels": (4, 6, 8)}, DUAL_PYRAMID),
}


@pytest.fixture(autouse=True)
def process_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # It would change the allocator of the process.
    monkeypatch.setattr("common.memory.keep_freed_memory", lambda: None)
    yield
    torch.set_default_dtype(torch.float32)


def assert_close_in_norm(a: Tensor, b: Tensor, allowed: float) -> None:
    assert (a - b).norm() <= allowed * b.norm()


@pytest.mark.parametrize("method", CASES)
def test_both_forms_have_one_loss_and_one_gradient(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[method]
    # Ours is exact; with the published tolerance the plain form is one per cent away.
    monkeypatch.setattr("scripts.textbook_sitreg.GRADIENT_CHANGE", 1e-5)
    # In float32 rounding decides on the gradient where a voxel is sampled near the border between cells.
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    textbook, ours = (COMPARED[method].form(variant, case.size, **case.arguments) for variant in VARIANTS[:2])
    by_name, pairs = dict(ours.network.named_parameters()), []
    if case.larger != 1:
        next(by_name[name] for name in FIELDS if name in by_name).data *= case.larger
    for name, parameter in textbook.network.named_parameters():
        for pattern, replacement in case.rules.items():
            name = re.sub(pattern, replacement, name)
        pairs.append((by_name.pop(name), parameter))
        parameter.data.copy_(pairs[-1][0].data)
    assert not by_name
    moving, fixed = torch.rand((2, 1, 1, *case.size))
    totals = [form.loss(moving, fixed) for form in (textbook, ours)]
    assert totals[1].item() == pytest.approx(totals[0].item(), rel=1e-6)
    for total in totals:
        total.backward()
    gradients = [torch.cat([p.grad.flatten() for p in side if p.grad is not None]) for side in zip(*pairs, strict=True)]
    assert_close_in_norm(gradients[0], gradients[1], 1e-4)


def test_eoir_has_one_loss_and_one_gradient_of_each_parameter() -> None:
    torch.manual_seed(0)
    textbook, ours = (COMPARED["eoir"].form(variant, SIZE, channels=4) for variant in VARIANTS[:2])
    for one, other in zip(textbook.network.parameters(), ours.network.parameters(), strict=True):
        one.data.copy_(other.data)
    moving, fixed = torch.rand((2, 1, 1, *SIZE))
    totals = [form.loss(moving, fixed) for form in (textbook, ours)]
    assert totals[1].item() == pytest.approx(totals[0].item(), rel=2e-6)
    for total in totals:
        total.backward()
    # Normalisation takes biases in front of it out again: their gradients are rounding.
    pairs = [
        (a, b)
        for (name, a), b in zip(ours.network.named_parameters(), textbook.network.parameters(), strict=True)
        if not ("encoder" in name and name.endswith("bias"))
    ]
    assert len(pairs) == 36
    for a, b in pairs:
        assert a.grad is not None and b.grad is not None
        assert_close_in_norm(a.grad, b.grad, 1e-3)
    with torch.no_grad():
        assert_close_in_norm(ours.forward(moving, fixed), textbook.forward(moving, fixed)[1][0], 1e-4)
