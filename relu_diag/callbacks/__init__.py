"""Lightning callbacks."""

from relu_diag.callbacks.monitor import LandscapeMonitor
from relu_diag.callbacks.plateau import PlateauMonitor
from relu_diag.callbacks.plateau_event import Plateau, PlateauEvent, PlateauForecast, PlateauListener

__all__ = ["LandscapeMonitor", "Plateau", "PlateauEvent", "PlateauForecast", "PlateauListener", "PlateauMonitor"]
