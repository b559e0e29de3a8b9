# SPDX-License-Identifier: GPL-2.0-or-later
"""What a reviewer would look for in every file, cheaply; the layers themselves are import-linter's (``make check``)."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("base", "abi", "machine", "hypervisor", "guest_driver", "testbed", "fuzz", "oracle", "pviommu")
SPDX = "SPDX-License-Identifier: GPL-2.0-or-later"
LIMIT = 420
LONGER: dict[str, str] = {
    "hypervisor/pagetable/radix.py": "one algorithm, whose steps are read together",
    "guest_driver/xen_iommu.py": "one driver, in the order of the kernel's file",
    "oracle/smmu_deviations.py": "a list: every known deviation of a model, one after the other",
    "guest_driver/nic.py": "one driver from probe to remove, whose rings and slots are one state",
}
"""Files of the product that may exceed the limit, and why."""
VAGUE = {"utils", "util", "common", "helpers", "helper", "misc", "manager", "stuff"}


def tracked() -> list[Path]:
    """The files of this tree: what git knows and what is about to be added."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:  # an unpacked archive
        files = [p for p in ROOT.rglob("*") if p.is_file() and not any(part.startswith(".") for part in p.parts)]
    else:
        files = [ROOT / name for name in listed.stdout.splitlines()]
    return [path for path in files if path.is_file()]


FILES = tracked()
PYTHON = [path for path in FILES if path.suffix == ".py"]
PRODUCT = [path for path in PYTHON if path.relative_to(ROOT).parts[0] in PACKAGES]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_there_is_something_to_look_at() -> None:
    assert len(PRODUCT) > 100


def test_every_source_file_says_under_which_licence_it_is() -> None:
    kinds = {".py", ".md", ".toml", ".c", ".h", ".sh", ".yml", ".yaml"}
    silent = [
        name(path)
        for path in FILES
        if path.suffix in kinds
        and not name(path).startswith("tests/golden/")  # given data: REUSE.toml speaks for it
        and path.stat().st_size
        and SPDX not in "\n".join(text(path).splitlines()[:3])
    ]
    assert not silent


def test_every_module_opens_with_why_it_exists() -> None:
    trees = {name(path): ast.parse(text(path)) for path in PRODUCT}
    assert not [path for path, tree in trees.items() if tree.body and not ast.get_docstring(tree)]


def test_no_file_of_the_product_is_longer_than_it_has_a_reason_for() -> None:
    longer = {name(path): len(text(path).splitlines()) for path in PRODUCT}
    unexcused = {path: lines for path, lines in longer.items() if lines > LIMIT and path not in LONGER}
    assert not unexcused
    stale = [path for path in LONGER if longer.get(path, 0) < 400]
    assert not stale, "no longer long, or gone: take the excuse out"


def test_nothing_is_left_for_later() -> None:
    later = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    left = [
        f"{name(path)}:{number}"
        for path in PRODUCT
        for number, line in enumerate(text(path).splitlines(), 1)
        if later.search(line) and not line.lstrip().startswith(("#:", "Deviation("))
    ]
    assert not left


def versions_named(tree: ast.AST) -> list[int]:
    """Lines on which something is compared with the name of an ABI version, or a ``match`` case names one."""
    version = re.compile(r"^(v[1-9]|P0|P-1|H0|N|E[1-3]|A-old|A-new)$")
    lines = []
    for node in ast.walk(tree):
        parts: list[ast.AST] = []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            parts = [node.value]
        for part in parts:
            for inner in ast.walk(part):
                if isinstance(inner, ast.Constant) and isinstance(inner.value, str) and version.match(inner.value):
                    lines.append(inner.lineno)
                if isinstance(inner, ast.Attribute) and inner.attr == "name" and _is_abi(inner.value):
                    lines.append(inner.lineno)
    return lines


def _is_abi(node: ast.AST) -> bool:
    return (isinstance(node, ast.Name) and node.id == "abi") or (isinstance(node, ast.Attribute) and node.attr == "abi")


def test_nothing_outside_abi_asks_for_a_versions_name() -> None:
    asking = [
        f"{name(path)}:{line}"
        for path in PRODUCT
        if path.relative_to(ROOT).parts[0] != "abi"
        for line in versions_named(ast.parse(text(path)))
    ]
    assert not asking


@pytest.mark.parametrize("source", ["if abi.name == 'v3': pass", "x = name in ('v4', 'v7')", "xen.abi.name != other"])
def test_the_search_for_version_tests_finds_them(source: str) -> None:
    assert versions_named(ast.parse(source))


def test_no_file_or_package_has_a_name_that_says_nothing() -> None:
    vague = [name(path) for path in PYTHON if VAGUE & set(path.with_suffix("").relative_to(ROOT).parts)]
    assert not vague


def test_everything_in_all_exists_and_is_there_once() -> None:
    wrong = []
    for path in PRODUCT:
        tree = ast.parse(text(path))
        defined = {
            alias.asname or alias.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for alias in n.names
        }
        exported: list[str] = []
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
                defined.add(node.name)
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            for target in targets:
                if isinstance(target, ast.Name):
                    defined.add(target.id)
                    if target.id == "__all__":
                        exported = ast.literal_eval(node.value)
        wrong += [f"{name(path)}: {entry}" for entry in exported if entry not in defined or exported.count(entry) > 1]
    assert not wrong


def imports_of(path: Path) -> set[str]:
    """Top-level packages that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(text(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


MAY_IMPORT = {
    "base": set(),
    "abi": {"base"},
    "machine": {"base"},
    "hypervisor": {"base", "abi", "machine"},
    "guest_driver": {"base", "abi"},
}
"""Of our own packages."""


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_one_way(package: str) -> None:
    allowed = MAY_IMPORT[package] | {package}
    wrong = {
        name(path): sorted(bad)
        for path in PRODUCT
        if path.relative_to(ROOT).parts[0] == package and (bad := imports_of(path) & set(PACKAGES) - allowed)
    }
    assert not wrong


def test_base_is_the_standard_library_alone() -> None:
    import sys

    known = sys.stdlib_module_names | {"base"}
    outside = {name(path): imports_of(path) - known for path in PRODUCT if path.parts[-2] == "base"}
    assert not {path: found for path, found in outside.items() if found}


@pytest.mark.parametrize("vendor", ["vtd", "smmuv3"])
def test_the_two_halves_of_a_backend_share_no_declaration(vendor: str) -> None:
    for half, other in (
        (f"hypervisor/{vendor}/", f"machine.iommu.{vendor}"),
        (f"machine/iommu/{vendor}/", "hypervisor"),
    ):
        for path in PRODUCT:
            if name(path).startswith(half):
                assert f"from {other}" not in text(path), name(path)
                assert f"import {other}" not in text(path), name(path)


def test_file_names_of_tests_are_unique() -> None:
    """Test folders are no packages, so two files of one name would hide each other."""
    seen: dict[str, str] = {}
    twice = []
    for path in PYTHON:
        if path.relative_to(ROOT).parts[0] == "tests" and path.name != "conftest.py":
            twice += [(name(path), seen[path.name])] if path.name in seen else []
            seen[path.name] = name(path)
    assert not twice
