"""The settings that a job has, and what each may be."""

import dataclasses
import datetime

from decoding.config import DecodingConfig, parse_mesh
from decoding.registry import DRAFTS, PROMPT_LOOKUP, drafts_of
from decoding.training.recipe import Recipe
from pipeline.settings.typed import require
from transforms.inputs import FILE_FORMATS, FORMATS, ending_of, format_of
from transforms.inputs.base import Cut, InputSpec, RecordFields


@dataclasses.dataclass(frozen=True)
class InputConfig:
    """What is read; docs/inputs.md has the formats.

    Attributes:
      pattern: of formats of files: a path or glob, or several; local or on gs://. Plain, gzip, bzip2, xz or zstd, told by
        content. The very name of a file is that file, whatever it would mean as a glob.
      input_field: the field that holds the text; a dotted path where it lies deeper. "" where the format has one field
        ("text") and for SeqIO ("inputs_pretokenized").
      target_field: the field that holds the reference, "" for none. Records without it have no reference.
      id_field: the field that holds a unique id (text or whole number), "" to name examples by file and record number.
      prefix: put before every text, as the task asks ("translate English to German: "). A SeqIO task has its own.
      chat_template: makes prompts for an instruct model: "model" for the template that comes with it, or Jinja source;
        "" for none. A text may then also be a list of turns; see transforms/chat.py.
      chat_date: what a chat template that asks for today's date is told, YYYY-MM-DD, so that a job that goes on tomorrow
        makes the same prompts; "" for nothing, whereupon most templates leave the date out.
      source_language: code of the inputs' language, for a model that translates between many: "eng_Latn" for NLLB, "en" for
        M2M-100, "en_XX" for mBART; "" for other models.
      target_language: code of the language to translate into; "" for what the model's folder says.
      target_language_field: the field that holds it, where records have their own; "" for one language for all.
      hint_field: fields, one or several, with a text that the output nearly is: an earlier model's answer, an older version,
        a translation memory's match. What is copied from it costs nothing; the output stays what it is. See docs/drafts.md.
      hint_folder: finished folder of `pipeline.generate` whose outputs, by example id, are hints as well.
      empty: of a text that is empty: "error", or "start" to decode from the start token alone (decoder-only models).
      format: "jsonl", "text", "csv", "parquet" or "tfrecord"; "tfds" for a prepared data set; "seqio" for a task or a
        mixture; "" to tell by the pattern's ending.
      delimiter: between the fields of a CSV file; "" for a tab where the pattern ends in .tsv and a comma elsewhere.
      quoting: of a CSV file: "csv" where a field in quotes may hold delimiters, quotes and line ends, as RFC 4180 says,
        "none" where quotes mean nothing; "" for "none" with tabs and "csv" with any other delimiter.
      name: of the TFDS data set ("wmt14_translate/de-en:1.0.0"; "" where data_dir is one), or of the SeqIO task.
      split: of the data set or task; TFDS's may be slices ("test[:1000]").
      data_dir: where TFDS finds prepared data sets, local or on gs://; "" for its default.
      module: Python module whose import registers the SeqIO task, where SpecBeam does not.
    """

    pattern: str | tuple[str, ...] = ""
    input_field: str = ""
    target_field: str = ""
    id_field: str = ""
    prefix: str = ""
    chat_template: str = ""
    chat_date: str = ""
    source_language: str = ""
    target_language: str = ""
    target_language_field: str = ""
    hint_field: str | tuple[str, ...] = ""
    hint_folder: str = ""
    empty: str = "error"
    format: str = ""
    delimiter: str = ""
    quoting: str = ""
    name: str = ""
    split: str = ""
    data_dir: str = ""
    module: str = ""

    def __post_init__(self):
        allowed = ", ".join(f'"{name}"' for name in FORMATS)
        require(self.format in ("", *FORMATS), "input.format", self.format, f'{allowed}, or "" to tell by the file name')
        of_files = self.format in ("", *FILE_FORMATS)
        if of_files:
            ok = bool(self.pattern) and all(self.patterns)
            require(ok, "input.pattern", self.pattern, "a path or glob, or several")
            formats = {format_of(pattern) for pattern in self.patterns}
            told = bool(self.format) or (len(formats) == 1 and None not in formats)
            require(told, "input.format", self.format, f"{allowed}: input.pattern {self.pattern!r} does not tell it")
        else:
            require(not self.pattern, "input.pattern", self.pattern, f'"" with input.format {self.format!r}')
            require(bool(self.split), "input.split", self.split, "the name of a split, for example test")
            ok = bool(self.name) or (self.format == "tfds" and bool(self.data_dir))
            require(ok, "input.name", self.name, "the name of a data set, task or mixture")
            ok = not self.prefix or self.format == "tfds"
            require(ok, "input.prefix", self.prefix, '"" for SeqIO: a task puts its own')
        field = self.target_language_field
        allowed = f'"" where records say it, in {field!r}'
        require(not (self.target_language and field), "input.target_language", self.target_language, allowed)
        require(self.empty in ("error", "start"), "input.empty", self.empty, '"error" or "start"')
        ok = not self.chat_template or self.format != "seqio"
        require(ok, "input.chat_template", self.chat_template, '"" for SeqIO: a task makes its own prompts')
        try:
            ok = not self.chat_date or bool(datetime.date.fromisoformat(self.chat_date))
        except ValueError:
            ok = False
        require(ok, "input.chat_date", self.chat_date, 'a date, YYYY-MM-DD, or ""')
        data_sets = dict.fromkeys(("name", "split", "data_dir"), ("tfds", "seqio"))
        for setting, formats in {**data_sets, "module": ("seqio",)}.items():
            ok = not getattr(self, setting) or self.resolved_format in formats
            require(ok, f"input.{setting}", getattr(self, setting), f'"" with input.format {self.resolved_format!r}')
        require(bool(self.fields.inputs), "input.input_field", self.input_field, "the name of a field")
        ok = self.resolved_format != "text" or self.fields.names() == ["text"]
        require(ok, "input.format", self.format, 'one that has fields: of text, each line is an input, its field "text"')
        ok = len(self.delimiter) <= 1 and self.delimiter not in ('"', "\n", "\r")
        require(ok, "input.delimiter", self.delimiter, 'one character, neither a quote nor a line end, or ""')
        require(self.quoting in ("", "csv", "none"), "input.quoting", self.quoting, '"csv", "none", or "" by the delimiter')

    @property
    def patterns(self) -> tuple[str, ...]:
        return (self.pattern,) if isinstance(self.pattern, str) else self.pattern

    @property
    def resolved_format(self) -> str:
        """`format`, or the one that the pattern's ending tells."""
        return self.format or format_of(self.patterns[0])

    @property
    def resolved_delimiter(self) -> str:
        """`delimiter`, or the one that the pattern's ending tells."""
        of_tabs = bool(self.pattern) and all(ending_of(pattern) == "tsv" for pattern in self.patterns)
        return self.delimiter or ("\t" if of_tabs else ",")

    @property
    def resolved_quoting(self) -> str:
        """`quoting`, or the usual one for the delimiter."""
        return self.quoting or ("none" if self.resolved_delimiter == "\t" else "csv")

    @property
    def fields(self) -> RecordFields:
        default = {"text": "text", "seqio": "inputs_pretokenized"}.get(self.resolved_format, "")
        return RecordFields(
            self.input_field or default, self.target_field, self.id_field, self.target_language_field, self.hint_fields
        )

    @property
    def hint_fields(self) -> tuple[str, ...]:
        names = (self.hint_field,) if isinstance(self.hint_field, str) else self.hint_field
        return tuple(filter(None, names))

    @property
    def num_hints(self) -> int:
        """Hints of an example at most."""
        return len(self.hint_fields) + bool(self.hint_folder)

    def spec(self, tokenizer: str) -> InputSpec:
        """What planning and workers need. `tokenizer` is the file of the target's tokeniser."""
        return InputSpec(
            format=self.resolved_format,
            fields=self.fields,
            patterns=self.patterns if self.pattern else (),
            name=self.name,
            split=self.split,
            data_dir=self.data_dir,
            module=self.module,
            tokenizer=tokenizer if self.resolved_format == "seqio" else "",
            delimiter=self.resolved_delimiter,
            quoting=self.resolved_quoting,
        )

    def __str__(self) -> str:
        if self.pattern:
            return f"input.pattern is {self.pattern!r}"
        return f"input.name is {self.name!r}, input.split {self.split!r}, input.data_dir {self.data_dir!r}"


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which models.

    Attributes:
      target: directory of the target model, local or on gs://, a .gguf file, or the id of a model on the Hugging Face hub,
        perhaps with a revision ("google/flan-t5-xl@main"); see docs/models.md.
      draft: directory or id of the draft model, directory of an n-gram or an index, "prompt_lookup", "uniform",
        several of these with commas between for a cascade, or "" for plain decoding; see docs/drafts.md.
      tokenizer: directory or file of the tokeniser, "" for the target's directory.
      dtype: of the parameters: "float32" or "bfloat16".
      weights: of products: "float32", "bfloat16" or "int8" (one scale per output column), to which they are rounded; "file",
        on a processor, as they are stored; "plain" for arrays of `dtype`; "" to choose what rounds nothing. See docs/models.md.
      draft_weights: the same of the draft's, "" for as `weights` says: "int8" makes a small draft cheaper at the cost of a
        little α, and whatever a draft is rounded to, outputs keep the target's distribution.
      vocab_size: how many tokens may occur, where models are padded beyond their tokeniser's; 0 for all, or where target
        and draft are padded differently for those that are not padding.
      prompt_lookup_max_ngram, prompt_lookup_min_ngram: how many of the last tokens prompt lookup matches.
      draft_min_match: how many of the last tokens have to match for an index to propose something, and in a cascade for a
        draft that copies to be taken.
      draft_vocabulary: folder of an n-gram of the target's texts (`pipeline.fit_ngram`): a draft that is a model guesses the
        tokens that it saw most often alone, and its head is so much cheaper; "" for all tokens. See docs/drafts.md.
      draft_vocabulary_size: how many tokens those are.
      mesh: how a worker's devices share the work: "data:2,model:4" for two groups of slots, each with the target split over
        four devices; the draft is on all of them. "" for one device. See docs/tpu.md.
    """

    target: str
    draft: str = ""
    tokenizer: str = ""
    dtype: str = "float32"
    weights: str = ""
    draft_weights: str = ""
    vocab_size: int = 0
    prompt_lookup_max_ngram: int = 3
    prompt_lookup_min_ngram: int = 1
    draft_min_match: int = 2
    mesh: str = ""
    draft_vocabulary: str = ""
    draft_vocabulary_size: int = 0

    def __post_init__(self):
        size, allowed = self.draft_vocabulary_size, "at least 1 with model.draft_vocabulary, and 0 without"
        require(size >= 1 if self.draft_vocabulary else size == 0, "model.draft_vocabulary_size", size, allowed)
        try:
            parse_mesh(self.mesh or "model:1")
        except ValueError:
            require(False, "model.mesh", self.mesh, '"", or numbers of at least 1, as in "data:2,model:4"')
        require(bool(self.target), "model.target", self.target, "the directory of a model")
        require(self.dtype in ("float32", "bfloat16"), "model.dtype", self.dtype, '"float32" or "bfloat16"')
        allowed = ("", "float32", "bfloat16", "int8", "file", "plain")
        for name in ("weights", "draft_weights"):
            form = getattr(self, name)
            require(form in allowed, f"model.{name}", form, ", ".join(f'"{form}"' for form in allowed))
        ok = self.dtype == "float32" or self.weights in ("", "plain", "int8")
        require(ok, "model.weights", self.weights, '"", "plain" or "int8" with model.dtype bfloat16')
        ok = not self.mesh or self.weights != "file"
        require(ok, "model.weights", self.weights, 'anything but "file" with a model.mesh')
        require(self.vocab_size >= 0, "model.vocab_size", self.vocab_size, "at least 0; 0 for all")
        least, most = self.prompt_lookup_min_ngram, self.prompt_lookup_max_ngram
        require(least >= 1, "model.prompt_lookup_min_ngram", least, "at least 1")
        allowed = f"at least model.prompt_lookup_min_ngram, {least}"
        require(most >= least, "model.prompt_lookup_max_ngram", most, allowed)
        require(1 <= self.draft_min_match <= 8, "model.draft_min_match", self.draft_min_match, "a whole number from 1 to 8")


@dataclasses.dataclass(frozen=True)
class ShardsConfig:
    """How the input is cut.

    Attributes:
      examples_per_shard: records in a work shard, the unit of committing and resuming.
      bytes_per_shard: 0, or bytes in a work shard of an uncompressed JSON lines or text file, which then is not read at
        launch: for inputs of terabytes. Examples are named by the byte at which they begin.
      baseline_fraction: share of the shards that are decoded plainly, chosen by hash of their number, so that
        `pipeline.analyze` can tell the speedup within this very job. Greedy outputs are the same, sampled ones have the
        same law.
    """

    examples_per_shard: int = 256
    bytes_per_shard: int = 0
    baseline_fraction: float = 0.0

    @property
    def cut(self) -> Cut:
        return Cut(self.examples_per_shard, self.bytes_per_shard)

    def __post_init__(self):
        require(self.examples_per_shard >= 1, "shards.examples_per_shard", self.examples_per_shard, "at least 1")
        size = self.bytes_per_shard
        require(size == 0 or size >= 1024, "shards.bytes_per_shard", size, "0, or at least 1024")
        fraction = self.baseline_fraction
        require(0 <= fraction <= 1, "shards.baseline_fraction", fraction, "a number from 0 to 1; 0 is none")


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
    """What `pipeline.score` scores; other jobs do not look at it.

    Attributes:
      generations: folder of a finished `pipeline.generate` run whose texts are scored, "" for the input's references.
      drafts: what is scored, by the name that it has in the output: a directory of a model or of an n-gram, or what
        else `model.draft` may be. Empty for `model.draft` alone, named "draft".
      lenience: values l of section A.5 of the paper that β is reported under as well.
      batch_tokens: tokens that are scored in one pass, about. A pass holds two arrays of so many rows of the vocabulary.
    """

    generations: str = ""
    drafts: dict[str, str] = dataclasses.field(default_factory=dict)
    lenience: tuple[float, ...] = (0.5, 0.3, 0.1)
    batch_tokens: int = 512

    def __post_init__(self):
        for name, path in self.drafts.items():
            allowed = "names of letters, digits and underscores, not beginning with a digit"
            require(name.isascii() and name.isidentifier(), "score.drafts", name, allowed)
            require(bool(path), f"score.drafts.{name}", path, "what model.draft may be")
        distinct = len(set(self.lenience)) == len(self.lenience)
        ok = distinct and all(0 < value < 1 for value in self.lenience)
        require(ok, "score.lenience", self.lenience, "distinct numbers between 0 and 1")
        require(self.batch_tokens >= 1, "score.batch_tokens", self.batch_tokens, "at least 1")


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """How `pipeline.distill` makes a draft; other jobs do not look at it. docs/distill.md.

    Attributes:
      generations: folder of a finished `pipeline.generate` run of the target, or several. "" for the config's input, which
        the target then answers first.
      start: where the draft begins: the directory of a draft; "layers" for layers of the target, evenly spaced; or "new"
        for random layers, with the target's embeddings in as many dimensions as the draft has.
      shape: keys of config.json, in which "layers" (numbers of layers alone) and "new" differ from the target; of a draft,
        what becomes larger before it is trained, without changing its logits.
      recipe: of the training.
      held_out: examples that are kept apart, at most a tenth, for α while it trains.
      evaluate_steps: steps between two looks at α on the held-out texts, and between two checkpoints.
      patience: looks without a better α until training ends early; 0 for all steps.
      dtype: of the written weights: "float32" or "bfloat16".
    """

    generations: str | tuple[str, ...] = ""
    start: str = "new"
    shape: dict[str, int] = dataclasses.field(default_factory=dict)
    recipe: Recipe = dataclasses.field(default_factory=Recipe)
    held_out: int = 400
    evaluate_steps: int = 250
    patience: int = 0
    dtype: str = "float32"

    def __post_init__(self):
        require(bool(self.start), "distill.start", self.start, 'a directory of a draft, "layers" or "new"')
        ok = all(value >= 1 for value in self.shape.values())
        require(ok, "distill.shape", self.shape, "sizes of at least 1")
        require(self.held_out >= 1, "distill.held_out", self.held_out, "at least 1")
        require(self.evaluate_steps >= 1, "distill.evaluate_steps", self.evaluate_steps, "at least 1")
        require(self.patience >= 0, "distill.patience", self.patience, "at least 0; 0 for all steps")
        require(self.dtype in ("float32", "bfloat16"), "distill.dtype", self.dtype, '"float32" or "bfloat16"')

    @property
    def folders(self) -> tuple[str, ...]:
        given = (self.generations,) if isinstance(self.generations, str) else self.generations
        return tuple(filter(None, given))


@dataclasses.dataclass(frozen=True)
class JobConfig:
    """Everything that `pipeline.generate` is told, the output folder and Beam's options aside."""

    input: InputConfig
    model: ModelConfig
    decoding: DecodingConfig = dataclasses.field(default_factory=DecodingConfig)
    shards: ShardsConfig = dataclasses.field(default_factory=ShardsConfig)
    score: ScoreConfig = dataclasses.field(default_factory=ScoreConfig)
    distill: DistillConfig = dataclasses.field(default_factory=DistillConfig)

    def __post_init__(self):
        size = self.shards.bytes_per_shard
        allowed = "0 where input.format is none of jsonl and text, or input.id_field is set: ids are checked at launch"
        ok = self.input.resolved_format in ("jsonl", "text") and not self.input.id_field
        require(not size or ok, "shards.bytes_per_shard", size, allowed)
        # An input then begins with the token that its text has to begin with.
        told = bool(self.input.target_language or self.input.target_language_field)
        first = self.decoding.first_from_input
        require(told or not first, "decoding.first_from_input", first, "false; input.target_language sets it")
        object.__setattr__(self, "decoding", dataclasses.replace(self.decoding, first_from_input=told))
        self._make_room_for_hints()
        gamma = self.decoding.gamma
        require(
            bool(self.model.draft) or gamma == 0, "decoding.gamma", gamma, "0 where model.draft is empty (plain decoding)"
        )

    def _make_room_for_hints(self) -> None:
        hints, room, draft = self.input.num_hints, self.decoding.hint_tokens, self.model.draft
        allowed = "0 where there is neither input.hint_field nor input.hint_folder"
        require(bool(hints) or not room, "decoding.hint_tokens", room, allowed)
        if hints:
            allowed = f'"{PROMPT_LOOKUP}", which "" means here, alone or first of a cascade: other drafts look at no hints'
            first = drafts_of(draft)[0]
            require(first in ("", *DRAFTS.names()) and first != "uniform", "model.draft", draft, allowed)
            object.__setattr__(self, "model", dataclasses.replace(self.model, draft=draft or PROMPT_LOOKUP))
            room = room or hints * (self.decoding.max_decode_tokens + 1) - 1  # one between two
            object.__setattr__(self, "decoding", dataclasses.replace(self.decoding, hint_tokens=room))

    def to_json(self) -> dict:
        return dataclasses.asdict(self)
