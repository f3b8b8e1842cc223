"""Scores drafts against the target, teacher forced, over the target's own texts: α as Corollary 3.6 of the paper has it.

    python -m pipeline.score --config=configs/quickstart.py --output=DIR --config.score.generations=GENERATED
        [--config.score.drafts.NAME=draft ...] [--config.score.lenience="(0.5,)"] [Beam options]

The texts are those of a finished folder of `pipeline.generate`, or, where `score.generations` is empty, the references of
the config's input. `config.decoding` gives the sampling method, and the longest input and text. docs/alpha_datasets.md
describes what is written. The same command on the same folder continues where an earlier one stopped.

Exit status: as of `pipeline.generate`.
"""

import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence

import apache_beam as beam
from rich import box
from rich.console import Console
from rich.table import Table

import decoding
from pipeline.job.launch import Job, run_job
from pipeline.job.preflight import CheckedModels, check_draft, check_models, shared_vocab_size
from pipeline.job.run import Run, code_digest, continue_run, known_plan, new_manifest, plan_of, ranges, run_identity
from pipeline.job.steps import finish, input_reader
from pipeline.job.terminal import add_row, print_missing
from pipeline.runners import options as runners
from pipeline.runners.dataflow import options as dataflow
from pipeline.runners.supervise import Launch, supervise
from pipeline.settings import CommandLine, ConfigError, JobConfig
from transforms import storage
from transforms.folder import GENERATE, SCORE, FolderError, Manifest, open_finished, open_folder
from transforms.plan import Plan
from transforms.score import ReadGenerations, References, ScoreModelHandler, ScorerFactory, ScoreSettings
from transforms.shards import FAILED, CommitShards, ReadShards, RunShards
from transforms.statistics.scores import ScoreStatistics
from transforms.tokenize import load_tokenizer
from transforms.write_scores import WriteScores

SAMPLING = ("temperature", "top_k", "top_p")
_LENGTHS = ("input_buckets", "max_decode_tokens")


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


@dataclasses.dataclass(frozen=True)
class ScoreRun(Run):
    """A `Run` of this job, with what it is over and what it scores."""

    source: Source | None = None
    settings: ScoreSettings | None = None


def prepare(command: CommandLine, device: dict | None, launch: Launch) -> ScoreRun:
    """Checks the models, the drafts and the texts, and plans or continues the run.

    Raises:
      ConfigError: a setting is wrong.
      FolderError: the output folder, or the generations, are not what is needed.
    """
    config = command.config
    models, drafts = check_score_models(config)
    opened = open_folder(command.output)
    source = find_generations(config, models, drafts) if config.score.generations else _references(config, models, opened)
    fresh = new_manifest(
        config,
        source.plan,
        _identity(config, models, drafts, source),
        device,
        job=SCORE,
        exact=source.facts["exact"],
        drafts=list(drafts),
        lenience=list(config.score.lenience),
        text=source.facts,
    )
    run = continue_run(
        opened,
        fresh,
        config,
        source.plan,
        models,
        allow_code_change=command.allow_code_change,
        launch=launch,
        parts=storage.SCORES,
        statistics=ScoreStatistics,
    )
    settings = ScoreSettings(
        models=models.to_load,
        drafts=tuple(named_drafts(config).items()),
        config=config.decoding,
        lenience=config.score.lenience,
        batch_tokens=config.score.batch_tokens,
    )
    known = {field.name: getattr(run, field.name) for field in dataclasses.fields(Run)}
    return ScoreRun(**known, source=source, settings=settings)


def named_drafts(config: JobConfig) -> dict[str, str]:
    """The drafts to score, by name.

    Raises:
      ConfigError: there is none.
    """
    drafts = config.score.drafts or ({"draft": config.model.draft} if config.model.draft else {})
    if not drafts:
        raise ConfigError("score.drafts is {}; allowed: at least one draft, or model.draft")
    return drafts


def check_score_models(config: JobConfig) -> tuple[CheckedModels, dict[str, dict]]:
    """Checks target and drafts as generation does. Returns what it found out, and the identity of every draft."""
    if config.model.mesh:
        raise ConfigError(f'model.mesh is {config.model.mesh!r}; allowed: "", since scores are of one device')
    named = named_drafts(config)
    alone = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, draft=""),
        decoding=dataclasses.replace(config.decoding, gamma=0),
    )
    models = check_models(alone)
    target = decoding.inspect_checkpoint(config.model.target)
    pieces = load_tokenizer(models.tokenizer).pieces()
    setting = "score.drafts.{}" if config.score.drafts else "model.{}"
    found = {
        name: check_draft(setting.format(name), path, config, target, pieces) for name, path in named.items()
    }
    vocab_size = shared_vocab_size(config.model, target, list(found.values()), pieces)
    to_load = dataclasses.replace(models.to_load, vocab_size=vocab_size)
    return dataclasses.replace(models, to_load=to_load), {name: one.identity for name, one in found.items()}


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


def _references(config: JobConfig, models: CheckedModels, opened) -> Source:
    if not config.input.target_field:
        raise ConfigError(
            "input.target_field is ''; allowed: the field of the references that are to be scored, or a folder of "
            "generations as score.generations"
        )
    plan = plan_of(config, models, known_plan(opened), opened.folder.root)
    identity = run_identity(config, plan, models)
    facts = {"source": "references", "of_target": False, "sampling": None, "same_sampling": False, "exact": False}
    return Source(plan, {"input": identity["input"], "shards": identity["shards"]}, facts)


