"""The story of a run as lines and tables: in the terminal, beside the progress bar, and for loggers."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from rich import get_console

from relu_diag.capture import of_lightning
from relu_diag.figures import forecast_error, percent, told_forecast
from relu_diag.training.examination import Examination
from relu_diag.training.lightning_internals import write_past_bar
from relu_diag.training.plateaus import Plateau

STORY = ("from step", "to step", "plateau", "loss", "forecast", "ended by")
_COLUMNS = 80
# Items that a line names.
_FEW = 4
# Columns of a line: "step", the number of the step, the verdict.
_STEP = 15
_VERDICT = 17
_NUMERIC = {"from step", "to step"}
_AGAIN = " " * 4


def tell(trainer: Trainer, line: str) -> None:
    """Print a line through the progress bar, so that it stays whole; without a bar, log it.

    Args:
        trainer: The trainer.
        line: The line; a long one goes on, indented, in the next line of the terminal.

    Example:
        >>> tell(Trainer(barebones=True, accelerator="cpu"), "step 9  saddle")  # without a bar, a line of the log
    """
    bar = trainer.progress_bar_callback
    if bar is None or not trainer.is_global_zero:
        rank_zero_info(line)
        return
    # A table is as it is.
    text = line if "\n" in line else "\n".join(wrap(line, _COLUMNS, subsequent_indent=_AGAIN))
    if of_lightning(bar, "RichProgressBar"):
        # RichProgressBar draws on this console.
        get_console().print(text, markup=False, highlight=False, soft_wrap=True)
    elif of_lightning(bar, "TQDMProgressBar"):
        write_past_bar(text)
    else:
        bar.print(text)


def first_few(items: Sequence[str]) -> str:
    """Items in a line; of many, the first ones and how many more there are.

    Args:
        items: The items.

    Returns:
        The line.

    Example:
        >>> first_few(["one", "two", "three", "four", "five", "six"])
        'one; two; three; four; and 2 more'
    """
    more = len(items) - _FEW
    return "; ".join([*items[:_FEW], *([f"and {more} more"] if more > 0 else [])])


def event_line(step: int, verdict: str, words: str) -> str:
    """An event in one line, with a column for the verdict.

    Args:
        step: Its step.
        verdict: The verdict; empty where there is none.
        words: What happened.

    Returns:
        The line.

    Example:
        >>> event_line(2_447, "saddle", "plateau ends: escape")
        'step      2,447  saddle           plateau ends: escape'
    """
    return f"{f'step {step:>10,}':<{_STEP}}  {verdict:<{_VERDICT}}{words}".rstrip()


def tell_event(trainer: Trainer, step: int, verdict: str, words: str) -> None:
    """Print an event.

    Args:
        trainer: The trainer.
        step: Its step.
        verdict: The verdict; empty where there is none.
        words: What happened.

    Example:
        >>> tell_event(Trainer(barebones=True, accelerator="cpu"), 9, "saddle", "plateau ends")
    """
    tell(trainer, event_line(step, verdict, words))


def story_rows(
    plateaus: Sequence[Plateau], marks: Sequence[tuple[int, str]] = (), end: Examination | None = None
) -> list[tuple[str, ...]]:
    """The plateaus of a run as rows of a table with the heads `STORY`.

    Args:
        plateaus: The plateaus, oldest first.
        marks: Steps at which a callback acted, with a word for what it did.
        end: The end of training, judged, where it is on no plateau.

    Returns:
        A row for each plateau, and one for the end.

    Example:
        >>> from relu_diag.functional.assumptions import Assumptions
        >>> import torch
        >>> from relu_diag.functional import Verdict
        >>> verdict = Verdict("saddle", torch.tensor([0]), None, Assumptions({}))
        >>> story_rows([Plateau(9, 2447, 0.03812, verdict, None, ended_by="escape", no_forecast="nothing grows")])
        [('9', '2,447', 'saddle', '0.03812', 'none', 'escape')]
    """
    acted = dict(marks)
    rows: list[tuple[str, ...]] = [
        (
            f"{plateau.start:,}",
            "it lasts" if plateau.end is None else f"{plateau.end:,}",
            plateau.verdict.kind,
            f"{plateau.loss:.4g}",
            _forecast_words(plateau),
            "" if plateau.end is None else acted.get(plateau.end, plateau.ended_by),
        )
        for plateau in plateaus
    ]
    if end is not None:
        rows.append((f"{end.step:,}", "", end.verdict.kind, f"{end.loss:.4g}", "", "the end"))
    return rows


def _forecast_words(plateau: Plateau) -> str:
    """The forecast that is told of a plateau, and by how much it was wrong."""
    forecast = told_forecast(plateau)
    if forecast is None:
        return "none"
    error = forecast_error(plateau)
    return f"{forecast.end:,.0f}" + ("" if error is None else f" ({percent(error)})")


def text_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows as a table for a terminal, numbers to the right.

    Args:
        heads: Head of each column.
        rows: The rows.

    Returns:
        Lines.

    Example:
        >>> print(text_table(("to step", "plateau"), [("2,447", "saddle")]))
        to step  plateau
          2,447  saddle
    """
    lines = [heads, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    columns = list(zip(heads, widths, strict=True))
    return "\n".join(
        "  ".join(
            f"{cell:>{width}}" if head in _NUMERIC else f"{cell:<{width}}"
            for cell, (head, width) in zip(line, columns, strict=True)
        ).rstrip()
        for line in lines
    )
