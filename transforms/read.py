"""Reading one work shard: every one of its records becomes an example or an error, never an exception."""

import dataclasses

import numpy as np
from apache_beam.metrics import Metrics

from transforms import chat, records
from transforms.encoding import NoTokensError, Translation, encode_text
from transforms.folder import read_manifest
from transforms.hints import EarlierOutputs, HintSettings, encode_hints
from transforms.inputs import read_records
from transforms.inputs.base import InputSpec
from transforms.inputs.texts import TextRecord, read_text
from transforms.plan import Plan, ShardTable
from transforms.records import Example, ExampleError, TokenizedShard, WorkShard
from transforms.storage import OutputFolder
from transforms.tokenize import Tokenizer, load_tokenizer


def read_shard(
    work: WorkShard,
    spec: InputSpec,
    tokenizer: Tokenizer,
    *,
    prefix: str,
    eos_id: int | None,
    max_input_tokens: int,
    chat_template: chat.ChatTemplate | None = None,
    empty_id: int | None = None,
    translation: Translation | None = None,
    hints: HintSettings | None = None,
    earlier: EarlierOutputs | None = None,
    attempt: int = 1,
) -> TokenizedShard:
    """Reads and tokenises one shard.

    Args:
      work: what to read.
      spec: the input that it is of.
      tokenizer: of the target model.
      prefix: put before every text, as the task asks.
      eos_id: appended to every input and kept when it is cut; None appends nothing (decoder-only models).
      max_input_tokens: longest input; longer ones are cut and flagged.
      chat_template: makes prompts of texts, where given.
      empty_id: what an empty text becomes; None makes it an error.
      translation: for a model of many languages.
      hints: what becomes of hints, None where there are none.
      earlier: finds those that are an earlier run's outputs.
      attempt: passed on.
    """
    examples, errors, texts = [], [], {}
    may = {"may_be_empty": empty_id is not None, "may_be_list": chat_template is not None}
    for raw in read_records(work, spec):
        record = read_text(raw, spec, lambda ids: tokenizer.decode(ids), **may)
        if isinstance(record, TextRecord):
            texts[record.example_id] = record.hints
            record = _tokenize(record, tokenizer, prefix, eos_id, max_input_tokens, chat_template, empty_id, translation)
        (errors if isinstance(record, ExampleError) else examples).append(record)
    if hints is not None:
        examples = encode_hints(examples, texts, tokenizer, hints, earlier, work.shard)
    return TokenizedShard(work, attempt, tuple(examples), tuple(errors))


def _tokenize(
    record: TextRecord,
    tokenizer: Tokenizer,
    prefix: str,
    eos_id: int | None,
    max_input_tokens: int,
    chat_template: chat.ChatTemplate | None,
    empty_id: int | None,
    translation: Translation | None,
) -> Example | ExampleError:
    def failed(error_type: str, message: str) -> ExampleError:
        return records.example_error(
            record.example_id, record.index, records.TOKENIZE, error_type, message, record.place, record.raw
        )

    try:
        tokens, truncated = encode_text(
            record.inputs if record.tokens is None else record.tokens,
            tokenizer,
            prefix=prefix,
            eos_id=eos_id,
            max_input_tokens=max_input_tokens,
            chat_template=chat_template,
            empty_id=empty_id,
            translation=translation,
            language=record.language,
        )
    except NoTokensError as error:
        return failed("NoTokens", str(error))
    except Exception as error:  # whatever a tokeniser's library raises concerns this record only
        return failed(type(error).__name__, str(error))
    tokens = np.asarray(tokens, np.int32)
    return Example(
        example_id=record.example_id,
        index=record.index,
        inputs=record.inputs,
        targets=record.targets,
        tokens=tokens,
        truncated=truncated,
        place=record.place,
        record=record.raw[: records.MAX_RECORD_CHARS + 1],
    )


@dataclasses.dataclass(frozen=True)
class ReadSettings:
    """What `ReadInput` needs besides the list of work shards; see `read_shard`."""

    spec: InputSpec
    tokenizer: str
    prefix: str
    eos_id: int | None
    max_input_tokens: int
    chat_template: chat.ChatTemplate | None = None
    empty_id: int | None = None
    translation: Translation | None = None
    hints: HintSettings | None = None


class ReadInput:
    """A `ShardReader` of the shards of an input, which it looks up in the run's manifest: `TokenizedShard`s."""

    def __init__(self, settings: ReadSettings):
        self._settings = settings

    def setup(self, folder: OutputFolder) -> None:
        plan = Plan.from_json(read_manifest(folder).plan)
        self.num_shards, self._table = plan.num_shards, ShardTable(plan)
        self._tokenizer = load_tokenizer(self._settings.tokenizer)
        self._earlier = EarlierOutputs.of(self._settings.hints)

    def read(self, shard: int, attempt: int) -> TokenizedShard:
        settings = self._settings
        tokenized = read_shard(
            self._table[shard],
            settings.spec,
            self._tokenizer,
            prefix=settings.prefix,
            eos_id=settings.eos_id,
            max_input_tokens=settings.max_input_tokens,
            chat_template=settings.chat_template,
            empty_id=settings.empty_id,
            translation=settings.translation,
            hints=settings.hints,
            earlier=self._earlier,
            attempt=attempt,
        )
        Metrics.counter("specbeam", "examples_read").inc(len(tokenized.examples))
        Metrics.counter("specbeam", "examples_truncated").inc(sum(e.truncated for e in tokenized.examples))
        if settings.hints is not None:
            Metrics.counter("specbeam", "examples_hinted").inc(sum(bool(e.hints) for e in tokenized.examples))
            Metrics.counter("specbeam", "hints_cut").inc(sum(e.hints_cut for e in tokenized.examples))
        for error in tokenized.errors:
            Metrics.counter("specbeam", f"errors_{error.stage}").inc()
        return tokenized
