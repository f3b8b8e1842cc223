"""Everything that a training is made of, checked before it begins."""

import dataclasses
import json

import decoding
from decoding import sharding
from decoding.checkpoints import CheckpointError
from decoding.training.recipe import Law
from decoding.training.trainer import Trainer
from decoding.training.weights import Weights
from decoding.version import __version__
from pipeline.convert import BESIDE_TOKENIZER
from pipeline.distilling.texts import Texts, law_of, read_texts
from pipeline.job.pinning import pin_models
from pipeline.job.preflight import CheckedModels, check_draft, check_models
from pipeline.job.seen import code_digest
from pipeline.settings import ConfigError, JobConfig
from transforms import storage
from transforms.folder import GENERATE, FolderError, OpenedFolder, open_finished
from transforms.tokenize import NAMES, load_tokenizer


@dataclasses.dataclass(frozen=True)
class Distillation:
    """A training, ready to begin or to go on.

    Attributes:
      config, output: of the command.
      identity: what determines the weights, as JSON values.
      laws: of the texts, in the order in which their α is told.
      texts, held_out: what is trained on, and what α is measured on.
      left_out: texts that fit no class of lengths.
      start: the draft before the first step.
      trainer: compiles its steps when they are first taken.
      beside: files for the draft's directory, by name.
    """

    config: JobConfig
    output: str
    identity: dict
    laws: tuple[Law, ...]
    texts: Texts
    held_out: Texts
    left_out: int
    start: Weights
    trainer: Trainer
    beside: dict[str, bytes]


def prepare(config: JobConfig, output: str) -> Distillation:
    """Checks models and texts, reads both, and makes the draft to begin with.

    Raises:
      ConfigError: a setting is wrong.
      FolderError: a folder is not one of the target's texts.
    """
    config = pin_models(config)
    # Its head is trained whole: which tokens it guesses is for those who use it.
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, draft_vocabulary="", draft_vocabulary_size=0))
    settings, model = config.distill, config.model
    alone = dataclasses.replace(
        config, model=dataclasses.replace(model, draft=""), decoding=dataclasses.replace(config.decoding, gamma=0)
    )
    models = check_models(alone)
    data, ways = sharding.parse_mesh(model.mesh) if model.mesh else (1, 1)
    if ways != 1:
        raise ConfigError(f'model.mesh is {model.mesh!r}; allowed: "data:N", since a training shares out texts alone')
    opened = [_open(folder, models) for folder in settings.folders]
    start, beginning = _start(config, models)
    identity = {
        "target": models.identity["target"],
        "start": beginning,
        "texts": [folder.manifest.fingerprint for folder in opened],
        "recipe": dataclasses.asdict(settings.recipe),
        **{name: getattr(settings, name) for name in ("shape", "held_out", "evaluate_steps", "patience", "dtype")},
        **{name: getattr(config.decoding, name) for name in ("input_buckets",)},
        "model": {"dtype": model.dtype, "mesh": model.mesh},
        "specbeam": __version__,
        "code": code_digest(),
    }
    texts, held_out = read_texts(opened, settings.held_out)
    target = decoding.load_model(model.target, dtype=model.dtype, weights="plain")
    trainer = Trainer(
        target,
        start,
        settings.recipe,
        buckets=config.decoding.input_buckets,
        longest=max(folder.manifest.identity["decoding"]["max_decode_tokens"] for folder in opened),
        mesh=sharding.make_mesh(data, 1) if data > 1 else None,
    )
    fitting = [part.only(trainer.fits) for part in (texts, held_out)]
    if not all(part.texts for part in fitting):
        numbers = " and ".join(f"{len(part.texts)}" for part in fitting)
        raise ConfigError(
            f"distill.generations is {settings.generations!r} with {numbers} texts to train on and held out; allowed: some of "
            "each, from at least 10 examples"
        )
    return Distillation(
        config=config,
        output=output,
        identity=json.loads(json.dumps(identity)),
        laws=tuple(dict.fromkeys(map(law_of, opened))),
        texts=fitting[0],
        held_out=fitting[1],
        left_out=sum(len(part.texts) for part in (texts, held_out)) - sum(len(part.texts) for part in fitting),
        start=start,
        trainer=trainer,
        beside=_files_beside(model.tokenizer or model.target),
    )


def _open(path: str, models: CheckedModels) -> OpenedFolder:
    opened = open_finished(path, GENERATE, what="distill.generations:")
    identity = opened.manifest.identity["model"]
    if identity["target"] != models.identity["target"] or identity["tokenizer"] != models.tokenizer_sha256:
        raise FolderError(f"distill.generations: {path!r} has texts of another target; allowed: those of model.target")
    return opened


def _start(config: JobConfig, models: CheckedModels) -> tuple[Weights, str | dict]:
    """The draft before the first step, and what it is, as JSON values."""
    settings, model = config.distill, config.model
    try:
        if settings.start not in ("layers", "new"):
            target = decoding.inspect_checkpoint(model.target)
            pieces = load_tokenizer(models.tokenizer).pieces()
            identity = check_draft("distill.start", settings.start, config, target, pieces).identity
            draft = Weights.read(settings.start)
            return draft.grown(settings.shape, settings.recipe.seed) if settings.shape else draft, identity
        if not settings.shape:
            raise ConfigError(f"distill.shape is {{}}; allowed with distill.start {settings.start!r}: what the draft has less "
                              "of than the target, for example --config.distill.shape.num_layers=1")  # fmt: skip
        target = Weights.read(model.target)
        if unknown := sorted(settings.shape.keys() - target.raw.keys()):
            raise ConfigError(f"distill.shape has {unknown[0]!r}; allowed: keys of the target's config.json")
        if settings.start == "layers":
            return Weights.of_layers(target, settings.shape), "layers"
        return Weights.new({**target.raw, **settings.shape}, settings.recipe.seed, target), "new"
    except CheckpointError as error:
        raise ConfigError(f"distill.start is {settings.start!r} with distill.shape {settings.shape!r}: {error}") from error


def _files_beside(path: str) -> dict[str, bytes]:
    """The tokeniser's files, and what else belongs to a model's directory."""
    folder = path.rpartition("/")[0] if path.endswith((".model", ".json")) else path
    files = {name: storage.join(folder, name) for name in (*NAMES, *BESIDE_TOKENIZER)}
    return {name: storage.read_bytes(file) for name, file in files.items() if storage.exists(file)}
