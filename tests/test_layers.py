"""Imports go one way: a part may import only the parts listed for it here (docs/architecture.md draws the picture)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "mixshow"

_MODELS = {"core", "models"}
_EDLORA = {*_MODELS, "lycoris"}
_SAMPLING = {*_EDLORA, "edlora"}
ALLOWED = {
    "core": set(),
    "config": {"core"},
    "models": {"core"},
    "lycoris": _MODELS,
    "edlora": _EDLORA,
    "sampling": _SAMPLING,
    "fusion": {*_SAMPLING, "sampling"},
    "formats": _SAMPLING,
    "evaluation": {*_MODELS, "lycoris"},
    "puppets": {*_MODELS, "sampling"},  # sampling for the pose drawer only
    "surgery": {*_MODELS, "lycoris"},
}
ON_TOP = {"recipes", "cli"}


def parts_imported_by(file: Path) -> set[str]:
    """Top-level parts of mixshow that a file imports, relative imports resolved."""
    own = file.relative_to(PACKAGE.parent).with_suffix("").parts
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module.split(".") if node.module else []
            names = [[*own[: len(own) - node.level], *module]] if node.level else [module]
        else:
            continue
        found |= {name[1] for name in names if len(name) > 1 and name[0] == "mixshow"}
    return found


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_part_imports_only_what_lies_below_it(part: str) -> None:
    for file in (PACKAGE / part).rglob("*.py"):
        forbidden = parts_imported_by(file) - ALLOWED[part] - {part}
        assert not forbidden, f"{file.relative_to(PACKAGE)} imports {sorted(forbidden)}"


def test_every_part_is_listed() -> None:
    parts = {folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").exists()}
    assert parts <= set(ALLOWED) | ON_TOP
