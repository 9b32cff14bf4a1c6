"""A network inside a wider one: embeddings, what they preserve, and which new neuron gains most.

Never touches a module: widening a live network is the business of `relu_diag.growth`.
"""

from relu_diag.functional.widening.choice import Widening, WideningCandidate, best_widening, widening_prospect
from relu_diag.functional.widening.embedding import add_inactive_propagation, add_inactive_units, replicate_unit
from relu_diag.functional.widening.later_layers import LaterLayer, LossThroughLayers
from relu_diag.functional.widening.network import Network
from relu_diag.functional.widening.output_lengths import output_length
from relu_diag.functional.widening.placement import Placement, merge_units, place_units
from relu_diag.functional.widening.preservation import Preservation, addition_preserves, replication_preserves
from relu_diag.functional.widening.proposal import GrowthProposal, growth_proposals
from relu_diag.functional.widening.rehearsal import rehearsed_losses
from relu_diag.functional.widening.reopening import drawn_anew, reopened
from relu_diag.functional.widening.silent import add_silent_units

__all__ = [
    "GrowthProposal",
    "LaterLayer",
    "LossThroughLayers",
    "Network",
    "Placement",
    "Preservation",
    "Widening",
    "WideningCandidate",
    "add_inactive_propagation",
    "add_inactive_units",
    "add_silent_units",
    "addition_preserves",
    "best_widening",
    "drawn_anew",
    "growth_proposals",
    "merge_units",
    "output_length",
    "place_units",
    "rehearsed_losses",
    "reopened",
    "replicate_unit",
    "replication_preserves",
    "widening_prospect",
]
