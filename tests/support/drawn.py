"""Figures that were really drawn."""

from pathlib import Path

from matplotlib.figure import Figure


def rendered(figure: Figure, tmp_path: Path) -> Figure:
    figure.savefig(tmp_path / "figure.png", dpi=40)
    return figure
