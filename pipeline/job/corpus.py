"""The texts that drafts are made of without training: the config's input, or what a finished run generated."""

import dataclasses
from typing import Any

import decoding
from decoding import CheckpointInfo
from decoding.version import __version__
from pipeline.job.pinning import pin_models
from pipeline.job.preflight import CheckedModels, check_models, pieces_sha256
from pipeline.job.run import plan_of
from pipeline.settings import ConfigError, JobConfig
from transforms import storage
from transforms.folder import GENERATE, FolderError, open_finished
from transforms.ngram import ReadGenerations, ReadTexts
from transforms.tokenize import load_tokenizer

_EXAMPLES_PER_SHARD = 1024


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Texts, and whose they are.

    Attributes:
      items: shard numbers, or paths of parts.
      reader: makes `transforms.ngram.Texts` of them.
      model: the target's vocab_size, start_id and eos_id.
      about: where they come from, to be kept with what is made of them.
    """

    items: tuple
    reader: ReadTexts | ReadGenerations
    model: dict[str, int]
    about: dict[str, Any]


def find_corpus(config: JobConfig, output: str, generations: str = "", text_field: str = "") -> Corpus:
    """The texts of a job's target: those of the config's input, or what a finished run generated.

    Args:
      config: with the target, and the input.
      output: folder of the job, which is not read.
      generations: folder of `pipeline.generate`, "" for the input.
      text_field: of the input's records, "" for the reference or, where there is none, the text.

    Raises:
      ConfigError, FolderError: with the setting, its value and what is allowed.
    """
    config = pin_models(config)
    models, target = check_models(config), decoding.inspect_checkpoint(config.model.target)
    reader: ReadTexts | ReadGenerations
    if generations:
        items, source = _parts(generations, models)
        reader = ReadGenerations(target.start_id if target.encoder_decoder else None, source["fingerprint"])
    else:
        items, source, reader = _shards(config, output, text_field, models, target)
    pieces = load_tokenizer(models.tokenizer).pieces()
    return Corpus(
        items,
        reader,
        {
            "vocab_size": models.to_load.vocab_size or target.vocab_size,
            "start_id": target.start_id,
            "eos_id": target.eos_id,
        },
        {"specbeam": __version__, "source": source, "pieces_sha256": pieces_sha256(pieces)},
    )


def refuse_foreign(output: str, *own: str) -> None:
    """What was made there before, of these names or folders, is replaced; a model's or a run's folder is not written into.

    Raises:
      FolderError: there is something else.
    """
    try:
        foreign = sorted(name for name in storage.list_tree(output) if name.split("/")[0] not in own)
    except OSError as error:
        raise FolderError(f"the output folder {output!r} cannot be read: {error}") from error
    if foreign:
        raise FolderError(f"the output folder {output!r} holds other files, for example {foreign[0]!r}; give one of its own")


def _parts(folder: str, models: CheckedModels) -> tuple[tuple[str, ...], dict]:
    """Paths of all parts of a finished generations folder, and what it is."""
    opened = open_finished(folder, GENERATE, what="--generations:")
    manifest = opened.manifest
    if manifest.identity["model"]["tokenizer"] != models.tokenizer_sha256:
        raise ConfigError(
            f"--generations is {folder!r}, which was generated with another tokeniser than that of the config's target"
        )
    paths = tuple(opened.folder.path(name) for name in manifest.part_names())
    return paths, {"kind": "generations", "fingerprint": manifest.fingerprint}


def _shards(
    config: JobConfig, output: str, text_field: str, models: CheckedModels, target: CheckpointInfo
) -> tuple[tuple[int, ...], dict, ReadTexts]:
    """Numbers of the input's shards, what it is, and what reads it."""
    field = text_field or config.input.target_field or config.input.fields.inputs
    config = dataclasses.replace(
        config,
        input=dataclasses.replace(config.input, input_field=field, target_field="", id_field="", prefix=""),
        shards=dataclasses.replace(config.shards, examples_per_shard=_EXAMPLES_PER_SHARD),
    )
    plan, spec = plan_of(config, models, output=output), config.input.spec(models.tokenizer)
    reader = ReadTexts(plan, spec, models.tokenizer, start_id=target.start_id, eos_id=target.eos_id)
    files = [{"name": file.name, "digest": file.digest} for file in plan.files]
    return tuple(range(plan.num_shards)), {"kind": "text", "field": field, "files": files}, reader
