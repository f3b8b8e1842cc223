"""What a pipeline's graph will cost a runner: steps, shuffles, and the stages that its steps are fused to."""

import dataclasses

from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2

from pipeline.runners.beam_internals import fused_stages

_GROUP_BY_KEY = common_urns.primitives.GROUP_BY_KEY.urn
_BETWEEN_STAGES = frozenset({"beam:runner:source:v1", "beam:runner:sink:v1"})
_OF_RUNNER = frozenset({_GROUP_BY_KEY, common_urns.primitives.IMPULSE.urn, common_urns.primitives.FLATTEN.urn})


@dataclasses.dataclass(frozen=True)
class Graph:
    """A pipeline as a runner sees it.

    Attributes:
      steps: primitive transforms.
      shuffles: labels of the transforms whose input is grouped, in the order of the graph.
      stages: for each stage, the labels of the steps that are fused to it, as Beam's own local runner fuses.
      size_bytes: of the graph as it is sent.
    """

    steps: int
    shuffles: tuple[str, ...]
    stages: tuple[tuple[str, ...], ...]
    size_bytes: int


def describe(proto: beam_runner_api_pb2.Pipeline) -> Graph:
    """Counts what is in a pipeline's graph."""
    transforms = proto.components.transforms
    primitives = [t for t in transforms.values() if t.spec.urn and not t.subtransforms]
    shuffles = [t.unique_name.rsplit("/", 1)[0] for t in primitives if t.spec.urn == _GROUP_BY_KEY]
    stages = fused_stages(proto, _OF_RUNNER)
    others = _OF_RUNNER | _BETWEEN_STAGES
    fused = (tuple(t.unique_name for t in stage.transforms if t.spec.urn not in others) for stage in stages)
    return Graph(len(primitives), tuple(shuffles), tuple(filter(None, fused)), proto.ByteSize())
