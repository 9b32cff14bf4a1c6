"""Summaries of results: a table as text, and the same in HTML for notebooks, where results show themselves."""

from __future__ import annotations

from html import escape


def counted(number: int, noun: str) -> str:
    """A number with its noun: 1 neuron, 12 neurons.

    Args:
        number: How many.
        noun: What, in the singular.

    Returns:
        Both, with a comma for thousands.

    Example:
        >>> counted(1, "neuron"), counted(1200, "kink")
        ('1 neuron', '1,200 kinks')
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def html_table(summary: str) -> str:
    """A summary, one fact a line, as an HTML table. Names without a text are left out.

    Args:
        summary: Lines of a name and a text, two spaces or more between them.

    Returns:
        A table without styles of its own.

    Example:
        >>> html_table("verdict  saddle")
        '<table class="relu-diag"><tr><th scope="row">verdict</th><td>saddle</td></tr></table>'
    """
    rows = [line.partition("  ")[::2] for line in summary.splitlines()]
    told = [(escape(name), escape(text.strip())) for name, text in rows if text.strip()]
    cells = [f'<tr><th scope="row">{name}</th><td>{text}</td></tr>' for name, text in told]
    return f'<table class="relu-diag">{"".join(cells)}</table>'


def summary_of(rows: list[tuple[str, str]]) -> str:
    """Facts as a summary, one a line, the texts below each other.

    Args:
        rows: Name and text of each.

    Returns:
        Text.

    Example:
        >>> print(summary_of([("loss", "0.5"), ("rests on", "")]))
        loss      0.5
        rests on
    """
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:<{width}}  {text}".rstrip() for name, text in rows)
