# SPDX-License-Identifier: Apache-2.0
"""The bundles of a zoo as a page (HTML) and as a table for a release page (Markdown), read from their zips."""

from __future__ import annotations

import base64
import json
import zipfile
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from common.report.charts import number
from common.report.page import cell, document, scrolled

PICTURE = "docs/preview.png"
"""Two images and what the bundle makes of them; a bundle may lack it."""
TITLE = "Registration bundles"
NOTES = (
    "Code: Apache-2.0. Weights have a licence of their own, or that of the data that they were trained on; each zip "
    "has it in LICENSE, and the whole text in docs/data_license.txt. Dice: mean overlap of labels before and after "
    "registration, measured by this project as the line below it says, with the weights of the zip where it has some "
    "and with other ones where it has none; figures of different lines are not to be compared. Published: what the "
    "authors, or others where it says so, report for the whole recipe on their own pairs."
)
COMMANDS = """python -m monai.bundle download NAME --bundle_dir . --url URL
cd NAME
python -m monai.bundle run infer --config_file configs/inference.json --affine true \\
    --moving MOVING.nii.gz --fixed FIXED.nii.gz --output_dir out"""


class Row(NamedTuple):
    """A bundle as its zip has it; ``size`` in bytes, ``weights`` by file name, ``picture`` as PNG."""

    name: str
    url: str
    checksum: str
    size: int
    metadata: dict[str, Any]
    weights: list[str]
    picture: bytes | None


def row(archive: Path, url: str, checksum: str) -> Row:
    """Read what is shown of a bundle.

    Args:
        archive: ``<name>_v<version>.zip`` of ``scripts/package.py``.
        url: where it will lie.
        checksum: its SHA-1.
    """
    name = archive.name.partition("_v")[0]
    with zipfile.ZipFile(archive) as content:
        files = {path.removeprefix(f"{name}/") for path in content.namelist()}
        metadata = json.loads(content.read(f"{name}/configs/metadata.json"))
        picture = content.read(f"{name}/{PICTURE}") if PICTURE in files else None
    weights = sorted(path.removeprefix("models/") for path in files if path.startswith("models/"))
    return Row(name, url, checksum, archive.stat().st_size, metadata, weights, picture)


def page(rows: Sequence[Row]) -> bytes:
    """The page that lists the bundles; it needs nothing else, pictures are in it."""
    with_weights = sum(bool(entry.weights) for entry in rows)
    summary = (
        f"{len(rows)} bundles for MONAI, {with_weights or 'none'} with weights. A click marks a command as a whole."
    )
    header = (
        f'<header><h1>{TITLE}</h1><p class="note">{summary}</p>'
        f"<pre>{escape(COMMANDS)}</pre>"
        '<p class="note">Bundles without weights are trained first, or given weights, by the commands of their '
        "docs/README.md; instance_any needs none.</p></header>"
    )
    head = "".join(
        cell("th", text, kind=kind)
        for text, kind in (
            ("Bundle", ""), ("Data", ""), ("Dice", "dice"), ("Zip", "number"), ("Licence of data and weights", ""),
        )
    )  # fmt: skip
    body = "\n".join(map(_rows, rows))
    table = scrolled(f'<table class="zoo"><thead><tr>{head}</tr></thead>{body}</table>', "Table of bundles")
    notes = f'<footer><p class="note">{escape(NOTES)}</p></footer>'
    return document(TITLE, [header, table, notes], "bundle_list.css")


def markdown(rows: Sequence[Row]) -> str:
    """The same as one table, for the text of a release."""
    lines = ["| bundle | method on data | Dice | weights | zip, MB | licence of data and weights | SHA-1 |"]
    lines.append("| --- | --- | --- | --- | ---: | --- | --- |")
    for entry in rows:
        said = entry.metadata
        dice = "; ".join(filter(None, (_measured(said), _protocol(said)))) or "–"
        cells = (
            f"[{entry.name} {said.get('version', '')}]({entry.url})",
            said.get("name", ""),
            dice,
            ", ".join(entry.weights) or "none",
            f"{entry.size / 1e6:.1f}",
            "; weights: ".join(_licences(entry)),
            f"`{entry.checksum}`",
        )
        lines.append("| " + " | ".join(str(text).replace("|", "\\|") for text in cells) + " |")
    return "\n".join(lines) + f"\n\n{NOTES}\n"


