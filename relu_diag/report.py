"""One HTML file that tells a run, or a saved network, to somebody who was not there; it needs nothing but a browser."""

from __future__ import annotations

import base64
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from relu_diag.figures import forecast_error, percent, plateau_words, png_of, story_figure, told_forecast, verdict_style
from relu_diag.functional import NeuronGeometry, NeuronStates, ShallowBlock, Verdict
from relu_diag.functional.tables import html_table
from relu_diag.training import Plateau

_PACKAGES = ("relu_diag", "torch", "lightning", "torchmetrics", "numpy", "scipy", "matplotlib")
# Groups with a row of their own, and neurons that a row names.
_MOST_GROUPS = 20
_NAMED = 8
_CAPTIONS = {
    "loss": "The loss over its plateaus",
    "training": "Every neuron along the run",
    "function": "The learned function and the data",
    "witness": "The loss along the direction that proves the verdict on these weights",
    "perturbations": "The loss under small random changes of all weights",
}
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; }
nav a { margin-right: 1rem; }
img { max-width: 100%; height: auto; }
figure { margin: 1.5rem 0; }
figcaption { color: #4a4a4a; }
pre { background: #f4f4f4; padding: 0.8rem; overflow-x: auto; }
table { border-collapse: collapse; }
th, td { padding: 0.2rem 0.8rem 0.2rem 0; text-align: left; vertical-align: top; font-weight: normal; }
thead th, th[scope=row] { color: #4a4a4a; }
td:first-child { white-space: nowrap; }
div.wide { overflow-x: auto; }
div.wide table { min-width: 36rem; }
p.verdict { font-size: 1.3rem; border-left: 0.5rem solid; padding-left: 0.8rem; }
"""


@dataclass(frozen=True, slots=True, eq=False)
class RunStory:
    """What happened in a run.

    Attributes:
        steps: Gradient steps done at each loss.
        losses: The losses.
        plateaus: The plateaus, oldest first.
        marks: Steps at which a callback acted, with a word for what it did.

    Example:
        >>> RunStory(steps=[0, 100], losses=[0.5, 0.4], plateaus=[], marks=[(50, "moved")]).marks
        [(50, 'moved')]
    """

    steps: Sequence[float]
    losses: Sequence[float]
    plateaus: Sequence[Plateau]
    marks: Sequence[tuple[int, str]] = ()


@dataclass(frozen=True, slots=True, eq=False)
class BlockNeurons:
    """The neurons of a block at one moment.

    Attributes:
        name: The block, ``net.0 -> net.2``.
        block: Its weights.
        geometry: One-sided derivatives.
        states: Neuron states.

    Example:
        >>> from relu_diag import functional as F
        >>> X, Y = torch.eye(2), torch.ones(2, 1)
        >>> block = ShallowBlock(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.ones(1, 2))
        >>> geometry = F.neuron_geometry(block, F.squared_error_signal(block, X, Y))
        >>> BlockNeurons("net.0 -> net.2", block, geometry, F.neuron_states(block, X, Y)).name
        'net.0 -> net.2'
    """

    name: str
    block: ShallowBlock
    geometry: NeuronGeometry
    states: NeuronStates


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """What a report tells; parts that are missing are left out.

    Attributes:
        title: What was run or read.
        verdict: Verdict on the last weights, or on the stationary point nearby.
        story: What happened in the run.
        figures: Other figures by name, or the contents of their PNG files.
        neurons: The neurons of each block.
        reproduce: Commands or code that make the same again.

    Example:
        >>> Report("five points", reproduce="relu-diag fit -c configs/five_points.yaml").verdict is None
        True
    """

    title: str
    verdict: Verdict | None = None
    story: RunStory | None = None
    figures: Mapping[str, Figure | bytes] = field(default_factory=dict)
    neurons: Sequence[BlockNeurons] = ()
    reproduce: str = ""


def write_report(path: str | Path, report: Report) -> Path:
    """Write a report as one HTML file, figures included, that refers to nothing outside.

    Args:
        path: The file; its folder is made.
        report: What it tells.

    Returns:
        The file.

    Example:
        >>> from tempfile import mkdtemp
        >>> write_report(Path(mkdtemp(), "report.html"), Report("a run")).name
        'report.html'
    """
    sections: dict[str, str] = {}
    if report.story is not None:
        sections["What happened"] = _story(report.story)
    if report.verdict is not None:
        sections["Verdict"] = _verdict(report.verdict)
    if report.figures:
        sections["Figures"] = "".join(_figure(name, figure) for name, figure in report.figures.items())
    if report.neurons:
        sections["Neurons by group"] = "".join(_neurons(one) for one in report.neurons)
    sections["Environment"] = html_table("\n".join(f"{name}  {text}" for name, text in environment().items()))
    if report.reproduce:
        sections["How to reproduce"] = f"<pre>{escape(report.reproduce)}</pre>"
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_page(report, sections), encoding="utf-8")
    return path


def environment() -> dict[str, str]:
    """What a run depends on: versions and the machine.

    Returns:
        Name and text of each.

    Example:
        >>> "torch" in environment()
        True
    """
    found = {"python": platform.python_version(), "machine": platform.platform(terse=True)}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    found["accelerator"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return found


@dataclass(frozen=True, slots=True, eq=False)
class NeuronGroup:
    """Neurons that one row of a table is about.

    Attributes:
        name: The group, numbered as in `NeuronStates.group`, or what its neurons have in common.
        neurons: Its neurons, long, shape ``(n,)``.
        state: What they do, in a word.
        amplitude: Sum of ``||w_i|| ||h_i||``.
        kinks: Largest number of samples on the kink of one of them.
        steepest: Smallest one-sided slope of one of them.

    Example:
        >>> NeuronGroup("group 0", torch.arange(10), "active", amplitude=1.0, kinks=0, steepest=-0.1).members
        '0, 1, 2, 3, 4, 5, 6, 7 and 2 more'
    """

    name: str
    neurons: Tensor
    state: str
    amplitude: float
    kinks: int
    steepest: float

    @property
    def members(self) -> str:
        """The first of its neurons, and how many more there are."""
        named = ", ".join(str(i) for i in self.neurons[:_NAMED].tolist())
        more = len(self.neurons) - _NAMED
        return f"{named} and {more} more" if more > 0 else named


def neuron_groups(geometry: NeuronGeometry, states: NeuronStates) -> list[NeuronGroup]:
    """The neurons of a layer group by group: the largest first, then all smaller ones together, then the dead.

    Args:
        geometry: One-sided derivatives.
        states: Neuron states.

    Returns:
        At most 23 groups; every neuron is in one of them.

    Example:
        >>> from relu_diag import functional as F
        >>> X = torch.eye(2)
        >>> block = ShallowBlock(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.ones(1, 2))
        >>> geometry = F.neuron_geometry(block, F.squared_error_signal(block, X, X[:, :1]))
        >>> [(one.name, one.members) for one in neuron_groups(geometry, F.neuron_states(block, X, X[:, :1]))]
        [('group 0', '0'), ('dead', '1')]
    """
    masks = {f"group {g}": states.group == g for g in range(min(_MOST_GROUPS, len(states.group_amplitude)))}
    masks["smaller groups"] = states.group >= _MOST_GROUPS
    masks["without input weights"] = (states.group < 0) & ~states.dead
    masks["dead"] = states.dead
    return [_group(name, mask, geometry, states) for name, mask in masks.items() if bool(mask.any())]


def _group(name: str, mask: Tensor, geometry: NeuronGeometry, states: NeuronStates) -> NeuronGroup:
    """The neurons of a mask of shape ``(I,)`` as a row."""
    kinds = {"dead": states.dead, "on the brink": states.brink, "small": states.small_living, "linear": states.linear}
    return NeuronGroup(
        name=name,
        neurons=mask.nonzero()[:, 0],
        state=next((kind for kind, members in kinds.items() if bool(members[mask].all())), "active"),
        amplitude=float(states.amplitude[mask].sum()),
        kinks=int(geometry.kink_count[mask].max()),
        steepest=float(geometry.steepest[mask].min()),
    )


def _page(report: Report, sections: Mapping[str, str]) -> str:
    """The whole file."""
    links = "".join(f'<a href="#{_id(name)}">{escape(name)}</a> ' for name in sections)
    parts = [f'<h2 id="{_id(name)}">{escape(name)}</h2>\n{body}\n' for name, body in sections.items()]
    title = escape(report.title)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n{_headline(report.verdict)}"
        f"<nav>{links}</nav>\n{''.join(parts)}</body>\n</html>\n"
    )


def _id(name: str) -> str:
    """The anchor of a section."""
    return name.lower().replace(" ", "-")


def _headline(verdict: Verdict | None) -> str:
    """The verdict in one line, in its colour."""
    if verdict is None:
        return ""
    color = verdict_style(verdict.kind).color
    return f'<p class="verdict" style="border-color: {color}">{escape(verdict.kind)}, loss {verdict.loss:.4g}</p>\n'


def _story(story: RunStory) -> str:
    """The picture of a run and its plateaus as a table."""
    marks = dict(story.marks)
    rows = []
    for plateau in story.plateaus:
        rows.append((
            f"{plateau.start:,}",
            "it lasts" if plateau.end is None else f"{plateau.end:,}",
            plateau_words(plateau),
            _told(plateau),
            marks.get(plateau.end, plateau.ended_by) if plateau.end is not None else "",
        ))
    picture = (
        _figure("loss", story_figure(story.steps, story.losses, story.plateaus, story.marks)) if story.steps else ""
    )
    return picture + _grid(("from step", "to step", "plateau", "forecast of its end", "ended by"), rows)


def _told(plateau: Plateau) -> str:
    """The forecast that is told of a plateau, with its error, or why there is none."""
    forecast = told_forecast(plateau)
    if forecast is None:
        return plateau.no_forecast or "none"
    error = forecast_error(plateau)
    made = f"step {forecast.end:,.0f}, made at step {forecast.step:,}"
    return made if error is None else f"{made}: {percent(error)} off"


def _verdict(verdict: Verdict) -> str:
    """A verdict as a table, its assumptions as another."""
    facts, _, _ = verdict.summary().partition("\nassumes ")
    assumptions = [(name, state) for name, state in verdict.assumptions.items()]
    return html_table(facts) + "<h3>What it assumes</h3>" + _grid(("assumption", "here it is"), assumptions)


def _figure(name: str, figure: Figure | bytes) -> str:
    """A figure as a picture inside the file."""
    picture = base64.b64encode(figure if isinstance(figure, bytes) else png_of(figure)).decode("ascii")
    kind, _, block = name.partition(" of ")
    caption = _CAPTIONS.get(kind, kind.replace("_", " ")) + (f": {block}" if block else "")
    words = escape(caption, quote=True)
    source = f"data:image/png;base64,{picture}"
    return f'<figure><img src="{source}" alt="{words}"><figcaption>{words}</figcaption></figure>\n'


def _neurons(one: BlockNeurons) -> str:
    """The neurons of a block, group by group."""
    rows = [
        (
            group.name,
            str(len(group.neurons)),
            group.members,
            group.state,
            f"{group.amplitude:.3g}",
            str(group.kinks),
            f"{group.steepest:.2g}",
        )
        for group in neuron_groups(one.geometry, one.states)
    ]
    heads = ("group", "neurons", "which", "state", "amplitude", "samples on a kink", "steepest slope")
    return f"<h3>{escape(one.name)}</h3><p>{escape(str(one.states))}</p>{_grid(heads, rows)}"


def _grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows as a table with heads."""
    top = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>\n'
