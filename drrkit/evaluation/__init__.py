"""Evaluation: named protocols over CTs, methods, rows in CSV, and what they say.

subject = Subject.of("pelvis", drrkit.read_volume("pelvis.nii.gz"))
rows = evaluate({"global": "global"}, [PROTOCOLS["prost"]], [subject], 100, Path("out"))
print(summarise(rows)["success"])
"""

from drrkit.evaluation.landscapes import (
    AXES,
    Landscape,
    axis_offsets,
    landscape,
    landscapes_of,
    local_minima,
    losses_at,
    on_axes,
)
from drrkit.evaluation.methods import METHODS, with_similarity
from drrkit.evaluation.protocols import (
    PROTOCOLS,
    Case,
    Protocol,
    Subject,
    is_inverted,
    moved_about,
    shifted_appearance,
)
from drrkit.evaluation.running import Row, evaluate, measure, read_rows
from drrkit.evaluation.summary import auroc, capture_range, recall_at, summarise, top_mean

__all__ = [
    "AXES",
    "METHODS",
    "PROTOCOLS",
    "Case",
    "Landscape",
    "Protocol",
    "Row",
    "Subject",
    "auroc",
    "axis_offsets",
    "capture_range",
    "evaluate",
    "is_inverted",
    "landscape",
    "landscapes_of",
    "local_minima",
    "losses_at",
    "measure",
    "moved_about",
    "on_axes",
    "read_rows",
    "recall_at",
    "shifted_appearance",
    "summarise",
    "top_mean",
    "with_similarity",
]