def _identity(config: JobConfig, models: CheckedModels, drafts: Mapping[str, dict], source: Source) -> dict:
    settings = {name: getattr(config.decoding, name) for name in (*SAMPLING, *_LENGTHS)}
    read = {"vocab_size": models.to_load.vocab_size, "tokenizer": models.tokenizer_sha256, **models.to_load.identity}
    identity = {
        "job": "score",
        "text": source.identity,
        "model": {**models.identity, **read},
        "drafts": drafts,
        "decoding": settings,
        "score": {"lenience": config.score.lenience, "batch_tokens": config.score.batch_tokens},
        "code": code_digest(),
    }
    return json.loads(json.dumps(identity))


def build_pipeline(root: beam.Pipeline, *, run: ScoreRun, factory: ScorerFactory | None = None) -> None:
    """Adds the job to `root`: the pending shards, if any, and then the end of the run.

    Args:
      root: an empty pipeline.
      run: what to do.
      factory: builds the scorer on workers; None loads the models.
    """
    output, source, settings = run.folder.root, run.source, run.settings
    outcomes = ()
    if run.pending:
        hints = dataflow.resource_hints(root.options, [settings.models.target, *(path for _, path in settings.drafts)])
        pending = root | "PendingRanges" >> beam.Create(ranges(run.pending))
        if isinstance(source.plan, GenerationsPlan):
            plan = source.plan
            reader = ReadGenerations(plan.folder, fingerprint=plan.fingerprint, num_shards=plan.num_shards)
        else:
            reader = input_reader(run)
        read = ReadShards(output, reader, launch=run.launch, parts=run.parts).with_resource_hints(**hints)
        read = pending | "Read" >> read
        texts = read.shards
        if not isinstance(source.plan, GenerationsPlan):
            longest = run.config.decoding.max_decode_tokens
            references = References(run.models.tokenizer, eos_id=run.models.eos_ids[0], max_tokens=longest)
            texts = texts | "References" >> beam.ParDo(references).with_resource_hints(**hints)
        writer = WriteScores(settings, fingerprint=run.fingerprint, recorded=source.recorded)
        commit = CommitShards(output, writer, parts=run.parts)
        environment = runners.worker_environment(root.options)
        handler = ScoreModelHandler(settings, factory, env_vars=environment, resource_hints=hints)
        scored = texts | "Score" >> RunShards(handler).with_resource_hints(**hints)
        scored = scored | "Commit" >> commit.with_resource_hints(**hints)
        outcomes = (scored.committed, read[FAILED], scored[FAILED])
    facts = {"text": source.facts, "lenience": list(settings.lenience)}
    finish(root, run, outcomes, exact=source.facts["exact"], facts=facts)


# What is said at the end.


def show_summary(console: Console, summary: dict, output: str, seconds: float | None = None) -> None:
    """Prints α of every draft, and where the results are."""
    found = {name: draft for name, draft in summary["drafts"].items() if draft["alpha"]}
    rows = [
        (name, *_estimate(draft["alpha"]), f"{draft['proposed']:.0%}", f"{draft['agreement']['mean']:.3f}")
        for name, draft in found.items()
    ]
    _print_table(console, ("draft", "α", "95% interval", "proposed", "argmaxes agree"), rows)
    if summary["lenience"]:
        values = [f"{value:g}" for value in summary["lenience"]]
        rows = [(name, *(f"{draft['lenient'][value]['mean']:.3f}" for value in values)) for name, draft in found.items()]
        _print_table(console, ("draft", *(f"α at l={value}" for value in values)), rows)
    both = [(name, draft["alpha"], draft["on_policy"]) for name, draft in found.items() if draft["on_policy"]]
    if both:
        rows = [
            (name, f"{alpha['mean']:.3f}", f"{policy['alpha']['mean']:.3f}", *_estimate(policy["difference"], "+"))
            for name, alpha, policy in both
        ]
        _print_table(console, ("draft", "α over the text", "α on policy", "difference", "95% interval"), rows)
        console.print("They differ where acceptance is correlated along a text: docs/alpha_datasets.md", highlight=False)
    for name in summary["drafts"].keys() - found.keys():
        console.print(f"{name} proposed nothing", highlight=False, markup=False)
    console.print(
        f"{summary['texts']:,} texts, {summary['tokens']:,} tokens, {_described(summary['text'])}",
        highlight=False,
        markup=False,
    )
    if summary["errors"]["total"]:
        console.print(f"{summary['errors']['total']:,} texts could not be scored, see errors/", style="bold red")
    if seconds is not None:
        console.print(f"this launch: {seconds:.1f} s, loading and compiling included", highlight=False)
    console.print(f"Output: {output}", soft_wrap=True, highlight=False, markup=False)
    print_missing(console, summary["shards"]["missing"], summary["shards"]["total"])


def _print_table(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not rows:
        return
    table = Table(box=box.SIMPLE_HEAD)
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        add_row(table, *row)
    console.print(table)


def _estimate(found: dict, sign: str = "") -> tuple[str, str]:
    low, high = ("unknown" if end is None else f"{end:{sign}.3f}" for end in (found["low"], found["high"]))
    return f"{found['mean']:{sign}.3f}", f"[{low}, {high}]"


def _described(text: dict) -> str:
    if text["source"] == "references":
        return "references, not the target's own texts"
    kind = "generated by this target" if text["of_target"] else "generated by another model"
    return kind + (" under the same sampling" if text["same_sampling"] else f", sampled with {text['sampling']}")


def main(args: Sequence[str], factory: ScorerFactory | None = None, launch: Launch | None = None) -> int:
    """Runs the command line `args`, which excludes the program's name, in this process. Returns the exit status."""
    build = functools.partial(build_pipeline, factory=factory)
    return run_job(Job(SCORE, __doc__, prepare, build, show_summary), args, launch)


if __name__ == "__main__":
    sys.exit(supervise(lambda args, launch: main(args, launch=launch), sys.argv[1:]))
