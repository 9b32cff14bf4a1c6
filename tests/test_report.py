"""report.html: one file that opens without a network, and tells what happened, what it is, and how to make it again."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from support.browser import shown

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.callbacks import PlateauMonitor
from relu_diag.cli import main
from relu_diag.experiments import PointsDataModule, ReferenceRegression
from relu_diag.figures import perturbation_figure
from relu_diag.nn import ShallowNet
from relu_diag.report import BlockNeurons, Report, RunStory, neuron_groups, write_report
from relu_diag.training import Plateau, PlateauForecast

VOID = {"meta", "img", "br", "hr", "link", "input"}
X = torch.eye(3, dtype=torch.float64)
Y = torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)


class Page(HTMLParser):
    """A page: its tags closed in order, its ids, what it refers to, its words."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.resources: list[str] = []
        self.alts: list[str | None] = []
        self.words: list[str] = []
        self.feed(self.text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in given:
            self.ids.append(str(given["id"]))
        if tag == "a":
            self.links.append(str(given["href"]))
        if tag == "img":
            self.alts.append(given.get("alt"))
        self.resources += [str(given[name]) for name in ("src", "srcset", "data", "poster") if name in given]
        self.resources += [str(given["href"])] if tag == "link" else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in {"style", "script"}:
            self.words.append(data)

    def says(self, words: str) -> bool:
        return words in " ".join(" ".join(self.words).split())

    def check(self) -> None:
        """It refers to nothing outside, all its links lead somewhere, and all pictures are pictures with words."""
        assert len(self.ids) == len(set(self.ids))
        assert {link.removeprefix("#") for link in self.links} <= set(self.ids)
        assert not re.search(r"@import|url\(", self.text)
        assert all(self.alts)
        for resource in self.resources:
            head, _, content = resource.partition(",")
            assert head == "data:image/png;base64"
            assert base64.b64decode(content, validate=True).startswith(b"\x89PNG")


def neurons() -> BlockNeurons:
    block = ShallowBlock(torch.randn(4, 3).double(), torch.randn(1, 4).double())
    geometry = F.neuron_geometry(block, F.squared_error_signal(block, X, Y))
    return BlockNeurons("net.0 -> net.2", block, geometry, F.neuron_states(block, X, Y))


def full_report() -> Report:
    zero = ShallowBlock(0 * X[:1], 0 * X[:1, :1])
    verdict = F.classify(zero, X, Y)
    forecast = PlateauForecast(20, 81.0, 95.0, 107.0, 1.0, torch.tensor([0]))
    ended = Plateau(0, 100, 0.5, verdict, forecast, ended_by="escape", forecasts=(forecast,))
    lasting = Plateau(120, None, 0.25, verdict, None, no_forecast="nothing grows")
    story = RunStory([0, 100, 120, 200], [0.5, 0.5, 0.25, 0.25], [ended, lasting], [(110, "moved")])
    pictures = {"perturbations": perturbation_figure(F.perturbation_test(zero, X, Y, draws=50))}
    return Report("<b> & co", verdict, story, pictures, [neurons()], "relu-diag fit -c run.yaml > log && true")


def test_a_full_report_is_one_valid_page_that_refers_to_nothing_outside(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path / "new" / "report.html", full_report()))
    page.check()
    assert page.ids == [
        "what-happened",
        "verdict",
        "figures",
        "neurons-by-group",
        "environment",
        "how-to-reproduce",
    ]
    assert len(page.links) == len(page.ids)
    assert page.alts == ["The loss over its plateaus", "The loss under small random changes of all weights"]


@pytest.mark.browser
def test_chromium_shows_every_picture_without_a_network(tmp_path: Path) -> None:
    path = write_report(tmp_path / "report.html", full_report())
    measure = "<script>document.title = [...document.images].map(one => one.naturalWidth).join()</script>"
    path.write_text(path.read_text(encoding="utf-8").replace("</body>", f"{measure}</body>"), encoding="utf-8")
    document = shown(path.as_uri(), "--host-resolver-rules=MAP * ~NOTFOUND")
    widths = re.search("<title>(.*?)</title>", document)
    assert widths is not None
    assert [int(width) > 340 for width in widths[1].split(",")] == [True, True]


