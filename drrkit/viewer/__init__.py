"""The live viewer: CT, X-ray and DRR side by side, the pose moved by hand or by registration.

`Session` is all of it but the web; `drrkit.viewer.server` puts one on a local page and needs the
packages of the extra `view`.
"""

from drrkit.viewer.session import STRATEGIES, Look, Session, strategy_stages
from drrkit.viewer.slices import PLANES, Picture, Slices

__all__ = ["PLANES", "STRATEGIES", "Look", "Picture", "Session", "Slices", "strategy_stages"]
