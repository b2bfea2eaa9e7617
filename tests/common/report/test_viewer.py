# SPDX-License-Identifier: Apache-2.0
"""The slice viewer: what is embedded, and what a real browser makes of whole pages."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from common.report import viewer
from common.report.comparison_page import Evaluation, write_comparison
from common.report.pages import write_report
from common.report.panels import as_png, panel
from common.report.viewer import ViewedPair, ViewedScan, sprite_columns, viewer_section

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
SHAPE = (20, 26, 14)
LAS = torch.diag(torch.tensor([-2.0, 2.0, 2.0, 1.0], dtype=torch.float64))


def volumes(seed: int, shape: Sequence[int] = SHAPE) -> tuple[Tensor, Tensor]:
    """A smooth image that differs from slice to slice, and labels."""
    generator = torch.Generator().manual_seed(seed)
    size = [n // 3 + 2 for n in shape]
    mode = "trilinear" if len(shape) == 3 else "bilinear"
    noise = torch.rand((1, 1, *size), generator=generator)
    image = torch.nn.functional.interpolate(noise, size=list(shape), mode=mode)[0]
    return image, (image * 4).long()


def pair(
    caption: str = "a to b", methods: Sequence[str] = ("warped",), affine: Tensor | None = None, seed: int = 0
) -> ViewedPair:
    warped = {name: ViewedScan(*volumes(seed + 2 + k)) for k, name in enumerate(methods)}
    return ViewedPair(caption, ViewedScan(*volumes(seed + 1)), ViewedScan(*volumes(seed)), warped, affine)


def data_of(section: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="viewer-data">(.*?)</script>', section, re.DOTALL)
    assert found
    content: dict[str, Any] = json.loads(found[1])
    return content


def unpacked(uri: str, shape: Sequence[int]) -> np.ndarray:
    """The volume in a sheet of slices, taken apart one slice at a time as the script does."""
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
    width, height, depth = shape
    columns = sprite_columns(width, height, depth)
    volume = np.zeros(shape, np.uint8)
    for z in range(depth):
        left, top = z % columns * width, z // columns * height
        volume[:, :, z] = sheet[top : top + height, left : left + width].T
    return volume


def test_labels_are_embedded_without_loss_and_images_nearly_so() -> None:
    shown = pair()
    (entry,) = data_of(viewer_section([shown]))["pairs"]
    assert shown.fixed.label is not None
    np.testing.assert_array_equal(unpacked(entry["fixed"]["label"], SHAPE), shown.fixed.label[0].numpy())
    low, high = np.quantile(shown.fixed.image.numpy(), viewer.QUANTILES)
    stretched = np.clip((shown.fixed.image[0].numpy() - low) / (high - low), 0, 1) * 255
    assert np.abs(unpacked(entry["fixed"]["image"], SHAPE) - stretched).mean() < 3


def test_labels_of_any_numbers_are_outlined() -> None:
    shown = pair()
    assert shown.fixed.label is not None
    numbers = torch.tensor([0, -1, 312782546, 614454277])
    (entry,) = data_of(
        viewer_section([ViewedPair("p", shown.moving, ViewedScan(shown.fixed.image, numbers[shown.fixed.label]))])
    )["pairs"]
    # In ascending order, with those of the moving scan, which are 1, 2 and 3.
    ranks = np.array([0, 1, 5, 6])[shown.fixed.label[0].numpy()]
    np.testing.assert_array_equal(unpacked(entry["fixed"]["label"], SHAPE), ranks)


def test_volumes_are_turned_to_right_anterior_superior() -> None:
    shown = pair(affine=LAS)
    (entry,) = data_of(viewer_section([shown]))["pairs"]
    assert shown.fixed.label is not None
    np.testing.assert_array_equal(unpacked(entry["fixed"]["label"], SHAPE), shown.fixed.label[0].flip(0).numpy())
    assert entry["spacing"] == [2, 2, 2] and entry["letters"]


def test_spacing_follows_its_axis_when_axes_are_exchanged() -> None:
    affine = torch.tensor([[0, 0, 5, 0], [1.5, 0, 0, 0], [0, 3, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
    (entry,) = data_of(viewer_section([pair(affine=affine)]))["pairs"]
    assert entry["spacing"] == [5, 1.5, 3] and entry["shape"] == [SHAPE[2], SHAPE[0], SHAPE[1]]


def test_warped_image_keeps_the_scale_of_the_moving_one_and_the_fixed_its_own() -> None:
    image, _ = volumes(0)
    shown = ViewedPair("p", ViewedScan(image), ViewedScan(image * 1000 - 300), {"w": ViewedScan(image * 0.5)})
    (entry,) = data_of(viewer_section([shown]))["pairs"]
    fixed, (moving, warped) = entry["fixed"], entry["images"]
    assert np.abs(unpacked(fixed["image"], SHAPE).astype(int) - unpacked(moving["image"], SHAPE)).max() <= 2
    assert unpacked(warped["image"], SHAPE).max() < 0.6 * 255


def test_large_pairs_are_coarsened_into_the_budget_along_their_fine_axes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer, "PAIR_BYTES", 30_000)
    noise = torch.rand((1, 60, 60, 9), generator=torch.Generator().manual_seed(0))
    affine = torch.diag(torch.tensor([1.5, 1.5, 10.0, 1.0], dtype=torch.float64))
    section = viewer_section([ViewedPair("p", ViewedScan(noise), ViewedScan(noise), {"w": ViewedScan(noise)}, affine)])
    (entry,) = data_of(section)["pairs"]
    assert len(section) < 32_000
    assert entry["full"] == [60, 60, 9] and entry["shape"][2] == 9 and entry["shape"][0] < 60
    extent = [n * size for n, size in zip(entry["shape"], entry["spacing"], strict=True)]
    assert extent == pytest.approx([90, 90, 90])


def test_many_pairs_share_the_room_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer, "PAGE_BYTES", 60_000)
    assert len(viewer_section([pair() for _ in range(6)])) < 65_000


def test_image_in_the_plane_is_one_slice() -> None:
    image, label = volumes(0, (20, 30))
    (entry,) = data_of(
        viewer_section([ViewedPair("p", ViewedScan(image), ViewedScan(image, label), {"w": ViewedScan(image)})])
    )["pairs"]
    assert entry["shape"] == [20, 30, 1] and not entry["letters"]
    np.testing.assert_array_equal(unpacked(entry["fixed"]["label"], (20, 30, 1))[..., 0], label[0].numpy())


def test_an_image_of_two_dimensions_stands_upright() -> None:
    image, label = volumes(0, (20, 30))
    scan = ViewedScan(image, label)
    for affine, shown in ((torch.diag(torch.tensor([-2.0, -3, 1, 1])), label[0].flip(1)), (torch.eye(4), label[0])):
        (entry,) = data_of(viewer_section([ViewedPair("p", scan, scan, affine=affine)]))["pairs"]
        np.testing.assert_array_equal(unpacked(entry["fixed"]["label"], (20, 30, 1))[..., 0], shown.numpy())
        assert entry["spacing"] == [*affine.diagonal().abs().tolist()[:2], 1.0] and not entry["letters"]


def test_constant_images_and_large_label_numbers_can_be_shown() -> None:
    flat, label = torch.zeros((1, *SHAPE)), torch.zeros((1, *SHAPE), dtype=torch.int16)
    label[0, 3:9, 4:8], label[0, 12:] = 2035, 41
    (entry,) = data_of(viewer_section([ViewedPair("p", ViewedScan(flat, label), ViewedScan(flat, label))]))["pairs"]
    assert set(np.unique(unpacked(entry["fixed"]["label"], SHAPE))) == {0, 1, 2}
    assert [image["name"] for image in entry["images"]] == ["Moving (before)"]


def test_no_pairs_make_no_section() -> None:
    assert viewer_section([]) == ""


def test_text_cannot_leave_the_data() -> None:
    section = viewer_section([pair("</script><b>x", ["</script><i>"])])
    assert section.count("</script>") == 1 and "<b>" not in section and "<i>" not in section
    assert data_of(section)["pairs"][0]["caption"] == "</script><b>x"


# ---- whole pages in a browser ----

LISTEN = """<script>
window.problems = [];
for (const name of ["error", "warn"])
  console[name] = (...words) => problems.push(`console.${name}: ${words.join(" ")}`);
