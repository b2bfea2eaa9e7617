# SPDX-License-Identifier: Apache-2.0
"""A leaderboard as text for people (Markdown), for programs (CSV rows) and as a page (HTML)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any, NamedTuple

from common.evaluation.leaderboard import COSTS, ORDER, PUBLISHED, Cell, Entry, Leaderboard
from common.metrics.ranking import PairedTest, higher_is_better
from common.report.charts import label_bars
from common.report.page import cell, document, figure, scrolled

TITLES = {
    "inverse_consistency": "Inverse consistency, mm",
    "sdlogj_l2r_masked": "SDlogJ (L2R, brain)",
    "dice30": "Dice30",
    "score": "Score",
}
FEW_PAIRS = 6
"""With fewer pairs no signed-rank test can reach p < 0.05."""


class Table(NamedTuple):
    """A table before it is written: every cell is text and whether it is stressed; ``kinds`` are those of the rows."""

    title: str
    note: str
    head: list[str]
    rows: list[list[tuple[str, bool]]]
    kinds: list[str]


def tables_of(board: Leaderboard) -> list[Table]:
    """The tables of a leaderboard: figures, paired tests, rank scores; those without content are left out."""
    return [table for table in (_figures(board), _tests(board), _ranks(board)) if table.rows]


def markdown(board: Leaderboard, title: str, notes: Sequence[str] = ()) -> str:
    """All tables as Markdown, below paragraphs of the caller, with what was left out and sources of figures."""
    lines = [f"# {title}", *(line for note in (*notes, summary(board)) for line in ("", note))]
    for table in tables_of(board):
        lines += ["", f"## {table.title}", "", table.note, ""]
        lines += ["| " + " | ".join(map(_piped, table.head)) + " |", "| --- |" + " ---: |" * (len(table.head) - 1)]
        for row in table.rows:
            lines.append("| " + " | ".join(f"**{_piped(t)}**" if strong else _piped(t) for t, strong in row) + " |")
    for heading, entries in (("Left out", left_out(board)), ("Sources of published figures", sources(board))):
        if entries:
            lines += ["", f"## {heading}", "", *(f"- {entry}" for entry in entries)]
    return "\n".join(lines) + "\n"


def csv_rows(board: Leaderboard) -> list[dict[str, Any]]:
    """One row per method: means, standard deviations, corrected p and scores under names like ``dice_mean``."""
    rows = []
    for row in board.rows:
        entry: dict[str, Any] = {"method": row.name, "kind": row.kind, "source": row.source}
        entry["pairs"] = "" if row.kind == "published" else len(board.pairs)
        for name in board.figures:
            value = row.cells.get(name)
            entry[f"{name}_mean"] = "" if value is None else value.mean
            entry[f"{name}_std"] = "" if value is None or value.std is None else value.std
        for name, tests in board.tests.items():
            reference = board.references[name] == row.name
            entry[f"{name}_p_holm"] = "reference" if reference else tests[row.name].p_holm if row.name in tests else ""
        for name, scores in board.l2r.items():
            entry[f"l2r_{name}"] = scores.get(row.name, "")
        if board.lumir:
            entry["lumir_score"] = board.lumir.get(row.name, "")
        rows.append(entry)
    return rows


def page(board: Leaderboard, title: str, notes: Sequence[str] = ()) -> bytes:
    """All tables as one page that needs nothing else, below paragraphs of the caller."""
    head = "".join(f'<p class="note">{escape(note)}</p>' for note in (*notes, summary(board)))
    sections = [f"<header><h1>{escape(title)}</h1>{head}</header>"]
    sections += [_section(table) for table in tables_of(board)]
    measured = [row for row in board.rows if row.kind != "published" and "dice" in row.cells]
    bars = [{"label": row.name, "dice": row.cells["dice"].mean} for row in measured]
    if len(bars) > 1:
        note = '<p class="note">Mean Dice, 0 to 1.</p>'
        sections.append(f"<section><h2>Dice</h2>{note}{label_bars(bars)}</section>")
    for heading, entries in (("Left out", left_out(board)), ("Sources of published figures", sources(board))):
        items = "".join(f"<li>{escape(entry)}</li>" for entry in entries)
        sections.append(f'<section class="sources"><h2>{heading}</h2><ul>{items}</ul></section>' if items else "")
    return document(title, sections, "leaderboard.css")


def summary(board: Leaderboard) -> str:
    """What the figures are over."""
    runs = sum(row.kind == "run" for row in board.rows)
    text = f"{_counted(runs, 'run')} on {_counted(len(board.pairs), 'pair')}"
    text += " that all have. " if runs > 1 else ". "
    text += "Mean ± standard deviation over pairs; the best value of a column is stressed."
    if any(row.kind == "published" for row in board.rows):
        text += f" {PUBLISHED} published: figures of the source, on the pairs of the source."
    return text


def left_out(board: Leaderboard) -> list[str]:
    """One sentence for each run that lacks pairs of the others."""
    sentences = []
    for name, pairs in board.left_out.items():
        listed = ", ".join(f"{moving} to {fixed}" for moving, fixed in pairs[:5])
        more = f" and {len(pairs) - 5} more" if len(pairs) > 5 else ""
        sentences.append(f"{name} lacks {_counted(len(pairs), 'pair')}, left out for all: {listed}{more}.")
    return sentences


def sources(board: Leaderboard) -> list[str]:
    """Where the published figures are from, each source once."""
    return list(dict.fromkeys(row.source for row in board.rows if row.source))


def _figures(board: Leaderboard) -> Table:
    columns: list[tuple[str, Callable[[Entry], tuple[str, bool]]]] = []
    if board.l2r:
        columns.append(("L2R rank score\u00a0↑", _score_of(board.l2r["score"])))
    if board.lumir:
        columns.append(("LUMIR score\u00a0↑", _score_of(board.lumir)))
    for name in board.figures:
        columns.append((_title(name), _figure_of(board, name)))
    rows = [[(row.name, False), *(show(row) for _, show in columns)] for row in board.rows]
    kinds = [row.kind for row in board.rows]
    return Table("Figures", _scores_note(board), ["Method", *(head for head, _ in columns)], rows, kinds)


def _scores_note(board: Leaderboard) -> str:
    notes = ["↑ higher is better, ↓ lower is better."]
    if board.l2r:
        notes.append("Runs stand by their rank score, see below, best first.")
    if board.lumir:
        notes.append("LUMIR score: Dice/6 + HD95/6 + TRE/3 + NDV/3, each from 0 (worst of the table) to 1 (best).")
    return " ".join(notes)


def _score_of(scores: dict[str, float]) -> Callable[[Entry], tuple[str, bool]]:
    top = max(scores.values())
    return lambda row: (f"{scores[row.name]:.3f}", scores[row.name] == top) if row.name in scores else ("–", False)


def _figure_of(board: Leaderboard, name: str) -> Callable[[Entry], tuple[str, bool]]:
    best = board.best(name)
    digits = 2 if name in COSTS else None
    return lambda row: (_shown(row.cells.get(name), digits), row.name in best)


def _tests(board: Leaderboard) -> Table:
    names = [name for name in board.figures if name in board.tests]
    runs = [row.name for row in board.rows if row.kind == "run" and names]
    rows = [[(run, False), *(_test_cell(board, name, run) for name in names)] for run in runs]
    note = (
        f"p of the Wilcoxon signed-rank test over {_counted(len(board.pairs), 'pair')} against the reference of each "
        "column, two-sided, corrected after Holm for the number of methods; below 0.05 stressed. Better or worse is "
        "the median of the differences."
    )
    if len(board.pairs) < FEW_PAIRS:
        note += f" With fewer than {FEW_PAIRS} pairs none can be below 0.05."
    return Table("Paired tests", note, ["Method", *map(_title, names)], rows, ["run"] * len(rows))


def _test_cell(board: Leaderboard, name: str, run: str) -> tuple[str, bool]:
    if board.references[name] == run:
        return "reference", False
    test: PairedTest | None = board.tests[name].get(run)
    if test is None or math.isnan(test.p_holm):
        return "–", False
    side = "better" if (test.difference > 0) == higher_is_better(name) else "worse"
    p = "<0.0001" if test.p_holm < 1e-4 else f"{test.p_holm:.4f}"
    return (f"{p} {side}" if test.difference else p), test.p_holm < 0.05


def _ranks(board: Leaderboard) -> Table:
    names = list(board.l2r)
    runs = [row.name for row in board.rows if row.kind == "run" and names]
    rows = []
    for run in runs:
        values = [(board.l2r[name][run], max(board.l2r[name].values())) for name in names]
        rows.append([(run, False), *((f"{value:.3f}", value == top) for value, top in values)])
    note = (
        "Learn2Reg's ranking: how many methods are significantly better (rank-sum test over pairs and labels, "
        "p < 0.05), as scores from 0.1 to 1; the score is their geometric mean. Dice30: the 30 % of pairs and labels "
        "that were hardest before registration."
    )
    return Table("Rank scores", note, ["Method", *(_title(name, False) for name in names)], rows, ["run"] * len(rows))


def _section(table: Table) -> str:
    head = "".join(cell("th", text, index > 0) for index, text in enumerate(table.head))
    body = ""
    for row, kind, previous in zip(table.rows, table.kinds, [table.kinds[0], *table.kinds], strict=False):
        classes = " ".join(filter(None, ("" if kind == "run" else "soft", "first" if kind != previous else "")))
        cells = "".join(cell("td", t, index > 0, "top" if strong else "") for index, (t, strong) in enumerate(row))
        body += f'<tr class="{classes}">{cells}</tr>\n' if classes else f"<tr>{cells}</tr>\n"
    content = f'<table class="board"><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>'
    note = f'<p class="note">{escape(table.note)}</p>'
    return f"<section><h2>{table.title}</h2>{note}{scrolled(content, table.title)}</section>"


def _title(name: str, arrow: bool = True) -> str:
    entry = figure(name)
    known = name in ORDER or name in TITLES
    title = TITLES.get(name) or (entry.title + (f", {entry.unit}" if entry.unit else "") if known else name)
    return f"{title}\u00a0{'↑' if higher_is_better(name) else '↓'}" if arrow and name in ORDER else title


def _shown(value: Cell | None, digits: int | None = None) -> str:
    """Mean and spread with the digits that challenges print, or the mean alone with so many digits."""
    if value is None:
        return "–"
    if value.printed:
        return value.printed
    if not math.isfinite(value.mean):
        return "∞"
    if digits is not None:
        return f"{value.mean:.{digits}f}"
    if 0 < abs(value.mean) < 5e-5:
        return "<0.0001"
    digits = 4 if abs(value.mean) < 10 else 2
    spread = "" if value.std is None else f" ± {value.std:.{digits}f}"
    return f"{value.mean:.{digits}f}{spread}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _piped(text: str) -> str:
    return text.replace("|", "\\|")
