"""TensorBoard's page of a run: what its server sends, and what a browser shows."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from support.browser import shown
from support.five_points import Five, fit, reference_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from relu_diag.callbacks import LandscapeMonitor, PlateauMonitor
from relu_diag.nn import ShallowNet
from relu_diag.training import Report
from relu_diag.training._dashboard import page_layout

TITLES = ["Loss and plateaus", "Neurons by state", "Slopes with noise", "Forecast", "Gap", "Width"]
STACKED = ("stacked/none", "stacked/active", "stacked/awake", "width")
OURS = ("landscape/", "plateau/", "0_plateau/")
pytestmark = pytest.mark.xdist_group("tensorboard page")


class Page:
    """A TensorBoard server and its one run."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, plugin: str, **query: str) -> Any:
        asked = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items())
        with urlopen(f"{self.url}data/plugin/{plugin}?{asked}") as answer:
            return json.loads(answer.read())

    def scalars(self, tag: str) -> list[float]:
        return [value for _, _, value in self.get("scalars/scalars", run="run", tag=tag)]

    def tags(self, plugin: str) -> list[str]:
        return sorted(self.get(f"{plugin}/tags").get("run", []))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("logs")
    board = TensorBoardLogger(folder, name="", version="run")
    watching = [LandscapeMonitor(every_n_steps=600, verdict="nearby"), PlateauMonitor()]
    reference_run("five_points", 2e-2, 2_600, *watching, logger=board)
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as server:
        assert server.stderr is not None
        addresses = (re.search(r"http://\S+", line) for line in server.stderr)
        yield Page(next(address[0] for address in addresses if address))
        server.terminate()
        server.stderr.read()


def test_a_block_has_twenty_tags_and_the_story_comes_first(page: Page) -> None:
    plugins = ("scalars", "images", "histograms", "text")
    ours = [tag for plugin in plugins for tag in page.tags(plugin) if tag.startswith(OURS)]
    assert 15 <= len(ours) <= 20
    assert page.tags("images")[0] == "0_plateau/loss"
    pictures = page.get("images/images", run="run", tag="0_plateau/loss", sample="0")
    assert len(pictures) >= 3  # a start, an end, the end of training
    for tag in page.tags("scalars"):
        if tag.startswith(OURS):
            assert len(page.get("scalars/scalars", run="run", tag=tag)) >= 3, tag


def test_the_layout_has_a_chart_for_every_question(page: Page) -> None:
    layout = page.get("custom_scalars/layout")
    assert [category["title"] for category in layout["category"]] == TITLES
    for category in layout["category"]:
        for chart in category["chart"]:
            for tag in chart.get("multiline", {}).get("tag", []):
                found = page.get("custom_scalars/scalars", run="run", tag=tag)
                assert found["regex_valid"]
                drawn = {name: len(points) for name, points in found["tag_to_events"].items()}
                assert drawn, tag
                assert all(count >= 3 for count in drawn.values()), drawn
    for title, lines in (("Neurons by state", 4), ("Forecast", 1)):
        (chart,) = layout["category"][TITLES.index(title)]["chart"]
        assert len(chart["margin"]["series"]) == lines
        for series in chart["margin"]["series"]:
            low, value, high = (page.scalars(series[name]) for name in ("lower", "value", "upper"))
            assert len(value) >= 3
            assert all(a <= b <= c for a, b, c in zip(low, value, high, strict=True))


def test_neurons_are_stacked_from_none_to_all(page: Page) -> None:
    none, active, awake, width = (page.scalars(f"landscape/{name}") for name in STACKED)
    assert set(none) == {0.0}
    assert set(width) == {50.0}
    assert all(a <= b <= c for a, b, c in zip(active, awake, width, strict=True))
    assert all(dead <= c - b for dead, b, c in zip(page.scalars("landscape/dead"), awake, width, strict=True))
    assert (active[0], active[-1] > 0) == (0.0, True)  # small weights at the start


def test_the_run_is_one_table(page: Page) -> None:
    (told,) = page.get("text/text", run="run", tag="plateau/timeline/text_summary")
    rows = re.findall("<tr>(.*?)</tr>", told["text"], flags=re.DOTALL)
    cells = [re.findall("<t[hd]>(.*?)</t[hd]>", row) for row in rows]
    assert cells[0] == ["from step", "to step", "plateau", "loss", "forecast", "ended by"]
    assert cells[1] == ["9", "2,447", "saddle", "0.03812", "2,447 (0.0 %)", "escape"]
    assert (cells[2][0], cells[2][-1]) == ("2,600", "the end")
    (verdicts,) = page.get("text/text", run="run", tag="landscape/timeline/text_summary")
    assert "saddle" in verdicts["text"]


def test_runs_are_compared_by_their_final_loss(page: Page) -> None:
    *_, (_, step, loss) = page.get("scalars/scalars", run="run", tag="hp_metric")
    assert (step, loss) == (2_600, pytest.approx(0.0373, rel=1e-2))


@pytest.mark.browser
def test_chromium_shows_the_story_first(page: Page) -> None:
    document = shown(f"{page.url}#timeseries")
    groups = [document.find(f">{name}<") for name in ("0_plateau", "epoch", "landscape", "plateau")]
    assert groups == sorted(groups)
    assert groups[0] > 0


@pytest.mark.parametrize("width", [2, 200])
def test_tags_do_not_depend_on_the_width(width: int, tmp_path: Path) -> None:
    module = Five(lr=0.02)
    module.net = ShallowNet(2, width, init_scale=1e-3).double()
    board = TensorBoardLogger(tmp_path)
    fit(module, LandscapeMonitor(every_n_steps=10), max_steps=50, logger=board)
    tags = EventAccumulator(board.log_dir).Reload().Tags()
    ours = {
        tag for kind in ("scalars", "images", "histograms", "tensors") for tag in tags[kind] if tag.startswith(OURS)
    }
    scalars = {"loss", "dead", *STACKED, "effective", "steepest_slope", "slope_to_noise"}
    names = {*scalars, "slope", "training", "function", "timeline/text_summary"}
    assert ours == {f"landscape/{name}" for name in names}


def test_each_of_several_blocks_has_its_stack_and_every_block_the_other_lines() -> None:
    layout = page_layout(["plateau/", "plateau/up/"], ["landscape/up/", "landscape/down/"])
    assert list(layout) == TITLES
    stacks = layout["Neurons by state"]
    assert [title.rpartition(": ")[2] for title in stacks] == ["landscape/up", "landscape/down"]
    for prefix, (kind, tags) in zip(("landscape/up/", "landscape/down/"), stacks.values(), strict=True):
        assert kind == "Margin"
        assert set(tags) == {prefix + name for name in STACKED}
    assert len(layout["Forecast"]) == 2
    (line,) = layout["Gap"].values()
    assert all(re.fullmatch(line[1][0], f"landscape/{name}gap") for name in ("", "up/", "encoder.0/"))


def test_what_happens_once_is_a_row_and_not_a_line(tmp_path: Path) -> None:
    board = TensorBoardLogger(tmp_path)
    trainer = Trainer(logger=board, enable_checkpointing=False, accelerator="cpu")
    Report("growth/").log_scalars(trainer, 9, {"width": 51.0})
    assert trainer.callback_metrics["growth/width"] == 51
    board.experiment.flush()
    assert EventAccumulator(board.log_dir).Reload().Tags()["scalars"] in ([], ["hp_metric"])
