"""LandscapeMonitor(report=True) leaves one page that tells the run."""

from pathlib import Path

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from support.five_points import Five, Plain, fit
from torch import Tensor, nn

from relu_diag.callbacks import LandscapeMonitor, PlateauMonitor
from relu_diag.nn import ShallowNet


@pytest.mark.parametrize("report", [True, False])
def test_a_run_leaves_its_page_where_asked(report: bool, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    fit(Five(lr=0.02), PlateauMonitor(), LandscapeMonitor(report=report), max_steps=300, logger=logger)
    pages = list(tmp_path.rglob("report.html"))
    assert [page.parent for page in pages] == ([Path(logger.log_dir)] if report else [])
    for page in pages:
        text = page.read_text()
        assert "saddle" in text
        assert "net.hidden" in text
        assert "http://" not in text.replace("http://www.w3.org", "")


@pytest.mark.parametrize("first", [LandscapeMonitor, PlateauMonitor])
def test_the_page_tells_the_last_verdict_and_how_to_make_it_again(
    first: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever monitor comes first among the callbacks: both have judged the end by then."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    monkeypatch.setattr("sys.argv", ["train.py", "--lr", "a b"])
    watching = [LandscapeMonitor(report=True), PlateauMonitor()]
    watching.sort(key=lambda one: not isinstance(one, first))
    fit(Five(lr=0.02), *watching, max_steps=300, logger=CSVLogger(tmp_path))
    (page,) = tmp_path.rglob("report.html")
    text = page.read_text()
    assert "What it assumes" in text
    assert "python train.py --lr &#x27;a b&#x27;\n# seed_everything(7)" in text


def test_a_run_from_a_config_names_it_and_every_block_has_its_figures(tmp_path: Path) -> None:
    class Two(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(ShallowNet(2, 4), ShallowNet(1, 4))

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return nn.functional.mse_loss(self.net(batch[0].float()), batch[1].float())

    logger = TensorBoardLogger(tmp_path)
    Path(logger.log_dir).mkdir(parents=True)
    Path(logger.log_dir, "config.yaml").touch()
    fit(Two(), LandscapeMonitor(report=True), max_steps=5, logger=logger)
    text = Path(logger.log_dir, "report.html").read_text()
    assert f"relu-diag fit -c {logger.log_dir}/config.yaml" in text
    assert all(f"Every neuron along the run: {name}<" in text for name in ("net.0.hidden", "net.1.hidden"))


def test_it_is_a_flag() -> None:
    with pytest.raises(MisconfigurationException, match="`report` must be True or False; got 'yes'"):
        LandscapeMonitor(report="yes")  # type: ignore[arg-type]
