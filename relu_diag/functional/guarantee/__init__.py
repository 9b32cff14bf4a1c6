"""What is certain about training from here: convergence to zero loss, and how far the best network of any width is.

Where a bound is not proved the result says so: `holds`, `certified`.
"""

from relu_diag.functional.guarantee.convergence import (
    ConvergenceCertificate,
    convergence_certificate,
    lojasiewicz_ratio,
    smooth_convergence_certificate,
    smooth_leaky_relu,
)
from relu_diag.functional.guarantee.gap import Gap, optimality_gap

__all__ = [
    "ConvergenceCertificate",
    "Gap",
    "convergence_certificate",
    "lojasiewicz_ratio",
    "optimality_gap",
    "smooth_convergence_certificate",
    "smooth_leaky_relu",
]
