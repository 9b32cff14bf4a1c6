"""A figure at the end of a run is drawn once: the file, TensorBoard and the page show the same picture."""

import base64
import gc
from pathlib import Path

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from support.five_points import Five, fit
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from relu_diag.callbacks import LandscapeMonitor


@pytest.mark.parametrize("collects", [True, False])
def test_file_board_and_page_show_one_drawing(tmp_path: Path, collects: bool) -> None:
    board = TensorBoardLogger(tmp_path)
    before = gc.isenabled()
    if not collects:
        gc.disable()
    try:
        fit(Five(lr=0.02), LandscapeMonitor(every_n_steps=5, report=True), max_steps=10, logger=board)
        assert gc.isenabled() == collects
    finally:
        (gc.enable if before else gc.disable)()
    events = EventAccumulator(board.log_dir, size_guidance={"images": 0}).Reload()
    for name in ("training", "function"):
        picture = Path(board.log_dir, "landscape", f"{name}.png").read_bytes()
        shown = events.Images(f"landscape/{name}")[-1]
        assert shown.encoded_image_string == picture
        assert (shown.width, shown.height) > (700, 300)
        page = Path(board.log_dir, "report.html").read_text(encoding="utf-8")
        assert base64.b64encode(picture).decode("ascii") in page
