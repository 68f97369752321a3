"""Pictures of X-rays and registrations, and pages that hold them."""

from drrkit.report.page import registration_page, save_page
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
    to_display,
)
from drrkit.report.scene import scene_svg

__all__ = [
    "IMAGE_SUFFIXES",
    "checkerboard",
    "difference",
    "edges",
    "line_to_absorption",
    "line_to_transmission",
    "overlay_edges",
    "pose_overlays",
    "registration_page",
    "save_image",
    "save_page",
    "scene_svg",
    "to_display",
]
