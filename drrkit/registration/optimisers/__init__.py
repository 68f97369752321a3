"""Optimisers of a batch of poses: their settings, one file each, and the engines they begin."""

from drrkit.registration.optimisers.cmaes import CmaEs
from drrkit.registration.optimisers.descent import Descent, Directions
from drrkit.registration.optimisers.levenberg import Levenberg
from drrkit.registration.optimisers.optimiser import Optimiser
from drrkit.registration.optimisers.regressor import Regressor
from drrkit.registration.optimisers.trust_region import TrustRegion

__all__ = [
    "OPTIMISERS",
    "CmaEs",
    "Descent",
    "Directions",
    "Levenberg",
    "Optimiser",
    "Regressor",
    "TrustRegion",
]

OPTIMISERS: dict[str, type[Optimiser]] = {
    one.name: one for one in (Descent, Directions, Levenberg, CmaEs, TrustRegion, Regressor)
}
"""By the names that histories and command lines use."""
