"""Which texts are scored: those of a finished folder of `pipeline.generate`, or the references of an input."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping

from pipeline.job.preflight import CheckedModels
from pipeline.job.run import known_plan, plan_of, run_identity
from pipeline.settings import ConfigError, JobConfig
from transforms.folder import GENERATE, FolderError, Manifest, OpenedFolder, open_finished
from transforms.plan import Plan

SAMPLING = ("temperature", "top_k", "top_p")


@dataclasses.dataclass(frozen=True)
class GenerationsPlan:
    """In the place of a `Plan` of an input: the parts of a generations folder, of these sizes, are the work shards."""

    folder: str
    fingerprint: str
    part_bytes: tuple[int, ...]

    num_records = None  # nobody has counted

    @property
    def num_shards(self) -> int:
        return len(self.part_bytes)

    def to_json(self) -> dict:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the texts come from.

    Attributes:
      plan: their shards.
      identity: what tells them from other texts, for the fingerprint.
      facts: about them, for manifest and summary: docs/alpha_datasets.md.
      recorded: the draft whose β they record in a way that can be compared, or None.
    """

    plan: Plan | GenerationsPlan
    identity: dict
    facts: dict
    recorded: str | None = None


def find_generations(config: JobConfig, models: CheckedModels, drafts: Mapping[str, dict]) -> Source:
    """Looks into the generations folder, by one listing and its manifest.

    Raises:
      FolderError: it is not a finished folder of `pipeline.generate`, or its texts cannot be scored with these models.
    """
    opened = open_finished(config.score.generations, GENERATE, what="score.generations:")
    manifest, folder = opened.manifest, opened.folder
    sizes = [opened.listing[name] for name in manifest.part_names()]
    shown = f"score.generations is {folder.root!r}"
    _check_fits(shown, manifest, config, models)
    was, now = manifest.identity, config.decoding
    sampling = {name: was["decoding"][name] for name in SAMPLING}
    of_target = was["model"]["target"] == models.identity["target"] and was["model"]["dtype"] == config.model.dtype
    same_sampling = sampling == {name: getattr(now, name) for name in SAMPLING}
    facts = {
        "source": "generations",
        "folder": folder.root,
        "fingerprint": manifest.fingerprint,
        "of_target": of_target,
        "sampling": sampling,
        "same_sampling": same_sampling,
        "exact": bool(manifest.exact and of_target and same_sampling),
        "seed": was["decoding"]["seed"],
    }
    comparable = manifest.exact and of_target and same_sampling and was["decoding"]["gamma"] != 0
    same = [name for name, identity in drafts.items() if comparable and identity == was["model"].get("draft")]
    identity = {
        "generations": manifest.fingerprint,
        "parts": hashlib.sha256(json.dumps(sizes).encode()).hexdigest(),
    }
    plan = GenerationsPlan(folder.root, manifest.fingerprint, tuple(sizes))
    return Source(plan, identity, facts, recorded=same[0] if same else None)


def _check_fits(shown: str, manifest: Manifest, config: JobConfig, models: CheckedModels) -> None:
    """Refuses texts of another tokeniser, and longer ones than the config allows."""
    if manifest.identity["model"]["tokenizer"] != models.tokenizer_sha256:
        raise FolderError(f"{shown}, whose texts were made with another tokeniser than model.target has; allowed: the same")
    was, now = manifest.identity["decoding"], config.decoding
    for name, longest, mine in (
        ("input_buckets", was["input_buckets"][-1], now.max_input_tokens),
        ("max_decode_tokens", was["max_decode_tokens"], now.max_decode_tokens),
    ):
        if longest > mine:
            raise ConfigError(
                f"decoding.{name} is {getattr(now, name)!r}; allowed: up to {longest} at least, since {shown}, which was made "
                "with that"
            )


def references(config: JobConfig, models: CheckedModels, opened: OpenedFolder) -> Source:
    """The references of the config's input.

    Raises:
      ConfigError: it has none, or cannot be planned.
    """
    if not config.input.target_field:
        raise ConfigError(
            "input.target_field is ''; allowed: the field of the references that are to be scored, or a folder of "
            "generations as score.generations"
        )
    plan = plan_of(config, models, known_plan(opened), opened.folder.root)
    identity = run_identity(config, plan, models)
    facts = {"source": "references", "of_target": False, "sampling": None, "same_sampling": False, "exact": False}
    return Source(plan, {"input": identity["input"], "shards": identity["shards"]}, facts)
