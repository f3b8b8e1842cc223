"""A finished folder that is analysed, as every part of the analysis sees it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

GENERATIONS, SCORES, BENCHMARK = "generations", "scores", "benchmark"
_SAMPLING = ("temperature", "top_k", "top_p", "lenience")


@dataclasses.dataclass(frozen=True)
class Model:
    """A model or draft: what it is called, where it lay, and a digest of its content by which folders are matched."""

    name: str
    path: str
    digest: str


@dataclasses.dataclass(frozen=True)
class Source:
    """One input folder.

    Attributes:
      folder: where it is.
      label: short, distinct name of the folder.
      kind: GENERATIONS, SCORES or BENCHMARK.
      fingerprint: of the run; of a benchmark the digest of its file.
      target: the target model.
      drafts: the drafts by name in the folder's columns; at most one, "", for generations and benchmarks.
      decoding: the decoding config, as far as the job fixes it.
      task: what was decoded: names of the input's files.
      tokenizer: path of the tokeniser.
      identity: what determines the run's result, by part.
      parts: paths of its Parquet parts.
      missing: how many parts an unfinished run lacks.
      text: for scores, whose texts they are: "source", "of_target", "same_sampling" and more.
      results: a benchmark's content.
      called: what the report calls the run: what differs between it and the others (`names`).
      apart: what of that no column of a table tells; mostly "".
    """

    folder: str
    label: str
    kind: str
    fingerprint: str
    target: Model
    drafts: Mapping[str, Model]
    decoding: Mapping[str, Any]
    task: str
    tokenizer: str
    identity: Mapping[str, Any]
    parts: tuple[str, ...] = ()
    missing: int = 0
    text: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    results: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    called: str = ""
    apart: str = ""

    @property
    def told(self) -> str:
        """How notes call it: they must lead back to the folder."""
        return f"{self.called} (folder {self.label})"

    @property
    def seed(self) -> int | None:
        """Of what was sampled: for scores, of the texts."""
        return self.text.get("seed") if self.kind == SCORES else self.decoding.get("seed")

    @property
    def sampling(self) -> tuple:
        """Temperature, top_k, top_p, lenience: what p and q are standardised by."""
        return tuple(self.decoding.get(name) for name in _SAMPLING)

    def describe(self) -> dict:
        """For analysis.json."""
        return {
            "folder": self.folder,
            "label": self.label,
            "called": self.called,
            "kind": self.kind,
            "fingerprint": self.fingerprint,
            "target": dataclasses.asdict(self.target),
            "drafts": {name: dataclasses.asdict(draft) for name, draft in self.drafts.items()},
            "decoding": dict(self.decoding),
            "task": self.task,
            "parts": len(self.parts),
            "missing": self.missing,
            "text": dict(self.text),
        }
