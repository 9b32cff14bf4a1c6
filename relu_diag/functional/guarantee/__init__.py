"""What is certain about training from here: certificates of convergence to zero loss.

Never an estimate: where a bound fails, nothing is certified.
"""

from relu_diag.functional.guarantee.convergence import (
    ConvergenceCertificate,
    convergence_certificate,
    lojasiewicz_ratio,
    smooth_convergence_certificate,
    smooth_leaky_relu,
)

__all__ = [
    "ConvergenceCertificate",
    "convergence_certificate",
    "lojasiewicz_ratio",
    "smooth_convergence_certificate",
    "smooth_leaky_relu",
]
