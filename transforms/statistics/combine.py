"""Statistics of shards added up in a pipeline. What they are says `statistics`, which is read without Beam as well."""

import functools
from collections.abc import Iterable

import apache_beam as beam
import numpy as np

from transforms.statistics.generations import Statistics


class CombineStatistics(beam.CombineFn):
    """Merges `Statistics`, or another class with a neutral element and an associative `merge`."""

    def __init__(self, statistics: type = Statistics):
        self._statistics = statistics

    def create_accumulator(self) -> Statistics:
        return self._statistics()

    def add_input(self, accumulator: Statistics, element: Statistics) -> Statistics:
        return accumulator.merge(element)

    def merge_accumulators(self, accumulators: Iterable[Statistics]) -> Statistics:
        return functools.reduce(self._statistics.merge, accumulators, self._statistics())

    def extract_output(self, accumulator: Statistics) -> Statistics:
        return accumulator


class CombineTokenCounts(beam.CombineFn):
    """Adds occurrences of tokens, int64[any length]."""

    def create_accumulator(self) -> np.ndarray:
        return np.zeros(0, np.int64)

    def add_input(self, accumulator: np.ndarray, element: np.ndarray) -> np.ndarray:
        size = max(len(accumulator), len(element))
        return np.pad(accumulator, (0, size - len(accumulator))) + np.pad(element, (0, size - len(element)))

    def merge_accumulators(self, accumulators: Iterable[np.ndarray]) -> np.ndarray:
        return functools.reduce(self.add_input, accumulators, self.create_accumulator())

    def extract_output(self, accumulator: np.ndarray) -> np.ndarray:
        return accumulator
