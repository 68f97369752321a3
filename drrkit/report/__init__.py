"""Pictures of X-rays and registrations, and pages that hold them.

pictures: display conversions, overlays, image files. scene: a view as a drawing. page: the HTML
page of a result, made of facts, charts and convergence.
"""

from drrkit.report.convergence import pose_landscape, registration_path
from drrkit.report.facts import (
    edge_letters,
    ended_far,
    nearest_side,
    placement,
    shown_confidence,
    why_doubted,
)
from drrkit.report.page import registration_page, save_page, track_page
from drrkit.report.pictures import (
    IMAGE_SUFFIXES,
    checkerboard,
    difference,
    edges,
    line_to_absorption,
    line_to_transmission,
    overlay_edges,
    pose_overlays,
    save_image,
    tiled,
    to_display,
)
from drrkit.report.scene import scene_svg

__all__ = [
    "IMAGE_SUFFIXES",
    "checkerboard",
    "difference",
    "edge_letters",
    "edges",
    "ended_far",
    "line_to_absorption",
    "line_to_transmission",
    "nearest_side",
    "overlay_edges",
    "placement",
    "pose_landscape",
    "pose_overlays",
    "registration_page",
    "registration_path",
    "save_image",
    "save_page",
    "scene_svg",
    "shown_confidence",
    "tiled",
    "to_display",
    "track_page",
    "why_doubted",
]
