"""Imports point one way, as ARCHITECTURE.md draws them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "nlprobe"

ALLOWED = {
    "__main__": {"cli"},
    "errors": set(),
    "suggestions": set(),
    "files": {"errors"},
    "interruption": set(),
    "processes": {"errors", "interruption"},
    "blocks": {"suggestions", "errors"},
    "stats": {"errors"},
    "models": {"suggestions", "blocks", "errors", "files"},
    "checkpoints": {"suggestions", "models", "blocks", "errors", "files"},
    "data": {"suggestions", "checkpoints", "models", "blocks", "errors", "files"},
    "libraries": {"suggestions", "data", "errors"},
    "training": {
        "processes",
        "interruption",
        "suggestions",
        "checkpoints",
        "models",
        "blocks",
        "data",
        "errors",
        "files",
    },
    "probe": {"suggestions", "stats", "blocks", "errors"},
    "simplification": {"models", "probe", "stats", "blocks", "suggestions", "errors"},
    "intervention": {"probe", "stats", "blocks", "suggestions", "errors"},
    "tables": {"stats", "errors"},
    "plots": {"stats", "probe", "tables", "errors", "files"},
    "measuring": {"processes", "probe", "stats", "errors", "files"},
    "activations": {"measuring", "probe", "stats", "models", "blocks", "suggestions", "errors"},
    "emergence": {"measuring", "stats", "errors", "files"},
    "results": {"measuring", "stats", "tables", "plots", "files", "errors"},
    "cli": {"suggestions", "commands", "errors"},
}
"""What each part may import of nlprobe; `commands` joins them all and is imported by `cli` only."""


def imported_parts(path: Path) -> set[str]:
    """The parts of nlprobe that a module imports, wherever in its text, but for type checking."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test)
        for node in ast.walk(branch)
    }
    names = []
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [
                f"{node.module}.{alias.name}" if node.module == "nlprobe" else node.module for alias in node.names
            ]
    return {name.split(".")[1] for name in names if name.startswith("nlprobe.")}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(path)
    if part in ("commands", "__init__"):
        return
    assert imported_parts(path) - {part} <= ALLOWED[part]


def test_every_part_has_its_rule() -> None:
    parts = {part_of(path) for path in PACKAGE.rglob("*.py")} - {"commands", "__init__"}
    assert parts == set(ALLOWED)


def test_importing_the_package_does_not_import_torch() -> None:
    program = "import sys, nlprobe, nlprobe.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