window.addEventListener(
  "error", (event) => problems.push(`error: ${event.message || event.target.outerHTML.slice(0, 80)}`), true);
window.addEventListener("unhandledrejection", (event) => problems.push(`rejected: ${event.reason}`));
window.addEventListener("securitypolicyviolation", (event) => problems.push(`refused: ${event.blockedURI}`));
</script>"""
PROBE = """<script>
(async () => {
  const root = document.getElementById("viewer"), canvas = root.querySelector("canvas");
  const slider = root.querySelector("input[type=range]"), result = { hashes: {} };
  const pause = () => new Promise((done) => setTimeout(done, 20));
  const hash = () => {
    let sum = 7;
    for (const value of canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data)
      sum = (Math.imul(sum, 31) + value) | 0;
    return sum;
  };
  const after = async (name, act) => {
    const before = root.dataset.drawn;
    act();
    for (let i = 0; i < 100 && root.dataset.drawn === before; i++) await pause();
    result.hashes[name] = hash();
  };
  const choose = (group, text) => [...root.querySelectorAll(`input[name=viewer-${group}]`)]
    .find((input) => input.parentElement.textContent === text).click();
  const key = (name) => canvas.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
  const slide = (value) => { slider.value = value; slider.dispatchEvent(new Event("input")); };
  for (let i = 0; i < 100 && !root.dataset.drawn; i++) await pause();
  result.hashes.start = hash();
  await after("slider", () => slide(3));
  result.text = root.querySelector("output").textContent;
  await after("back", () => slide(SHAPE_Z / 2));
  await after("key", () => key("ArrowUp"));
  await after("key back", () => key("ArrowDown"));
  await after("before", () => choose("image", "Moving (before)"));
  for (const view of ["Fixed", "Difference", "Checkerboard", "Swipe", "Image"])
    await after(view, () => choose("view", view));
  for (const plane of ["Coronal", "Sagittal", "Axial"]) await after(plane, () => choose("plane", plane));
  for (const input of [...root.querySelectorAll("input[name=viewer-image]")].slice(1)) {
    const name = `method ${input.parentElement.textContent}`;
    await after(name, () => input.click());
  }
  await after("outlines", () => root.querySelector("input[type=checkbox]").click());
  const select = root.querySelector("select");
  await after("pair", () => { select.value = "1"; select.dispatchEvent(new Event("change")); });
  result.label = canvas.getAttribute("aria-label");
  result.unnamed = [...root.querySelectorAll("input, select")]
    .filter((element) => !element.labels.length && !element.getAttribute("aria-label")).length;
  result.pictures = [...document.images].map((image) => image.naturalWidth * image.naturalHeight);
  result.canvas = [canvas.width, canvas.height];
  result.width = [document.documentElement.scrollWidth, window.innerWidth];
  result.problems = window.problems;
  const text = document.createElement("pre");
  text.id = "probe";
  text.textContent = JSON.stringify(result);
  parent.document.body.append(text);
})();
</script>"""


def probed(page: Path, folder: Path, width: int) -> dict[str, Any]:
    """What a headless browser sees of a page when its controls are used."""
    if BROWSER is None:
        pytest.skip("no chromium or chrome on PATH (Debian: apt-get install chromium)")
    text = page.read_text(encoding="utf-8").replace("<head>", f"<head>{LISTEN}", 1)
    copy = folder / "probed.html"
    script = PROBE.replace("SHAPE_Z", str(SHAPE[2]))
    text = text.replace("</body>", f"{script}</body>")
    # A window has a least width; a frame has not.
    frame = f'<iframe style="width: {width}px; height: 1200px; border: 0" srcdoc="{html.escape(text)}"></iframe>'
    copy.write_text(f"<!DOCTYPE html><body>{frame}</body>", encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--no-first-run", "--disable-extensions", f"--user-data-dir={folder / 'profile'}"]
    command += ["--window-size=1400,1300", "--virtual-time-budget=20000", "--dump-dom", copy.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r'<pre id="probe">(.*?)</pre>', dom, re.DOTALL)
    assert found, dom[-2000:]
    result: dict[str, Any] = json.loads(html.unescape(found[1]))
    return result


CASES: list[dict[str, Any]] = [
    {"fixed_id": "a", "moving_id": f"subject_with_a_long_identifier_{k}", "dice": 0.7 + 0.02 * k, "dice_before": 0.6}
    for k in range(6)
]
LABELS = [
    {**case, "label": label, "dice": case["dice"] - 0.01 * label} for case in CASES for label in range(1, 36)
]  # fmt: skip
NAMES = {label: f"Left-Cerebellum-White-Matter-{label}" for label in range(1, 36)}
SUMMARY = {"dice": {"mean": 0.75, "std": 0.03, "before": 0.6}, "ndv": {"mean": 0.01, "std": 0.0}}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("report")
    (fixed, _), (moving, _) = volumes(0), volumes(1)
    picture = as_png(panel(moving, fixed, moving, torch.zeros(3, *SHAPE)))
    history = [{"epoch": epoch, "lncc": -0.1 * epoch, "val_dice": 0.6 + 0.01 * epoch} for epoch in range(1, 9)]
    path = folder / "report.html"
    viewed = [pair("worst pair: a to b", affine=LAS), pair("best pair")]
    panels = [("worst pair", picture)]
    write_report(path, "R", SUMMARY, CASES, LABELS, history, panels, viewer=viewed, label_names=NAMES)
    return probed(path, folder, 1280)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("comparison")
    methods = {name: Evaluation(SUMMARY, CASES, LABELS) for name in ("greedy", "a method with a long name, w = 0.5")}
    captions = ("worst", "best " + "long_identifier_" * 8)
    viewed = [pair(caption, list(methods), LAS, 10 * k) for k, caption in enumerate(captions)]
    write_comparison(folder / "compare.html", "C", methods, viewed, label_names=NAMES)
    return probed(folder / "compare.html", folder, 390)


@pytest.mark.parametrize("page", ["report", "comparison"])
def test_page_opens_without_a_complaint_and_its_pictures_are_there(page: str, request: pytest.FixtureRequest) -> None:
    seen = request.getfixturevalue(page)
    assert seen["problems"] == []
    assert all(size > 0 for size in (*seen["pictures"], *seen["canvas"]))
    assert len(seen["pictures"]) == (1 if page == "report" else 0)


@pytest.mark.parametrize("page", ["report", "comparison"])
def test_slider_and_keys_change_the_slice_and_come_back(page: str, request: pytest.FixtureRequest) -> None:
    seen = request.getfixturevalue(page)
    hashes = seen["hashes"]
    assert len({hashes[name] for name in ("start", "slider", "key")}) == 3
    assert hashes["back"] == hashes["key back"] == hashes["start"]
    assert seen["text"] == "Axial slice 4 of 14"


@pytest.mark.parametrize("page", ["report", "comparison"])
def test_every_view_plane_and_pair_draws_another_picture(page: str, request: pytest.FixtureRequest) -> None:
    hashes = request.getfixturevalue(page)["hashes"]
    different = ("start", "before", "Fixed", "Difference", "Checkerboard", "Swipe", "Coronal", "Sagittal")
    assert len({hashes[name] for name in different}) == len(different)
    assert hashes["Image"] == hashes["Axial"] == hashes["before"]
    assert hashes["outlines"] not in (hashes["start"], hashes["pair"])


def test_methods_are_switched_and_shown_side_by_side(comparison: dict[str, Any]) -> None:
    hashes = comparison["hashes"]
    methods = [name for name in hashes if name.startswith("method ")]
    assert methods == ["method greedy", "method a method with a long name, w = 0.5", "method All side by side"]
    assert len({hashes[name] for name in (*methods, "before")}) == 4
    assert hashes["method greedy"] == hashes["start"]


def test_page_fits_a_phone_and_controls_have_names(comparison: dict[str, Any], report: dict[str, Any]) -> None:
    for seen in (comparison, report):
        assert seen["width"][0] <= seen["width"][1]
        assert seen["unnamed"] == 0
    assert comparison["width"][1] == 390
    assert "Axial slice 8 of 14. best long_identifier_" in comparison["label"]
