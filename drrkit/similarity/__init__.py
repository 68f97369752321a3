"""Learned similarities: networks whose gradient in the pose is trained to point at the true pose.

`build` makes one by name, `save_similarity` and `load_similarity` keep it; `drrkit.register` takes
it wherever a Stage takes a similarity.
"""

from drrkit.similarity.configuration import Configuration
from drrkit.similarity.learned import LearnedSimilarity
from drrkit.similarity.registry import KINDS, NETWORKS, build, construct
from drrkit.similarity.storage import load_similarity, save_similarity

__all__ = [
    "KINDS",
    "NETWORKS",
    "Configuration",
    "LearnedSimilarity",
    "build",
    "construct",
    "load_similarity",
    "save_similarity",
]
