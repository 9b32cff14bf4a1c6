"""Say what a shallow ReLU-like network in training is stuck at, prove it, forecast when it ends, and act."""

from relu_diag import functional
from relu_diag.functional import BlockSignal, NeuronGeometry, NeuronStates, ShallowBlock, Verdict

__version__ = "0.1.0"

__all__ = [
    "BlockSignal",
    "NeuronGeometry",
    "NeuronStates",
    "ShallowBlock",
    "Verdict",
    "functional",
]
