"""One neuron at a time, to first order: which samples it sees, and the slope of the loss along any direction.

Never a verdict: what the numbers mean for the point is said in `verdict`.
"""

from relu_diag.functional.local.caps import EnclosedPull, enclosed_pull
from relu_diag.functional.local.chunks import Chunk, chunks
from relu_diag.functional.local.dead_causes import DeadCauses, born_dead_share, dead_causes, offset_over_spread
from relu_diag.functional.local.directional import directional_derivative
from relu_diag.functional.local.directions import radial_directions, tangential_part
from relu_diag.functional.local.fan import (
    Hyperplanes,
    all_fan_rays,
    fan_rays,
    hyperplanes,
    merge_collinear,
    one_sided,
)
from relu_diag.functional.local.geometry import (
    NeuronGeometry,
    NeuronSlopes,
    geometry_from_sums,
    neuron_geometry,
    slopes_from_sums,
    tangential_derivatives,
)
from relu_diag.functional.local.kink_groups import KinkGroup, kink_groups
from relu_diag.functional.local.kink_samples import KinkSamples
from relu_diag.functional.local.neurons import (
    NeuronStates,
    dead_sector,
    neuron_states,
    repeated_neurons,
    states_from_sums,
    target_scale,
)
from relu_diag.functional.local.noise import kinks_beyond_chance, slope_noise, slope_to_noise, without_chance_kinks
from relu_diag.functional.local.pulls import (
    OneNeuron,
    Pull,
    loudest_flat_directions,
)
from relu_diag.functional.local.steepest import Steepest, steepest_descent
from relu_diag.functional.local.sums import NeuronSums, RunningSums, neuron_sums, slopes_at

__all__ = [
    "Chunk",
    "DeadCauses",
    "EnclosedPull",
    "Hyperplanes",
    "KinkGroup",
    "KinkSamples",
    "NeuronGeometry",
    "NeuronSlopes",
    "NeuronStates",
    "NeuronSums",
    "OneNeuron",
    "Pull",
    "RunningSums",
    "Steepest",
    "all_fan_rays",
    "born_dead_share",
    "chunks",
    "dead_causes",
    "dead_sector",
    "directional_derivative",
    "enclosed_pull",
    "fan_rays",
    "geometry_from_sums",
    "hyperplanes",
    "kink_groups",
    "kinks_beyond_chance",
    "loudest_flat_directions",
    "merge_collinear",
    "neuron_geometry",
    "neuron_states",
    "neuron_sums",
    "offset_over_spread",
    "one_sided",
    "radial_directions",
    "repeated_neurons",
    "slope_noise",
    "slope_to_noise",
    "slopes_at",
    "slopes_from_sums",
    "states_from_sums",
    "steepest_descent",
    "tangential_derivatives",
    "tangential_part",
    "target_scale",
    "without_chance_kinks",
]
