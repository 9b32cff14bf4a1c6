"""The page of TensorBoard: the scalars it shows, a layout of their charts, and tables of the whole run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from relu_diag.training.lightning_internals import shows_final_metric

# Kept off the page, which then has 20 tags a block at most: details, and verdicts of monitors that tell them in words.
_NOT_SHOWN = {
    "landscape": {
        "balancedness_drift",
        "dormant",
        "escape",
        "largest_amplitude",
        "largest_output_gradient",
        "largest_radial",
        "linear",
        "on_kink",
        "pull",
        "samples",
        "total_amplitude",
        "verdict",
    },
    "plateau": {"escape"},
}
# The table of a timeline is written again and again at one step: there TensorBoard shows the last one alone.
_TABLE_STEP = 0
_TIMELINE = ("step", "verdict", "what happened")
FORECAST = ("escape_step", "escape_low", "escape_high")

Layout = dict[str, dict[str, list[Any]]]
Row = tuple[str, ...]


class Dashboard:
    """One TensorBoard writer: lays out its page once, and rewrites its tables as they grow.

    Args:
        logger: The logger.
        trainer: Its trainer, whose callbacks say which forecasts are drawn.
    """

    def __init__(self, logger: TensorBoardLogger, trainer: Trainer) -> None:
        self._logger = logger
        self._timelines: dict[str, list[Row]] = {}
        self._final_step: int | None = None
        callbacks: Sequence[Any] = trainer.callbacks  # type: ignore[attr-defined]
        prefixes = [one.forecast_prefix for one in callbacks if hasattr(one, "forecast_prefix")]
        logger.experiment.add_custom_scalars(page_layout(prefixes))

    def add_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """Log those scalars that the page shows.

        Args:
            scalars: Scalars by full name.
            step: Their step.
        """
        shown = {tag: value for tag, value in scalars.items() if _shown(tag)}
        if shown:
            self._logger.log_metrics(shown, step=step)

    def add_event(self, tag: str, step: int, text: str, verdict: str = "") -> None:
        """Add a row to a timeline; it replaces the row before if both say the same verdict.

        Args:
            tag: Tag of the timeline.
            step: Step of the event.
            text: What happened.
            verdict: The verdict, if there is one.
        """
        rows = self._timelines.setdefault(tag, [])
        begun = f"{step:,}"
        if verdict and rows and rows[-1][1] == verdict:
            begun = rows.pop()[0]
        rows.append((begun, verdict, text))
        self.write_table(tag, _TIMELINE, rows)

    def write_table(self, tag: str, heads: Sequence[str], rows: Sequence[Row]) -> None:
        """Write a table in place of the one before.

        Args:
            tag: Its tag.
            heads: Head of each column.
            rows: The rows.
        """
        self._logger.experiment.add_text(tag, markdown_table(heads, rows), _TABLE_STEP)

    def add_final_loss(self, loss: float, step: int, logged: Mapping[str, Any]) -> None:
        """Show the loss at the end of a run as ``hp_metric``, once, unless the module logs that name itself.

        Args:
            loss: The loss.
            step: Steps done.
            logged: What the module has logged.
        """
        wanted = shows_final_metric(self._logger) and "hp_metric" not in logged and self._final_step != step
        if wanted and math.isfinite(loss):
            self._final_step = step
            self._logger.log_metrics({"hp_metric": loss}, step=step)


# A writer takes one layout, and several callbacks write to it.
_DASHBOARDS: WeakKeyDictionary[Any, Dashboard] = WeakKeyDictionary()


def dashboard_of(logger: TensorBoardLogger, trainer: Trainer) -> Dashboard:
    """The dashboard of a logger's writer.

    Args:
        logger: The logger.
        trainer: Its trainer.

    Returns:
        The same dashboard for every callback.
    """
    writer = logger.experiment
    if writer not in _DASHBOARDS:
        _DASHBOARDS[writer] = Dashboard(logger, trainer)
    return _DASHBOARDS[writer]


def page_layout(forecasts: Sequence[str] = ()) -> Layout:
    """The charts of TensorBoard's custom scalars, as ``SummaryWriter.add_custom_scalars`` takes them.

    Lines are regular expressions, so that any number of blocks is drawn; a margin has the names of its tags.

    Args:
        forecasts: Prefix of the tags of each monitor that forecasts; none: ``plateau/``.

    Returns:
        Charts by category.

    Example:
        >>> page_layout()["Forecast"]["Forecast of the end of a plateau"]
        ['Margin', ['plateau/escape_step', 'plateau/escape_low', 'plateau/escape_high']]
    """
    prefixes = list(forecasts) or ["plateau/"]
    alone = len(prefixes) == 1
    title = "Forecast of the end of a plateau"
    margins = {
        title if alone else f"{title}, {prefix.rstrip('/')}": ["Margin", [prefix + name for name in FORECAST]]
        for prefix in prefixes
    }
    return {
        "Loss and plateaus": {"Loss and plateaus": _lines("landscape/loss", "plateau/loss")},
        "Neurons by state": {"Neurons by state": _lines("landscape/dead", "landscape/brink", "landscape/small_living")},
        "Slopes with noise": {
            "Steepest slope": _lines("landscape/steepest_slope"),
            "Slope in standard errors: about 1 is noise": _lines("landscape/slope_to_noise"),
        },
        "Forecast": margins,
        "Gap": {"Loss above the stationary point nearby": _lines("landscape/gap")},
        "Width": {"Distinct neurons, and width after growth": _lines("landscape/effective", "growth/width")},
    }


def markdown_table(heads: Sequence[str], rows: Sequence[Row]) -> str:
    """Rows as a table in Markdown.

    Args:
        heads: Head of each column.
        rows: The rows.

    Returns:
        Text.

    Example:
        >>> print(markdown_table(("step", "verdict"), [("9", "saddle")]))
        | step | verdict |
        | --- | --- |
        | 9 | saddle |
    """
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    """A text that stays in its cell."""
    return text.replace("|", "\\|").replace("\n", " ")


def _lines(*tags: str) -> list[Any]:
    """A chart with a line for each tag, of every block."""
    return ["Multiline", [f"{tag.partition('/')[0]}/(.+/)?{tag.partition('/')[2]}$" for tag in tags]]


def _shown(tag: str) -> bool:
    """Whether the page shows a scalar."""
    parts = tag.split("/")
    return parts[-1] not in _NOT_SHOWN.get(parts[0], set())
