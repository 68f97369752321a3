"""The live viewer: CT, X-ray and DRR side by side, the pose moved by hand or by registration.

`Session` is all of it but the web; `drrkit.viewer.server` puts one on a local page and needs the
packages of the extra `view`.
"""

from typing import Any

from drrkit.viewer.session import (
    PLANES,
    STRATEGIES,
    Look,
    Picture,
    Session,
    Slices,
    strategy_stages,
)


def serve(*args: Any, **options: Any) -> None:
    """`drrkit.viewer.server.serve`; ImportError without the packages of the extra `view`."""
    try:
        from drrkit.viewer import server
    except ImportError as error:
        raise ImportError(f"{error}: pip install 'drrkit[view]' brings it") from error
    server.serve(*args, **options)


__all__ = [
    "PLANES",
    "STRATEGIES",
    "Look",
    "Picture",
    "Session",
    "Slices",
    "serve",
    "strategy_stages",
]
