"""The packages of medlib import in one direction, and nothing of medlib imports a notebook."""

import ast

import pytest

from medlib.config import ROOT

#: Each package may import those before it, and itself.
ORDER = (
    "config",
    "stats",
    "data",
    "models",
    "training",
    "systems",
    "feedback",
    "evaluation",
    "audit",
    "reporting",
    "cli",
)
FILES = sorted((ROOT / "medlib").rglob("*.py"))


def imported_packages(file):
    """(line, package of medlib) of every import in a file, those inside functions included."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "medlib":
            names = [node.module.split(".")[1]] if "." in node.module else [alias.name for alias in node.names]
            yield from ((node.lineno, name) for name in names)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_imports_point_one_way(file):
    package = file.relative_to(ROOT / "medlib").parts[0]
    if package not in ORDER:  # medlib/__init__.py, medlib/__main__.py
        return
    upwards = [
        f"line {line}: {package} imports {name}"
        for line, name in imported_packages(file)
        if name in ORDER and ORDER.index(name) > ORDER.index(package)
    ]
    assert not upwards


def test_every_package_has_its_place():
    packages = {folder.name for folder in (ROOT / "medlib").iterdir() if (folder / "__init__.py").is_file()}
    assert packages == set(ORDER)
