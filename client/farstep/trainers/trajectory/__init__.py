"""Trajectories: what agents did, step by step, as plain records to keep, look at and learn from."""

from farstep.trainers.trajectory.dataset import Invalid, TrajectoryDataset
from farstep.trainers.trajectory.extractor import TrajectoryExtractor
from farstep.trainers.trajectory.from_rollout import item_of_sample, items_of_rollout
from farstep.trainers.trajectory.item import TrajectoryItem
from farstep.trainers.trajectory.strategy import DefaultStrategy, TrajectoryStrategy

__all__ = [
    "DefaultStrategy",
    "Invalid",
    "TrajectoryDataset",
    "TrajectoryExtractor",
    "TrajectoryItem",
    "TrajectoryStrategy",
    "item_of_sample",
    "items_of_rollout",
]
