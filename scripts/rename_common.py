# SPDX-License-Identifier: Apache-2.0
"""A name for ``common`` inside a release that no other package in the same process has.

Python keeps one package per name and process: of two bundles that both bring a ``common``, or beside a ``common`` of
the user's own, the first one imported would serve all. A release therefore calls the package, for example,
``registration_common_0_2_0_1f0a3c5e``: version, and digest of all its files. Bundles with the same files share the name
and with it the modules; those that differ in anything do not, whatever their version says.

Local names stay: ``import common`` becomes ``import registration_common_... as common``, so that no line of code has
to change but imports. A bare "common" in a text is a word, "common.data" and "common/data" are the package.
"""

from __future__ import annotations

import ast
import hashlib
import io
import re
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import accumulate
from pathlib import PurePosixPath

OLD = "common"
PREFIX = f"registration_{OLD}_"
# What a bundle's own files say about the package; other files of the bundle are taken as they are.
TEXTS = {".conf", ".json", ".md", ".txt"}
PROSE = {"STRING", "COMMENT", "FSTRING_MIDDLE"}

File = tuple[PurePosixPath, bytes]


def rename_common(files: Sequence[File], version: str) -> Iterator[File]:
    """Give the package a unique name, in its own modules and in the configs and texts of the bundle.

    Args:
        files: (path inside the bundle, content) of the whole bundle.
        version: of ``common``.

    Yields:
        The files in the same order.
    """
    package = [(path, content) for path, content in files if path.parts[0] == OLD]
    name = unique_name(package, version)
    parts = frozenset(PurePosixPath(path.parts[1]).stem for path, _ in package) - {"__init__"}
    for path, content in files:
        inside = path.parts[0] == OLD
        if inside and path.suffix == ".py":
            content = _renamed(content, name, parts)
        elif not inside and path.suffix in TEXTS:
            content = rename_in_text(content.decode(), name, parts).encode()
        yield PurePosixPath(name, *path.parts[1:]) if inside else path, content


@cache
def _renamed(module: bytes, name: str, parts: frozenset[str]) -> bytes:
    """A module is renamed once for all bundles that are packed together."""
    return rename_in_python(module.decode(), name, parts).encode()


def unique_name(package: Iterable[File], version: str) -> str:
    """``registration_common_<version>_<digest>``; a function of the version, paths and contents alone."""
    digest = hashlib.sha256()
    for path, content in sorted(package):
        digest.update(f"{path}\0{len(content)}\0".encode() + content)
    return f"{PREFIX}{re.sub(r'[^0-9A-Za-z]', '_', version)}_{digest.hexdigest()[:8]}"


def rename_in_text(text: str, name: str, parts: Iterable[str]) -> str:
    """A config or a page: dotted names, paths, ``python -m``, and expressions like ``$import common``.

    Args:
        text: JSON, Markdown or plain.
        name: new name of the package.
        parts: modules and packages at the top of ``common``; what follows the word tells the package from the word.
    """
    reference = _reference([*parts, r"__\w+__"], not_before=r"\w./-")
    imports = rf"(?<=\bimport ){OLD}\b(?!\.)|(?<=\bfrom ){OLD}(?= import\b)"
    return re.sub(imports, name, reference.sub(rf"\g<1>{name}", text))


def rename_in_python(source: str, name: str, parts: Iterable[str]) -> str:
    """A module: its imports, and what its comments, docstrings and other texts say; all else stays, to the letter.

    Args:
        source: code of the module.
        name: new name of the package.
        parts: as for :func:`rename_in_text`.
    """
    # Without the brace, which would be code inside an f-string to Python before 3.12.
    reference = _reference(parts, not_before=r"\w./{-")
    lines = io.StringIO(source).readlines()
    starts = [0, *accumulate(map(len, lines))]
    edits = [(starts[row - 1] + column, old, new) for row, column, old, new in _imports(source, lines, name)]
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if tokenize.tok_name[token.type] in PROSE:
            first, last = (starts[row - 1] + column for row, column in (token.start, token.end))
            edits.extend(
                (first + found.start(), found[0], f"{found[1]}{name}")
                for found in reference.finditer(source[first:last])
            )
    for position, old, new in sorted(edits, reverse=True):
        source = source[:position] + new + source[position + len(old) :]
    return source


def _reference(parts: Iterable[str], not_before: str) -> re.Pattern[str]:
    """``common`` before one of its parts; the group holds a relative path that leads there, as links have it."""
    return re.compile(rf"(?<![{not_before}])((?:\.\.?/)*){OLD}(?=[./](?:{'|'.join(sorted(parts))})\b)")


def _imports(source: str, lines: Sequence[str], name: str) -> Iterator[tuple[int, int, str, str]]:
    """Row (from 1), column, old and new text of what is imported from the package or bound to it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and not node.level and _is_ours(node.module or ""):
            line = lines[node.lineno - 1]
            column = line.index(OLD, _column(line, node.col_offset))
            yield node.lineno, column, OLD, name
        elif isinstance(node, ast.Import):
            for alias in filter(lambda alias: _is_ours(alias.name), node.names):
                column = _column(lines[alias.lineno - 1], alias.col_offset)
                new = name + alias.name[len(OLD) :]
                if alias.name == OLD and not alias.asname:
                    new = f"{name} as {OLD}"
                elif not alias.asname:
                    # `import common.data` binds `common`.
                    new = f"{new}, {name} as {OLD}"
                yield alias.lineno, column, alias.name, new


def _is_ours(module: str) -> bool:
    return module.split(".")[0] == OLD


def _column(line: str, offset: int) -> int:
    """Characters before an offset of ``ast``, which counts bytes."""
    return len(line.encode()[:offset].decode())