def test_it_tells_the_story_the_verdict_its_assumptions_and_how_to_make_it_again(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path / "report.html", full_report()))
    assert page.says("<b> & co")
    assert page.says("0 100 saddle 0.5 step 101, made at step 20: +1.2 % off escape")
    assert page.says("120 it lasts saddle 0.25 nothing grows")
    assert page.says("full data set assumed")
    assert page.says(f"torch {torch.__version__.split('+')[0]}")
    assert page.says("relu-diag fit -c run.yaml > log && true")


def test_what_is_missing_is_left_out(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path / "report.html", Report("nothing yet")))
    page.check()
    assert page.ids == ["environment"]
    empty = Page(write_report(tmp_path / "report.html", Report("no loss yet", story=RunStory([], [], []))))
    empty.check()
    assert empty.alts == []


@pytest.mark.parametrize("count", [1, 5, 40])
def test_every_neuron_is_in_one_group(count: int) -> None:
    draw = torch.Generator().manual_seed(count)
    W = torch.randn(count, 3, generator=draw, dtype=torch.float64)
    W[0] = -1.0  # dead: no input has a negative part
    block = ShallowBlock(torch.cat([W, 0 * W[:1]]), torch.randn(1, count + 1, generator=draw, dtype=torch.float64))
    geometry = F.neuron_geometry(block, F.squared_error_signal(block, X, Y))
    groups = neuron_groups(geometry, F.neuron_states(block, X, Y))
    assert len(groups) <= 23
    assert torch.cat([one.neurons for one in groups]).sort().values.tolist() == list(range(count + 1))
    assert groups[-1].name == "dead"
    assert groups[-1].state == "dead"


def saved(folder: Path) -> tuple[Path, Path]:
    torch.manual_seed(0)
    torch.save(ShallowNet(3, 3, init_scale=0.0).double().state_dict(), folder / "net.pt")
    torch.save((X, Y), folder / "data.pt")
    return folder / "net.pt", folder / "data.pt"


def test_inspect_writes_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, data = saved(tmp_path)
    main(["inspect", str(checkpoint), "--data", str(data), "--report"])
    printed = capsys.readouterr().out
    assert printed.startswith("saddle")
    assert "report: " in printed
    page = Page(tmp_path / "report.html")
    page.check()
    assert page.says("saddle, loss")
    assert page.says(f"relu-diag inspect {checkpoint} --data {data}")
    assert len(page.alts) == len(list(tmp_path.glob("*.png")))


def test_report_tells_the_run_of_a_checkpoint_with_or_without_data(tmp_path: Path) -> None:
    monitor = PlateauMonitor()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=4000,
        max_epochs=1,
        callbacks=[monitor],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    module = ReferenceRegression("five_points", lr=5e-3, steps_per_batch=100)
    trainer.fit(module, PointsDataModule("five_points", batches_per_epoch=40))
    trainer.save_checkpoint(tmp_path / "run.ckpt", weights_only=False)
    main(["report", str(tmp_path / "run.ckpt")])
    page = Page(tmp_path / "report.html")
    page.check()
    assert monitor.plateaus
    assert page.says("it lasts saddle 0.0381")
    inputs, targets = module.problem.tensors()
    torch.save((inputs[:, :-1] if bool((inputs[:, -1] == 1).all()) else inputs, targets), tmp_path / "data.pt")
    main(["report", str(tmp_path / "run.ckpt"), "--data", str(tmp_path / "data.pt"), "--out", str(tmp_path / "two")])
    both = Page(tmp_path / "two" / "report.html")
    both.check()
    assert both.ids[:4] == ["what-happened", "verdict", "figures", "neurons-by-group"]


def test_a_checkpoint_without_a_run_needs_data(tmp_path: Path) -> None:
    checkpoint, _ = saved(tmp_path)
    with pytest.raises(SystemExit, match="holds no run of a PlateauMonitor"):
        main(["report", str(checkpoint)])


def test_groups_are_shown_and_every_neuron_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, data = saved(tmp_path)
    main(["inspect", str(checkpoint), "--data", str(data)])
    short = capsys.readouterr().out
    main(["inspect", str(checkpoint), "--data", str(data), "--all"])
    assert "3 neurons" not in short or "radial" not in short
    assert "radial" in capsys.readouterr().out
