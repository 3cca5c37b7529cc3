"""Which files of the repository a module really imports, read from the source without running it."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("minillm", "tasks", "flows", "benchmarks")


def imported_names(path: Path) -> set[str]:
    """Return the dotted names a file imports when it runs, in functions too; blocks for type checkers do not count."""
    names: set[str] = set()
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        pending += ast.iter_child_nodes(node)
    return names


def module_file(name: str) -> Path | None:
    """Return the file of a module of this repository; None for other names and for packages that hold no code."""
    if name.split(".")[0] not in PACKAGES:
        return None
    path = ROOT / name.replace(".", "/")
    if path.with_suffix(".py").is_file():
        return path.with_suffix(".py")
    package = path / "__init__.py"
    return package if package.is_file() and imported_names(package) else None


def import_closure(path: Path) -> set[Path]:
    """Return the files of this repository that importing and running `path` reads, itself included."""
    seen: set[Path] = set()
    pending = {path}
    while pending:
        current = pending.pop()
        seen.add(current)
        found = {module_file(name) for name in imported_names(current)}
        pending |= {file for file in found if file is not None} - seen
    return seen


def third_party(path: Path) -> set[str]:
    """Return the top-level names of everything else a file imports."""
    return {name.split(".")[0] for name in imported_names(path)} - set(PACKAGES)
