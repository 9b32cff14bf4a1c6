"""The make-up of every figure: panels, labels, marks, colours and legends, compared with what was looked at.

After a change on purpose look at the figures again; ``python tests/figures/test_structure.py`` writes the file.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from support.figures import FIGURES

from relu_diag import figures

STRUCTURES = Path(__file__).parent / "structures.json"


def line_style(line: Line2D) -> str:
    return f"{to_hex(line.get_color())} {line.get_linestyle()} {line.get_marker()}"


def panel(ax: Axes) -> dict[str, Any]:
    """What a panel is made of; words that hold numbers are counted, not compared."""
    found: dict[str, Any] = {
        "axes": f"{ax.get_xlabel()} {ax.get_xscale()}, {ax.get_ylabel()} {ax.get_yscale()}",
        "lines": dict(sorted(Counter(line_style(line) for line in ax.lines).items())),
        "patches": dict(sorted(Counter(to_hex(patch.get_facecolor()) for patch in ax.patches).items())),
        "collections": len(ax.collections),
        "words": len(ax.texts),
    }
    return {name: value for name, value in found.items() if value}


def structure(figure: Figure) -> dict[str, Any]:
    legends = [[text.get_text() for text in legend.get_texts()] for legend in figure.legends]
    inches = [round(float(side), 2) for side in figure.get_size_inches()]
    return {"inches": inches, "legends": legends, "panels": [panel(ax) for ax in figure.axes]}


@pytest.mark.parametrize("name", FIGURES)
def test_it_is_made_of_what_was_looked_at(name: str) -> None:
    assert structure(FIGURES[name](None)) == json.loads(STRUCTURES.read_text())[name]


def test_every_public_figure_is_among_them() -> None:
    drawn = {name for name in figures.__all__ if name.endswith("_figure")}
    used = {name for draw in FIGURES.values() for name in draw.__code__.co_names}
    assert drawn <= used


if __name__ == "__main__":
    lines = [f"{json.dumps(name)}: {json.dumps(structure(draw(None)))}" for name, draw in FIGURES.items()]
    STRUCTURES.write_text("{\n" + ",\n".join(lines) + "\n}\n")
