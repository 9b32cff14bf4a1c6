"""What is certain about training from here: convergence to zero loss, and how far the best network of any width is.

Where a bound is not proved the result says so: `holds`, `certified`.
"""

from relu_diag.functional.guarantee.amplitudes import Amplitudes, refit_amplitudes
from relu_diag.functional.guarantee.convergence import (
    ConvergenceCertificate,
    convergence_certificate,
    lojasiewicz_ratio,
    smooth_convergence_certificate,
    smooth_leaky_relu,
)
from relu_diag.functional.guarantee.gap import Gap, optimality_gap

__all__ = [
    "Amplitudes",
    "ConvergenceCertificate",
    "Gap",
    "convergence_certificate",
    "lojasiewicz_ratio",
    "optimality_gap",
    "refit_amplitudes",
    "smooth_convergence_certificate",
    "smooth_leaky_relu",
]
