"""Pure functions from tensors to frozen results: the mathematics, without any training framework."""

from relu_diag.functional.block import BlockSignal, ShallowBlock, rho, squared_error_signal, squared_loss
from relu_diag.functional.geometry import (
    NeuronGeometry,
    geometry_from_sums,
    neuron_geometry,
    radial_directions,
    tangential_derivatives,
)
from relu_diag.functional.neurons import NeuronStates, dead_sector, neuron_states, states_from_sums, target_scale
from relu_diag.functional.sums import KinkSamples, NeuronSums, neuron_sums

__all__ = [
    "BlockSignal",
    "KinkSamples",
    "NeuronGeometry",
    "NeuronStates",
    "NeuronSums",
    "ShallowBlock",
    "dead_sector",
    "geometry_from_sums",
    "neuron_geometry",
    "neuron_states",
    "neuron_sums",
    "radial_directions",
    "rho",
    "squared_error_signal",
    "squared_loss",
    "states_from_sums",
    "tangential_derivatives",
    "target_scale",
]
