"""The page of TensorBoard: the scalars it shows, a layout of their charts, and tables of the whole run."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from relu_diag.functional import NeuronStates
from relu_diag.training.lightning_internals import shows_final_metric

# Kept off the page, which then has 20 tags a block at most: details, states that are drawn stacked, and verdicts, which
# are told in words.
_NOT_SHOWN = {
    "landscape": {
        "balancedness_drift",
        "brink",
        "dormant",
        "escape",
        "largest_amplitude",
        "largest_output_gradient",
        "largest_radial",
        "linear",
        "on_kink",
        "pull",
        "samples",
        "small_living",
        "total_amplitude",
        "verdict",
    },
    "plateau": {"escape", "gap", "verdict"},
}
# What happens once or twice in a run is a row of a timeline, not a line of a chart.
_EVENTS = {"escape", "growth", "revive"}
# Neurons by state: each number counts those of the states before it too. The first keeps zero in sight.
_STACKED = ("stacked/none", "stacked/active", "stacked/awake", "width")
# The table of a timeline is written again and again at one step: there TensorBoard shows the last one alone.
_TABLE_STEP = 0
# How TensorBoard calls pixels with red, green, blue and opacity.
_RGBA = 4
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
        forecasts = [one.forecast_prefix for one in callbacks if hasattr(one, "forecast_prefix")]
        blocks = [prefix for one in callbacks for prefix in getattr(one, "block_prefixes", ())]
        write_layout(logger.experiment, page_layout(forecasts, blocks))

    def add_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """Log those scalars that the page shows.

        Args:
            scalars: Scalars by full name.
            step: Their step.
        """
        shown = {tag: value for tag, value in scalars.items() if _shown(tag)}
        if shown:
            self._logger.log_metrics(shown, step=step)

    def add_states(self, prefix: str, states: NeuronStates, step: int) -> None:
        """Log how many neurons are in each state, stacked: active, small, and dead or on the brink.

        Args:
            prefix: Prefix of the block's tags.
            states: Its neuron states.
            step: Their step.
        """
        awake = ~(states.dead | states.brink)
        counts = (0, int((awake & ~states.small_living).sum()), int(awake.sum()), len(awake))
        stacked = {prefix + name: float(count) for name, count in zip(_STACKED, counts, strict=True)}
        self._logger.log_metrics(stacked, step=step)

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

    def add_picture(self, tag: str, png: bytes, step: int) -> None:
        """Show a picture as it is; the writer's own ``add_figure`` would draw it again.

        Args:
            tag: Its tag.
            png: Content of a PNG file.
            step: Its step.
        """
        # Loaded with the writer already, and not before: it takes time.
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

        width, height = struct.unpack(">II", png[16:24])
        image = Summary.Image(width=width, height=height, colorspace=_RGBA, encoded_image_string=png)
        self._logger.experiment._get_file_writer().add_summary(Summary(value=[{"tag": tag, "image": image}]), step)

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


def page_layout(forecasts: Sequence[str] = (), blocks: Sequence[str] = ()) -> Layout:
    """The charts of TensorBoard's custom scalars, in the form of ``SummaryWriter.add_custom_scalars``.

    Lines are regular expressions, so that any number of blocks is drawn. A margin has the names of its tags, and there
    may be several in a chart: value, lower and upper edge of one after the other.

    Args:
        forecasts: Prefix of the tags of each monitor that forecasts; none: ``plateau/``.
        blocks: Prefix of the tags of each block that is watched; none: ``landscape/``.

    Returns:
        Charts by category.

    Example:
        >>> page_layout()["Forecast"]["Forecast of the end of a plateau"]
        ['Margin', ['plateau/escape_step', 'plateau/escape_low', 'plateau/escape_high']]
    """
    ends = _titled("Forecast of the end of a plateau", forecasts or ["plateau/"])
    states = _titled("White: active; light: small; dark: dead or on the brink", blocks or ["landscape/"])
    return {
        "Loss and plateaus": {"Loss and plateaus": _lines("landscape/loss", "plateau/loss")},
        "Neurons by state": {title: ["Margin", _bands(prefix)] for title, prefix in states.items()},
        "Slopes with noise": {
            "Steepest slope": _lines("landscape/steepest_slope"),
            "Slope in standard errors: about 1 is noise": _lines("landscape/slope_to_noise"),
        },
        "Forecast": {title: ["Margin", [prefix + name for name in FORECAST]] for title, prefix in ends.items()},
        "Gap": {"Loss above the best of any width with decay, else the point nearby": _lines("landscape/gap")},
        "Width": {"Distinct neurons, and all neurons": _lines("landscape/effective", "landscape/width")},
    }


def write_layout(writer: Any, layout: Layout) -> None:
    """Write a layout; torch's own ``add_custom_scalars`` takes one margin a chart.

    Args:
        writer: Its ``SummaryWriter``.
        layout: Charts by category.
    """
    # Loaded with the writer already, and not before: they take time.
    from tensorboard.plugins.custom_scalar import layout_pb2  # type: ignore[import-untyped]
    from torch.utils.tensorboard.summary import custom_scalars

    def chart(title: str, kind: str, tags: Sequence[str]) -> Any:
        if kind == "Multiline":
            return layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=tags))
        triples = zip(tags[::3], tags[1::3], tags[2::3], strict=True)
        series = [layout_pb2.MarginChartContent.Series(value=v, lower=low, upper=high) for v, low, high in triples]
        return layout_pb2.Chart(title=title, margin=layout_pb2.MarginChartContent(series=series))

    categories = [
        layout_pb2.Category(title=title, chart=[chart(name, *content) for name, content in charts.items()])
        for title, charts in layout.items()
    ]
    summary = custom_scalars({})  # type: ignore[no-untyped-call]
    summary.value[0].tensor.string_val[0] = layout_pb2.Layout(category=categories).SerializeToString()
    writer._get_file_writer().add_summary(summary)


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


def _titled(title: str, prefixes: Sequence[str]) -> dict[str, str]:
    """Prefixes of tags by the titles of their charts."""
    alone = len(prefixes) == 1
    return {title if alone else f"{title}: {prefix.rstrip('/')}": prefix for prefix in prefixes}


def _bands(prefix: str) -> list[str]:
    """Tags of a line at each stacked number of a block, with a margin from there up to all neurons: they overlap."""
    zero, active, awake, width = (prefix + name for name in _STACKED)
    return [zero, zero, zero, active, active, width, awake, awake, width, width, width, width]


def _shown(tag: str) -> bool:
    """Whether the page shows a scalar."""
    parts = tag.split("/")
    return parts[0] not in _EVENTS and parts[-1] not in _NOT_SHOWN.get(parts[0], set())