def card(entry: Row) -> str:
    """The page of a bundle on a model hub: README.md with the head that hubs sort by."""
    said = entry.metadata
    free = weights_terms(said).startswith("CC0") or not entry.weights
    licence = "apache-2.0" if free else "other\nlicense_name: data-license\nlicense_link: docs/data_license.txt"
    commands = COMMANDS.replace("NAME", entry.name).replace(
        "--url URL", f"--source huggingface_hub --repo OWNER/{entry.name}"
    )
    return (
        f"---\nlibrary_name: monai\nlicense: {licence}\ntags:\n- monai\n- medical\n- image-registration\n---\n\n"
        f"# {said.get('name', entry.name)}\n\n{said.get('description', '')}\n\n```bash\n{commands}\n```\n\n"
        f"Version {said.get('version')}, weights: {', '.join(entry.weights) or 'none'}. Licence of data and of weights "
        f"trained on them: {'; weights: '.join(_licences(entry))}; [whole text](docs/data_license.txt). Code: "
        "Apache-2.0. Figures, commands, limits: [docs/README.md](docs/README.md).\n"
    )


def weights_terms(metadata: Mapping[str, Any]) -> str:
    """Under which terms the weights of a bundle are: what its metadata say of them, or else of the data."""
    return str(metadata.get("weights_license", metadata.get("data_license", "–")))


def _licences(entry: Row) -> list[str]:
    """Of the data and, where the zip has weights with a licence of their own, of these."""
    own = entry.metadata.get("weights_license") if entry.weights else None
    return [str(text) for text in (entry.metadata.get("data_license", "–"), own) if text is not None]


def _rows(entry: Row) -> str:
    """A group of two rows: what the bundle is, and the command that fetches it."""
    said = {key: str(value) for key, value in entry.metadata.items()}
    papers = "".join(f"<li>{escape(str(text))}</li>" for text in entry.metadata.get("references", []))
    more = f"<p>{escape(said.get('description', ''))}</p><ul>{papers}</ul>"
    title = f'<a href="{escape(entry.url)}">{escape(entry.name)}</a> <small>{escape(said.get("version", ""))}</small>'
    weights = ", ".join(entry.weights) or "no weights"
    licences = '<p class="note">weights: '.join(map(escape, _licences(entry)))
    cells = (
        f'<th scope="row" rowspan="2">{title}<p class="what">{escape(said.get("name", ""))}</p>'
        f"<details><summary>Method and papers</summary>{more}</details></th>"
        f"<td>{escape(said.get('data_source', '–'))}{_picture(entry)}</td>"
        f'<td class="dice">{_dice(entry.metadata)}</td>'
        f'<td class="number">{entry.size / 1e6:.1f} MB<p class="note">{escape(weights)}</p></td>'
        f"<td>{licences}</td>"
    )
    command = f"python -m monai.bundle download {entry.name} --bundle_dir . --url {entry.url}"
    fetch = f'<td colspan="4" class="fetch"><pre>{escape(command)}</pre>SHA-1 <code>{entry.checksum}</code></td>'
    return f"<tbody><tr>{cells}</tr><tr>{fetch}</tr></tbody>"


def _picture(entry: Row) -> str:
    if entry.picture is None:
        return ""
    content = base64.b64encode(entry.picture).decode()
    return f'<img src="data:image/png;base64,{content}" alt="fixed, moving and warped image of {escape(entry.name)}">'


def _dice(said: dict[str, Any]) -> str:
    """Before and after as two bars, and how that was measured."""
    metrics = said.get("eval_metrics", {})
    bars = "".join(
        f'<i class="{kind}" style="width:{100 * min(max(float(metrics[name]), 0), 1):.1f}%"></i>'
        for kind, name in (("before", "dice_before"), ("after", "dice"))
        if name in metrics
    )
    track = f'<div class="track">{bars}</div>' if bars else ""
    notes = f'<p class="note">{escape(_protocol(said))}</p>'
    return f"<b>{_measured(said)}</b>{track}{notes}" if bars else notes if _protocol(said) else "–"


def _measured(said: dict[str, Any]) -> str:
    metrics = said.get("eval_metrics", {})
    shown = [number(metrics[name]) for name in ("dice_before", "dice") if name in metrics]
    return " → ".join(shown)


def _protocol(said: dict[str, Any]) -> str:
    metrics = said.get("eval_metrics", {})
    published = f"published: {metrics['published']}" if "published" in metrics else ""
    return "; ".join(filter(None, (metrics.get("protocol"), published)))
