"""Read a block and its signal off any module. The only forward hooks of the package are here."""

from relu_diag.capture._graph import NOTHING_BETWEEN
from relu_diag.capture.find import choose_block, find_blocks, read_block, write_block
from relu_diag.capture.glance import Glance, Glimpse, extremes_of
from relu_diag.capture.live import LiveBlock, NeuronRows
from relu_diag.capture.local import local_part
from relu_diag.capture.location import BlockLocation
from relu_diag.capture.memory import Memory
from relu_diag.capture.namespace import of_lightning
from relu_diag.capture.observation import undisturbed
from relu_diag.capture.plain import check_plain, is_sharded
from relu_diag.capture.replacement import loss_at_outputs
from relu_diag.capture.ride import Ride, riding
from relu_diag.capture.sampled import SampledSums, samples_cheaply
from relu_diag.capture.sighting import Sighting, exactness
from relu_diag.capture.signal import read_signal

__all__ = [
    "NOTHING_BETWEEN",
    "BlockLocation",
    "Glance",
    "Glimpse",
    "LiveBlock",
    "Memory",
    "NeuronRows",
    "Ride",
    "SampledSums",
    "Sighting",
    "check_plain",
    "choose_block",
    "exactness",
    "extremes_of",
    "find_blocks",
    "is_sharded",
    "local_part",
    "loss_at_outputs",
    "of_lightning",
    "read_block",
    "read_signal",
    "riding",
    "samples_cheaply",
    "undisturbed",
    "write_block",
]
