"""Figures that were really drawn, and what is to be read in them."""

from itertools import combinations
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text


def rendered(figure: Figure, tmp_path: Path) -> Figure:
    figure.savefig(tmp_path / "figure.png", dpi=40)
    return figure


def words_of(ax: Axes) -> list[str]:
    """The words inside and above a panel, apart from its title."""
    return [text.get_text() for text in ax.texts]


def overprinted(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of words that cover each other by more than a pixel, or leave the figure."""
    figure.draw_without_rendering()
    shown = {text: text.get_window_extent() for text in words_in_sight(figure)}
    page = figure.bbox.padded(2)
    outside = [
        (text.get_text(), "outside")
        for text, box in shown.items()
        if not (page.contains(*box.min) and page.contains(*box.max))
    ]
    pairs = combinations(shown.items(), 2)
    return outside + [
        (one.get_text(), other.get_text()) for (one, box), (other, its) in pairs if box.padded(-1).overlaps(its)
    ]


def words_in_sight(figure: Figure) -> list[Text]:
    """Every text of a figure that is drawn: of its panels, their axes and the legends."""
    texts = [text for ax in figure.axes for text in _texts(ax)]
    for legend in [*figure.legends, *(ax.get_legend() for ax in figure.axes if ax.get_legend())]:
        texts += [*legend.get_texts(), legend.get_title()]
    return [text for text in texts if text.get_visible() and text.get_text().strip()]


def _texts(ax: Axes) -> list[Text]:
    """Title, words, and the labels of the axes and of those ticks that are in sight."""
    found = [*ax.texts, ax.title, ax._left_title, ax._right_title, ax.xaxis.label, ax.yaxis.label]
    for axis, limits in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
        places = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=False)
        found += [label for place, label in places if min(limits) <= place <= max(limits)]
        found.append(axis.get_offset_text())
    return found
