"""Read a block and its signal off any module. The only forward hooks of the package are here."""

from relu_diag.capture.find import choose_block, find_blocks, read_block, write_block
from relu_diag.capture.location import BlockLocation
from relu_diag.capture.observation import undisturbed
from relu_diag.capture.replacement import loss_at_outputs
from relu_diag.capture.signal import read_signal

__all__ = [
    "BlockLocation",
    "choose_block",
    "find_blocks",
    "loss_at_outputs",
    "read_block",
    "read_signal",
    "undisturbed",
    "write_block",
]
