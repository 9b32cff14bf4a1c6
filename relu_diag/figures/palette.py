"""All colours of the figures. Readers with any common colour vision tell those of one list apart."""

from __future__ import annotations

from typing import NamedTuple

BLACK = "#000000"
GREY = "#8F8F8F"
DARK = "#4A4A4A"
SHADE = "#DDDDDD"
# Groups of neurons, outputs, and curves that are not about a verdict. Black and grey belong to the same list.
PALETTE = ("#9D1802", "#082691", "#0C8E4D", "#72275E", "#63BEF7", "#EEC91A")


class VerdictStyle(NamedTuple):
    """How plateaus of one kind look in every figure and table.

    Attributes:
        color: Colour of lines and words.
        tint: Colour of areas, on which black text is readable.
        hatch: Matplotlib's hatch of areas, different for every kind: for prints without colours.
    """

    color: str
    tint: str
    hatch: str


VERDICT_STYLES = {
    "undecided": VerdictStyle("#8F8F8F", "#E6E6E6", ".."),
    "not stationary": VerdictStyle("#FDBE0B", "#FFF1C7", ""),
    "saddle": VerdictStyle("#CC6217", "#F4DBC9", "///"),
    "type-2 candidate": VerdictStyle("#440941", "#D3C6D2", "xxx"),
    "local minimum": VerdictStyle("#0B92CC", "#C6E6F4", "---"),
    "global minimum": VerdictStyle("#14522D", "#C8D7CE", "+++"),
}


def verdict_style(kind: str) -> VerdictStyle:
    """The style of a kind of verdict.

    Args:
        kind: A `Verdict.kind`; any other word looks like "undecided".

    Returns:
        Colours and hatch.

    Example:
        >>> verdict_style("saddle").hatch
        '///'
    """
    return VERDICT_STYLES.get(kind, VERDICT_STYLES["undecided"])
