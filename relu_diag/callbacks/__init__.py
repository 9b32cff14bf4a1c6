"""Lightning callbacks."""

from relu_diag.callbacks.early_stopping import SaddleAwareEarlyStopping
from relu_diag.callbacks.escape import Escape, EscapeOnPlateau
from relu_diag.callbacks.growth import GrowOnPlateau, Growth
from relu_diag.callbacks.guarantee import GuaranteeMonitor
from relu_diag.callbacks.monitor import LandscapeMonitor
from relu_diag.callbacks.plateau import PlateauMonitor
from relu_diag.training import Plateau, PlateauEvent, PlateauForecast, PlateauListener

__all__ = [
    "Escape",
    "EscapeOnPlateau",
    "GrowOnPlateau",
    "Growth",
    "GuaranteeMonitor",
    "LandscapeMonitor",
    "Plateau",
    "PlateauEvent",
    "PlateauForecast",
    "PlateauListener",
    "PlateauMonitor",
    "SaddleAwareEarlyStopping",
]
