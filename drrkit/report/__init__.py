"""Pictures of X-rays and registrations, films of them, and pages that hold them."""

from drrkit.report.film import FILM_SUFFIXES, save_film
from drrkit.report.landscapes import pose_landscape
from drrkit.report.page import registration_page, save_page
from drrkit.report.path import registration_path
from drrkit.report.pictures import (
    IMAGE_SUFFIXES,
    checkerboard,
    difference,
    edges,
    line_to_absorption,
    line_to_transmission,
    overlay_edges,
    save_image,
    to_display,
)
from drrkit.report.placement import placement
from drrkit.report.scene import orientation, scene_svg
from drrkit.report.screen import pose_overlays

__all__ = [
    "FILM_SUFFIXES",
    "IMAGE_SUFFIXES",
    "checkerboard",
    "difference",
    "edges",
    "line_to_absorption",
    "line_to_transmission",
    "orientation",
    "overlay_edges",
    "placement",
    "pose_landscape",
    "pose_overlays",
    "registration_page",
    "registration_path",
    "save_film",
    "save_image",
    "save_page",
    "scene_svg",
    "to_display",
]
