"""What the build of the site adds to the pages: figures for the gallery, tables of names, and a check that none lacks.

Loaded by `mkdocs.yml`; `make docs` runs it.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import runpy
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))

import public_names  # noqa: E402 - MkDocs loads this file by its path

# A line "<!-- names relu_diag.functional -->" becomes a table of what that package exports.
NAMES = re.compile(r"^<!-- names ([\w.]+) -->$", re.MULTILINE)
# A name that is shown by itself, with a heading of its own.
ALONE = "    options: {show_root_heading: true, show_root_toc_entry: true}"


def on_pre_build(config: MkDocsConfig) -> None:
    """Draw the gallery, before pages and pictures are collected."""
    gallery = runpy.run_path(str(DOCS / "gallery_figures.py"))
    gallery["draw_all"](DOCS / "gallery")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put tables of names where a page asks for them, and what mkdocstrings leaves out of a module below it."""
    markdown = NAMES.sub(lambda match: table_of(match[1]), markdown)
    return public_names.SHOWN.sub(lambda match: "\n\n".join([match[0], *_left_out(match[1])]), markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a site where a public name cannot be linked to.

    Raises:
        PluginError: If there is such a name.
    """
    pages = [page.read_text() for page in Path(config.site_dir, "api").glob("*.html")]
    anchors = {anchor for page in pages for anchor in re.findall(r'id="(relu_diag[\w.]*)"', page)}
    absent = [address for address in public_names.shown() if _anchor(address) not in anchors]
    if absent:
        raise PluginError(f"public names that no page of the API shows: {', '.join(absent)}")


def table_of(module: str) -> str:
    """A table of what a package exports: name, linked to where it is explained, and its first line."""
    package = importlib.import_module(module)
    rows = []
    for name in public_names.public_names(package):
        thing = getattr(package, name)
        rows.append(f"| [`{name}`][{_anchor(public_names.home_of(thing))}] | {_first_line(thing)} |")
    return "\n".join(["| name | what it is |", "|---|---|", *rows])


def _left_out(address: str) -> list[str]:
    """Constants and types, which have no docstring, and names that a module of the same name hides."""
    module = importlib.import_module(address)
    found = []
    for name in public_names.public_names(module):
        thing = getattr(module, name)
        anchor = _anchor(f"{address}.{name}")
        if anchor != f"{address}.{name}" or not (inspect.isclass(thing) or inspect.isfunction(thing)):
            found.append(f"::: {anchor}\n{ALONE}")
    return found


def _anchor(address: str) -> str:
    """Where a name is shown: as the address says, or where it is defined if a module of the same name hides it."""
    package, _, name = address.rpartition(".")
    is_package = hasattr(importlib.import_module(package), "__path__")
    if is_package and importlib.util.find_spec(address):
        return f"{public_names.thing_of(address).__module__}.{name}"
    return address


def _first_line(thing: Any) -> str:
    """The first line of a docstring, as a cell of a table."""
    return (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ")
