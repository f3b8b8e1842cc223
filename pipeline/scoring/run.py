"""The job of `pipeline.score`: its checks, its run, its pipeline."""

import dataclasses
import json
from collections.abc import Mapping

import apache_beam as beam

import decoding
from pipeline.job.preflight import CheckedModels, check_draft, check_models, shared_vocab_size
from pipeline.job.run import Run, code_digest, continue_run, new_manifest, ranges
from pipeline.job.steps import finish, input_reader
from pipeline.runners import options as runners
from pipeline.runners.dataflow import options as dataflow
from pipeline.runners.supervise import Launch
from pipeline.scoring.texts import SAMPLING, GenerationsPlan, Source, find_generations, references
from pipeline.settings import CommandLine, ConfigError, JobConfig
from transforms import storage
from transforms.folder import SCORE, open_folder
from transforms.score import ReadGenerations, References, ScoreModelHandler, ScorerFactory, ScoreSettings
from transforms.shards import FAILED, CommitShards, ReadShards, RunShards
from transforms.statistics.scores import ScoreStatistics
from transforms.tokenize import load_tokenizer
from transforms.write_scores import WriteScores

_LENGTHS = ("input_buckets", "max_decode_tokens")


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
    source = find_generations(config, models, drafts) if config.score.generations else references(config, models, opened)
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
            cut = References(run.models.tokenizer, eos_id=run.models.eos_ids[0], max_tokens=longest)
            texts = texts | "References" >> beam.ParDo(cut).with_resource_hints(**hints)
        writer = WriteScores(settings, fingerprint=run.fingerprint, recorded=source.recorded)
        commit = CommitShards(output, writer, parts=run.parts)
        environment = runners.worker_environment(root.options)
        handler = ScoreModelHandler(settings, factory, env_vars=environment, resource_hints=hints)
        scored = texts | "Score" >> RunShards(handler).with_resource_hints(**hints)
        scored = scored | "Commit" >> commit.with_resource_hints(**hints)
        outcomes = (scored.committed, read[FAILED], scored[FAILED])
    facts = {"text": source.facts, "lenience": list(settings.lenience)}
    finish(root, run, outcomes, exact=source.facts["exact"], facts=facts)
