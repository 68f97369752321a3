"""Training: a loop that resumes bit for bit, checkpoints, logs, several processes, splits.

The loop knows no network: it minimises what a Task defines, on one processor or on the GPUs of many
machines (torchrun), and can be killed at any moment.

engine: the loop. stepping: the Task, one step, its random numbers. checkpoints: files of tensors.
logs: CSV and TensorBoard. distributed: several processes. folds: splits of subjects.
"""

from drrkit.training.checkpoints import (
    Checkpoint,
    find_checkpoint,
    load_checkpoint,
    load_tensors,
    save_tensors,
)
from drrkit.training.distributed import Processes
from drrkit.training.engine import TrainingResult, train
from drrkit.training.folds import Split, k_folds, split
from drrkit.training.stepping import PRECISIONS, Task, drawn_integer, generator

__all__ = [
    "PRECISIONS",
    "Checkpoint",
    "Processes",
    "Split",
    "Task",
    "TrainingResult",
    "drawn_integer",
    "find_checkpoint",
    "generator",
    "k_folds",
    "load_checkpoint",
    "load_tensors",
    "save_tensors",
    "split",
    "train",
]
