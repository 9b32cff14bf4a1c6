"""What a run prints: one short line an event, past the progress bar, and the story at its end."""

import importlib
import re
import warnings
from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities._pytree import _tree_flatten
from support.five_points import reference_run

import relu_diag.callbacks
from relu_diag.callbacks import PlateauMonitor
from relu_diag.training import tell

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class SilentBar(ProgressBar):
    """A bar of a user's own, that shows nothing."""

    def enable(self) -> None: ...

    def disable(self) -> None: ...


@pytest.mark.parametrize("bar", [TQDMProgressBar, RichProgressBar, SilentBar])
@pytest.mark.parametrize("first", [True, False], ids=["bar first", "bar last"])
def test_lines_are_whole_beside_any_bar(
    bar: type, first: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = CSVLogger(tmp_path, name="", version="run")
    callbacks = [bar(), PlateauMonitor()] if first else [PlateauMonitor(), bar()]
    reference_run("five_points", 2e-2, 2_600, *callbacks, enable_progress_bar=True, logger=logger)
    shown = ESCAPES.sub("", capsys.readouterr().out).replace("\r", "\n").split("\n")
    events = [line.rstrip() for line in shown if line.startswith("step ")]
    assert events[0] == "step        120  saddle           since 9, loss 0.03812, ends at ~2,447"
    assert events[1] == "step      2,447  saddle           plateau ends, forecast 2,447"
    start = next(i for i, line in enumerate(shown) if line.startswith("from step  to step  plateau"))
    assert shown[start + 1].split() == ["9", "2,447", "saddle", "0.03812", "2,447", "(0.0", "%)", "escape"]
    assert shown[start + 2].split()[0] == "2,600"
    assert any(line.startswith("logs and figures: ") for line in shown[start + 3 :])
    assert all(len(line) <= 80 for line in [*events, *shown[start : start + 3]])


def test_long_lines_go_on_indented(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = Trainer(logger=False, enable_checkpointing=False, callbacks=[SilentBar()])
    tell(trainer, "net.0: " + "one of many neurons, " * 10)
    lines = [line for line in capsys.readouterr().out.split("\n") if "neurons" in line]
    assert len(lines) == 3
    assert all(len(line) <= 80 for line in lines)
    assert all(line.startswith("    ") for line in lines[1:])


def test_no_warning_of_lightning_reaches_the_user() -> None:
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.simplefilter("error")
        importlib.reload(relu_diag.callbacks)
        _tree_flatten(1)
