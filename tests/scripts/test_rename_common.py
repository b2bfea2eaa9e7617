# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

import common
from scripts.rename_common import rename_common, rename_in_python, rename_in_text, unique_name

PARTS = ["checks", "data", "io"]
FILES = [(PurePosixPath("common/__init__.py"), b""), (PurePosixPath("common/data/pairs.py"), b"x = 1\n")]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from common.checks import InputError\n", "from new.checks import InputError\n"),
        ("from common import checks\n", "from new import checks\n"),
        ("import os, common as c\n", "import os, new as c\n"),
        ("import common\n", "import new as common\n"),
        ("import common.data.pairs as p, os\n", "import new.data.pairs as p, os\n"),
        ("import common.data\n", "import new.data, new as common\n"),
        ("é = 1; from common.io import (\n    read,\n)\n", "é = 1; from new.io import (\n    read,\n)\n"),
        ("def f():\n    from common.io import read\n", "def f():\n    from new.io import read\n"),
        ("from .common import x\nfrom commonly import y\n", None),
        ("common = {1}\nf(common=common.data, x='common')\n", None),
        ('made = {"common": common.__version__}\n', None),
        ('"""Labels in common. No common data, not uncommon.data or my.common.data."""\n', None),
        (
            '"""é :func:`common.data.read`, ``common/io/a.css``."""\n',
            '"""é :func:`new.data.read`, ``new/io/a.css``."""\n',
        ),
        ("'''a\nb common.io\n  common.data'''\n", "'''a\nb new.io\n  new.data'''\n"),
        ("x = 1  # as common.checks\r\n", "x = 1  # as new.checks\r\n"),
        (
            'f"common.data.{name} {common.__version__}, {common.io}"\n',
            'f"new.data.{name} {common.__version__}, {common.io}"\n',
        ),
    ],
)
def test_imports_and_texts_of_a_module_are_renamed_and_nothing_else(source: str, expected: str | None) -> None:
    assert rename_in_python(source, "new", PARTS) == (source if expected is None else expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"_target_": "common.data.PairDataset"}', '{"_target_": "new.data.PairDataset"}'),
        ('["$import common", "$common.__version__"]', '["$import new", "$new.__version__"]'),
        ('"$import common.io as c"', '"$import new.io as c"'),
        ('"$from common import io"', '"$from new import io"'),
        ('"$[common.io.read(@x), f(common.checks)]"', '"$[new.io.read(@x), f(new.checks)]"'),
        ("python -m common.data.shapes3d", "python -m new.data.shapes3d"),
        ("[made](../common/data/shapes3d.py)", "[made](../new/data/shapes3d.py)"),
        ('{"common_version": "0.2.0", "common": 1}', None),
        ("a common data set; what they have in common. Data", None),
        ("https://example.org/common/data and my.common.data", None),
    ],
)
def test_configs_and_pages_name_the_new_package(text: str, expected: str | None) -> None:
    assert rename_in_text(text, "new", PARTS) == (text if expected is None else expected)


def test_equal_files_have_one_name_and_different_ones_two() -> None:
    name = unique_name(FILES, "1.2.3")
    assert name.startswith("registration_common_1_2_3_") and name.isidentifier()
    assert unique_name(FILES[::-1], "1.2.3") == name
    others = [
        unique_name(FILES, "1.2.4"),
        unique_name([*FILES[:1], (FILES[1][0], b"x = 2\n")], "1.2.3"),
        unique_name([*FILES[:1], (PurePosixPath("common/io/pairs.py"), b"x = 1\n")], "1.2.3"),
        unique_name(FILES[1:], "1.2.3"),
    ]
    assert len({name, *others}) == 5


def test_weights_data_and_licence_are_taken_as_they_are() -> None:
    content = "common.data \udcff".encode("utf-8", "surrogateescape")
    for path in ("models/model.pt", "LICENSE", "docs/field.png", "common/data/list.json"):
        *_, (_, kept) = rename_common([*FILES, (PurePosixPath(path), content)], "1.2.3")
        assert kept == content


class AsRenamed(ast.NodeTransformer):
    """The tree that a module should have, written without regard to its text."""

    def visit_Import(self, node: ast.Import) -> ast.Import:
        for alias in node.names:
            if alias.name == "common" and alias.asname is None:
                alias.asname = "common"
            alias.name = new_name(alias.name)
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom:
        node.module = new_name(node.module or "")
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        if isinstance(node.value, str):
            node.value = node.value.replace("new.", "common.").replace("new/", "common/")
        return node


def new_name(module: str) -> str:
    return ".".join(["new" if module.split(".")[0] == "common" else module.split(".")[0], *module.split(".")[1:]])


def modules() -> Iterator[Path]:
    yield from sorted(Path(common.__file__).parent.rglob("*.py"))


def test_the_package_of_a_release_differs_in_imports_and_texts_alone() -> None:
    parts = [path.stem for path in Path(common.__file__).parent.iterdir() if path.stem[0] != "_"]
    for path in modules():
        source = path.read_text(encoding="utf-8")
        renamed = rename_in_python(source, "new", parts)
        trees = AsRenamed().visit(ast.parse(source)), AsRenamed().visit(ast.parse(renamed))
        assert ast.dump(trees[0]) == ast.dump(trees[1]), path
        left = [node for node in ast.walk(ast.parse(renamed)) if isinstance(node, ast.Constant)]
        assert not [node.value for node in left if str(node.value).startswith("common.")], path


@pytest.mark.parametrize(
    "bundle", sorted((Path(__file__).parents[2] / "bundles").iterdir()), ids=lambda path: path.name
)
def test_no_config_of_a_release_names_common(bundle: Path) -> None:
    parts = [path.stem for path in (bundle / "common").iterdir() if path.stem[0] != "_"]
    for path in (bundle / "configs").glob("*.json"):
        text = rename_in_text(path.read_text(encoding="utf-8"), "registration_new", parts)
        assert "common." not in text
        assert json.loads(text.replace("registration_new.", "common.")) == json.loads(path.read_text(encoding="utf-8"))
