"""LandscapeMonitor(report=True) leaves one page that tells the run."""

from pathlib import Path

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger
from support.five_points import Five, fit

from relu_diag.callbacks import LandscapeMonitor, PlateauMonitor


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


def test_it_is_a_flag() -> None:
    with pytest.raises(MisconfigurationException, match="`report` must be True or False; got 'yes'"):
        LandscapeMonitor(report="yes")  # type: ignore[arg-type]
