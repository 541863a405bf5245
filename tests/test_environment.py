"""pyproject.toml, environment.yml and the Makefile ask for the same packages."""

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import licences
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Import names that differ from the package's name.
PACKAGE_OF = {
    "PIL": "pillow", "bs4": "beautifulsoup4", "skimage": "scikit-image",
    "sklearn": "scikit-learn", "yaml": "pyyaml",
}  # fmt: skip


def bounds(requirements):
    parsed = map(Requirement, requirements)
    return {canonicalize_name(item.name): item.specifier for item in parsed}


def conda_list():
    return yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]


def test_conda_and_pip_ask_for_the_same_packages_within_the_same_bounds():
    (section,) = [entry["pip"] for entry in conda_list() if isinstance(entry, dict)]
    conda = bounds(line for line in section if not line.startswith("-e"))
    assert conda == bounds(PROJECT["dependencies"] + EXTRAS["test"])
    assert "-e ." in section


def test_conda_and_pip_ask_for_the_same_python():
    python = [entry for entry in conda_list() if str(entry).startswith("python")]
    assert python == [f"python{PROJECT['requires-python']}"]


def test_makefile_installs_the_torch_of_pyproject():
    makefile = (ROOT / "Makefile").read_text()
    torch = re.search(r"^TORCH := (.*)$", makefile, flags=re.MULTILINE).group(1)
    assert bounds([torch])["torch"] == bounds(PROJECT["dependencies"])["torch"]


def test_every_dependency_has_a_lower_and_an_upper_bound():
    for name, specifier in bounds(sum(EXTRAS.values(), PROJECT["dependencies"])).items():
        assert {clause.operator for clause in specifier} == {">=", "<"}, name


def test_installed_versions_are_within_the_bounds():
    for name, specifier in bounds(PROJECT["dependencies"]).items():
        assert specifier.contains(metadata.version(name)), name


def test_torchvision_is_not_needed():
    assert "torchvision" not in bounds(sum(EXTRAS.values(), PROJECT["dependencies"]))
    for path in (ROOT / "medlib").rglob("*.py"):
        assert "torchvision" not in imported(path), path


#: Used where somebody has installed it: it pins a torch of its own, so that no extra can name it beside ours.
UNDECLARED = {"vllm"}


def test_every_import_of_medlib_is_a_declared_dependency():
    declared = set(bounds(sum(EXTRAS.values(), PROJECT["dependencies"]))) | UNDECLARED
    for path in (ROOT / "medlib").rglob("*.py"):
        needed = imported(path) - set(sys.stdlib_module_names) - {"medlib"}
        packages = {canonicalize_name(PACKAGE_OF.get(name, name)) for name in needed}
        assert packages <= declared, f"{path.relative_to(ROOT)}: {sorted(packages - declared)}"


@pytest.mark.parametrize(
    "told, fits",
    [
        ("License-Expression: BSD-3-Clause AND MIT", True),
        ("Classifier: License :: OSI Approved :: Apache Software License", True),
        ("License-Expression: GPL-3.0-or-later", False),
        ("Classifier: License :: OSI Approved :: GNU General Public License v3 (GPLv3)", False),
        ("License: LGPLv3", False),
        ("License-Expression: MIT AND AGPL-3.0-only", False),
        ("Summary: says nothing", False),
    ],
)
def test_a_licence_that_does_not_fit_apache_is_named(tmp_path, told, fits):
    folder = tmp_path / "guest-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: guest\nVersion: 1.0\n{told}\n")
    listed = licences.problems({"guest": metadata.Distribution.at(folder)})
    assert [line.split(":")[0] for line in listed] == ([] if fits else ["guest 1.0"])


def test_licences_are_read_of_what_a_dependency_needs_in_turn():
    assert {"papermill", "nbclient", "traitlets", "fonttools"} <= set(licences.needed(["papermill", "matplotlib"]))


def imported(path):
    """Top-level names of all absolute imports in a file, wherever they stand."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names
