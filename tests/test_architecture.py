"""The house rules of `functional`: rooms entered by their doors, public names exported and shown, thresholds apart."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import relu_diag
from relu_diag import functional

PACKAGE = Path(relu_diag.__file__).parent
KERNEL = PACKAGE / "functional"
ROOMS = sorted(path.parent.name for path in KERNEL.glob("*/__init__.py"))
# Numbers in capitals that decide nothing by their size: grids, orders of a formula, points of a rule.
NO_THRESHOLDS: dict[str, set[str]] = {
    "cells/_solver.py": {"_FALL", "_GOOD", "_RISE"},
    "integral/_affine_witness.py": {"_BETWEEN", "_LENGTHS", "_LONGEST", "_PLACES", "_SHORTER", "_TRIED"},
    "integral/affine.py": {"_EXACT", "_PROBES"},
    "local/_one_sided.py": {"RULES"},
    "local/neurons.py": {"_NAMED"},
    "verdict/_witness.py": {"_PARTS"},
    "verdict/verdict.py": {"_NAMED"},
    "widening/proposal.py": {"_TURN"},
}

every_room = pytest.mark.parametrize("room", ROOMS)


def files(room: str) -> list[Path]:
    """The modules of a room that are not its door."""
    return sorted(path for path in (KERNEL / room).glob("*.py") if path.name != "__init__.py")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[tuple[str, str, str]]:
    """Module, name ("" for `import module`) and place of everything that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        place = f"{path.relative_to(PACKAGE.parent)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            yield from ((alias.name, "", place) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name, place) for alias in node.names)


def public_names(path: Path) -> list[str]:
    """What a file defines without an underscore."""
    found = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found.extend(target.id for target in targets if isinstance(target, ast.Name))
    return [name for name in found if not name.startswith("_")]


def numbers_in_capitals(path: Path) -> list[str]:
    """Module constants with a number in them, unless they are multiples of a tolerance."""
    found = []
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        inside = list(ast.walk(node.value))
        named = {part.id for part in inside if isinstance(part, ast.Name)}
        numeric = any(isinstance(part, ast.Constant) and type(part.value) in {int, float} for part in inside)
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
        if numeric and not named & {"FLOAT64", "FLOAT32", "BUDGETS", "tolerances"}:
            found.extend(name for name in names if name.isupper())
    return found


def small_numbers(path: Path) -> list[str]:
    """Literals that can only be thresholds: below 0.01, or a million and more, as floats."""
    literals = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
    floats = [node for node in literals if isinstance(node.value, float)]
    return [f"{node.value!r} in line {node.lineno}" for node in floats if 0 < node.value < 0.01 or node.value >= 1e6]


@every_room
def test_a_room_is_entered_by_its_door(room: str) -> None:
    door = f"relu_diag.functional.{room}"
    exported = importlib.import_module(door).__all__
    outside = [path for path in PACKAGE.rglob("*.py") if KERNEL / room not in path.parents]
    outside += [path for folder in ("benchmarks", "examples") for path in (PACKAGE.parent / folder).glob("*.py")]
    for path in outside:
        past = [
            place
            for module, name, place in imports(path)
            if module.startswith(f"{door}.") or (module == door and name not in exported)
        ]
        assert not past, f"import from {door} what it exports"


@every_room
def test_every_public_name_of_a_room_is_exported(room: str) -> None:
    exported = importlib.import_module(f"relu_diag.functional.{room}").__all__
    public = [name for path in files(room) if not path.name.startswith("_") for name in public_names(path)]
    assert set(exported) - set(public) == set()
    assert set(public) - set(exported) == set(), "a name for this room alone gets an underscore or moves to a `_file`"


@every_room
def test_every_public_name_of_a_room_shows_an_example(room: str) -> None:
    door = importlib.import_module(f"relu_diag.functional.{room}")
    shown = {name: getattr(door, name) for name in door.__all__}
    with_code = {name: value for name, value in shown.items() if inspect.isfunction(value) or inspect.isclass(value)}
    assert not [name for name, value in with_code.items() if ">>>" not in (value.__doc__ or "")]


@every_room
def test_no_private_name_leaves_its_file(room: str) -> None:
    for path in [KERNEL / room / "__init__.py", *files(room)]:
        private = [(place, name) for module, name, place in imports(path) if "relu_diag" in module and name[:1] == "_"]
        assert not private


@every_room
def test_thresholds_are_in_one_file(room: str) -> None:
    found = {}
    for path in files(room):
        allowed = NO_THRESHOLDS.get(f"{room}/{path.name}", set())
        found[path.name] = sorted(set(numbers_in_capitals(path)) - allowed) + small_numbers(path)
    assert [name for name in found if found[name]] == [], f"thresholds and budgets have files of their own: {found}"


def test_the_flat_kernel_offers_only_what_a_room_or_the_top_floor_exports() -> None:
    rooms = [importlib.import_module(f"relu_diag.functional.{room}") for room in ROOMS]
    top = [importlib.import_module(module_name(path)) for path in files("") if not path.name.startswith("_")]
    for name in functional.__all__:
        value = getattr(functional, name)
        assert any(name in room.__all__ for room in rooms) or any(getattr(file, name, None) is value for file in top)


def test_no_test_file_imports_another() -> None:
    tests = PACKAGE.parent / "tests"
    taken = [(place, module) for path in tests.rglob("*.py") for module, _, place in imports(path)]
    assert not [place for place, module in taken if module.rpartition(".")[2].startswith("test_")]
