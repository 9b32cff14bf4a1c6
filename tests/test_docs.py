"""The pages of docs/: complete, linked, and true in every example; `make docs` builds the site."""

from __future__ import annotations

import ast
import doctest
import importlib.util
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from relu_diag import figures

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))


def module_at(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pages_in_the_menu() -> set[str]:
    """Pages that mkdocs.yml names, without reading its other settings."""
    menu = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1].split("\n\n")[0]
    return set(re.findall(r"([\w/]+\.(?:md|ipynb))$", menu, re.MULTILINE))


def headings(page: Path) -> set[str]:
    """Anchors of a page, as its headings are addressed."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in titles}


def code_cells(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_every_public_name_is_on_a_page_of_the_api() -> None:
    assert module_at(DOCS / "public_names.py").missing() == []


def test_every_public_name_shows_an_example() -> None:
    names = module_at(DOCS / "public_names.py")
    things = {address: names.thing_of(address) for address in names.shown()}
    shown = {address: thing for address, thing in things.items() if inspect.isclass(thing) or inspect.isfunction(thing)}
    assert len(shown) > 300
    assert [address for address, thing in shown.items() if ">>>" not in (thing.__doc__ or "")] == []


def test_every_page_is_in_the_menu_and_every_line_of_the_menu_is_a_page() -> None:
    assert pages_in_the_menu() == {str(path.relative_to(DOCS)) for path in [*PAGES, *NOTEBOOKS]}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r"\]\((?!https?:)([^)\s]+)", text) + re.findall(r'<img src="([^"]+)"', text)
    made_by_the_build = DOCS / "gallery"
    for link in links:
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists() or target.parent == made_by_the_build, link
        assert not heading or heading in headings(target), link


@every_page
def test_names_that_a_page_links_to_are_on_a_page_of_the_api(page: Path) -> None:
    addresses = set(module_at(DOCS / "public_names.py").shown())
    assert set(re.findall(r"\]\[(relu_diag[\w.]*)\]", page.read_text())) <= addresses


def test_every_figure_of_the_gallery_is_drawn() -> None:
    shown = set(re.findall(r"gallery/(\w+)\.png", (DOCS / "gallery.md").read_text()))
    source = ast.parse((DOCS / "gallery_figures.py").read_text())
    named = {
        key.value
        for node in ast.walk(source)
        if isinstance(node, ast.Dict)
        for key in node.keys
        if isinstance(key, ast.Constant)
    }
    assert shown <= named
    called = {node.attr for node in ast.walk(source) if isinstance(node, ast.Attribute)}
    assert {name for name in figures.__all__ if name.endswith("_figure")} <= called


def test_the_readme_is_two_screens() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 90
    assert len(text) < 6_500


@every_page
def test_tests_that_a_page_names_exist(page: Path) -> None:
    for file, name in re.findall(r"(tests/[\w/]+\.py)::(\w+)", page.read_text()):
        functions = [node.name for node in ast.parse((ROOT / file).read_text()).body if hasattr(node, "name")]
        assert name in functions, f"{file}::{name}"


@every_page
def test_examples_of_a_page_are_true(page: Path) -> None:
    failed, _ = doctest.testfile(str(page), module_relative=False)
    assert failed == 0


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("default::DeprecationWarning")
def test_notebook_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, cell in enumerate(code_cells(notebook)):
        exec(compile(cell, f"{notebook.name}, cell {number}", "exec"), names)
