"""`transforms.statistics.generations` under the name that scripts know it by."""

from transforms.statistics.generations import DecodedText, Statistics, shard_statistics
from transforms.statistics.intervals import poisson_weights

__all__ = ["DecodedText", "Statistics", "poisson_weights", "shard_statistics"]
