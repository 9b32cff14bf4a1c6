"""`training` is entered by its door, exports what is public, and reads private names of Lightning in one file."""

import ast
import re
from pathlib import Path

import pytest

import relu_diag
from relu_diag import training

PACKAGE = Path(relu_diag.__file__).parent
ROOM = PACKAGE / "training"
FILES = sorted(path for path in ROOM.glob("*.py") if path.name != "__init__.py")
PRIVATE = re.compile(r"(trainer\.fit_loop|trainer\._\w|_logger_connector|epoch_loop|_on_before_batch_transfer)")


def imported_modules(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    return {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


def test_other_code_imports_from_the_door() -> None:
    outside = [path for path in PACKAGE.rglob("*.py") if path.parent != ROOM]
    outside += [path for folder in ("benchmarks", "examples") for path in (PACKAGE.parent / folder).glob("*.py")]
    past = {
        path.name for path in outside if any(name.startswith("relu_diag.training.") for name in imported_modules(path))
    }
    assert past == set()


def test_every_public_name_is_exported() -> None:
    public = {
        node.name
        for path in FILES
        if not path.name.startswith("_")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }
    assert public - set(training.__all__) == set()
    assert all(hasattr(training, name) for name in training.__all__)


@pytest.mark.parametrize("folder", ["callbacks", "training"])
def test_private_names_of_lightning_are_read_in_one_file(folder: str) -> None:
    readers = [path.name for path in (PACKAGE / folder).glob("*.py") if PRIVATE.search(path.read_text())]
    assert readers == (["lightning_internals.py"] if folder == "training" else [])
