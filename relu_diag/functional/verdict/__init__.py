"""What a point is - not stationary, saddle, minimum or undecided - with a direction along which the loss was evaluated.

Never moves the point: the stationary point near an iterate is found in `cells`. Only here is a kind named.
"""

from relu_diag.functional.verdict.decision import classify, classify_signal, is_zero
from relu_diag.functional.verdict.direction import Direction
from relu_diag.functional.verdict.escape import EscapeNeurons, escape_neurons, escapes_at, silent_escapes
from relu_diag.functional.verdict.hessian import smooth_hessian
from relu_diag.functional.verdict.line import Move, TaylorExpansion, entered, expand
from relu_diag.functional.verdict.perturbation import PerturbationTest, perturbation_test
from relu_diag.functional.verdict.stationarity import Stationarity, assess, stationarity
from relu_diag.functional.verdict.taylor import taylor_expansion
from relu_diag.functional.verdict.verdict import DESCENT, NO_MINIMUM, Kind, Verdict

__all__ = [
    "DESCENT",
    "NO_MINIMUM",
    "Direction",
    "EscapeNeurons",
    "Kind",
    "Move",
    "PerturbationTest",
    "Stationarity",
    "TaylorExpansion",
    "Verdict",
    "assess",
    "classify",
    "classify_signal",
    "entered",
    "escape_neurons",
    "escapes_at",
    "expand",
    "is_zero",
    "perturbation_test",
    "silent_escapes",
    "smooth_hessian",
    "stationarity",
    "taylor_expansion",
]
