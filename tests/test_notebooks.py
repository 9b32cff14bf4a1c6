"""Results show themselves in notebooks: a table of their summary, a picture of a plateau."""

from __future__ import annotations

import io
from html.parser import HTMLParser
from typing import Any

import matplotlib.image
import pytest
import torch

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.functional.tables import html_table
from relu_diag.training import Plateau, PlateauForecast

X = torch.eye(2, dtype=torch.float64)
Y = torch.tensor([[3.0], [4.0]], dtype=torch.float64)
START = ShallowBlock(1e-5 * torch.tensor([[0.6, 0.8]], dtype=torch.float64), 1e-5 * torch.ones(1, 1).double())
VERDICT = F.classify(ShallowBlock(0 * X[:1], 0 * X[:1, :1]), X, Y)
FORECAST = PlateauForecast(10, 90.0, 95.0, 105.0, 5.0, torch.tensor([0]))
RESULTS: dict[str, Any] = {
    "verdict": VERDICT,
    "geometry": F.neuron_geometry(START, F.squared_error_signal(START, X, Y)),
    "states": F.neuron_states(START, X, Y),
    "escape": F.forecast_escape(START, X, Y, lr=0.01),
    "gap": F.optimality_gap(START, X, Y, weight_decay=0.1),
    "forecast": FORECAST,
    "plateau": Plateau(0, None, 12.5, VERDICT, FORECAST, seen=10, forecasts=(FORECAST,)),
    "ended plateau": Plateau(0, 100, 12.5, VERDICT, FORECAST, seen=10, ended_by="escape", forecasts=(FORECAST,)),
}


class Table(HTMLParser):
    """The cells of a table, and whether all tags were closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        if tag in {"th", "td"}:
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.cells[-1] += data


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_is_a_table_of_its_summary(name: str) -> None:
    result = RESULTS[name]
    cells = Table(result._repr_html_()).cells
    lines = [" ".join(line.split()) for line in result.summary().splitlines() if "  " in line]
    assert [" ".join(" ".join(pair).split()) for pair in zip(cells[::2], cells[1::2], strict=True)] == lines
    assert len(lines) >= 4


def test_words_that_look_like_tags_are_words() -> None:
    assert Table(html_table("because  W < 0 & <b>")).cells == ["because", "W < 0 & <b>"]


@pytest.mark.parametrize("name", ["plateau", "ended plateau"])
def test_a_plateau_is_a_picture(name: str) -> None:
    image = matplotlib.image.imread(io.BytesIO(RESULTS[name]._repr_png_()), format="png")
    assert image.shape[1] > 340
    assert len({tuple(pixel) for pixel in image.reshape(-1, 4).tolist()}) > 20
