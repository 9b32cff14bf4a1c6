"""What is public, and what the API's pages show: a line ``::: MODULE`` of `docs/api/*.md` shows a module."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import relu_diag

PAGES = Path(__file__).parent / "api"
SHOWN = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)


def public_modules() -> list[ModuleType]:
    """The modules whose names are public: those with ``__all__``, and those on the top floors without one."""
    found = [relu_diag]
    for module in pkgutil.walk_packages(relu_diag.__path__, "relu_diag."):
        parts = module.name.split(".")
        if any(part.startswith("_") for part in parts):
            continue
        loaded = importlib.import_module(module.name)
        top = len(parts) == 2 or (len(parts) == 3 and parts[1] == "functional")
        if top or hasattr(loaded, "__all__"):
            found.append(loaded)
    return found


def public_names(module: ModuleType) -> list[str]:
    """What a module lists, or else defines without an underscore; modules among them are no names of their own."""
    defined = [name for name, thing in vars(module).items() if _is_own(name, thing, module)]
    names = getattr(module, "__all__", defined)
    return [name for name in names if not inspect.ismodule(getattr(module, name))]


def shown() -> list[str]:
    """Every name that the pages show, as it is addressed there: ``relu_diag.losses.IntervalL2Loss``."""
    found = []
    for page in sorted(PAGES.glob("*.md")):
        for module in SHOWN.findall(page.read_text()):
            found.extend(f"{module}.{name}" for name in public_names(importlib.import_module(module)))
    return found


def thing_of(address: str) -> object:
    """What an address of a page stands for."""
    module, _, name = address.rpartition(".")
    return getattr(importlib.import_module(module), name)


def missing() -> list[str]:
    """Public names that no page shows under any address."""
    things = [thing_of(address) for address in shown()]
    return [
        f"{module.__name__}.{name}"
        for module in public_modules()
        for name in public_names(module)
        if not any(getattr(module, name) is thing for thing in things)
    ]


def home_of(thing: object) -> str:
    """The address under which a page shows a thing; empty if none does."""
    return next((address for address in shown() if thing_of(address) is thing), "")


def _is_own(name: str, thing: object, module: ModuleType) -> bool:
    """Whether a module defines what has this name in it, and for others."""
    defines = inspect.isclass(thing) or inspect.isfunction(thing)
    return not name.startswith("_") and defines and getattr(thing, "__module__", "") == module.__name__
