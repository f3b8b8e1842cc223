"""Everything that can be wrong with models and tokenisers, found from small files before any model is loaded."""

import concurrent.futures
import dataclasses
import difflib
import hashlib
import json
from collections.abc import Sequence

import decoding
from decoding import hub
from decoding.drafts import ngram, suffixes
from decoding.registry import CASCADE, COPYING, DRAFTS, INDEX, LOOKUPS, PROMPT_LOOKUP, drafts_of
from pipeline.job.hints import check_hints
from pipeline.settings import ConfigError, JobConfig, ModelConfig
from transforms import chat, storage
from transforms.encoding import Translation, known
from transforms.hints import HintSettings
from transforms.models import Models
from transforms.tokenize import Tokenizer, TokenizerError, find_languages, find_tokenizer, load_tokenizer

_WHOLE_FILE_BYTES = 256 << 20
_SAMPLES, _SAMPLE_BYTES, _READERS = 64, 1 << 16, 16


@dataclasses.dataclass(frozen=True)
class CheckedModels:
    """What preflight found out.

    Attributes:
      tokenizer: file of the tokeniser.
      tokenizer_sha256: its identity.
      eos_ids: each ends a generation.
      input_eos_id: appended to every input; None for decoder-only models.
      identity: what tells these models' weights from others, for the fingerprint.
      chat_template: makes prompts of texts; None for none.
      empty_id: what an empty text becomes; None makes it an error.
      to_load: the models, as workers load them.
      translation: what stands around inputs; None for a model that does not translate between many languages.
      hints: what becomes of hints, None where the job has none.
    """

    tokenizer: str
    tokenizer_sha256: str
    eos_ids: tuple[int, ...]
    input_eos_id: int | None
    identity: dict
    to_load: Models
    chat_template: chat.ChatTemplate | None = None
    empty_id: int | None = None
    translation: Translation | None = None
    hints: HintSettings | None = None

    @property
    def copies(self) -> bool:
        """Whether the draft copies, so that where its guesses came from is worth a record."""
        return self.identity.get("draft", {}).get("kind") in COPYING


@dataclasses.dataclass(frozen=True)
class CheckedDraft:
    """What tells a draft from others, for the fingerprint, and how many tokens it knows."""

    identity: dict
    vocab_size: int


def check_models(config: JobConfig) -> CheckedModels:
    """Checks that the models are there, share one vocabulary, and have a tokeniser that fits.

    Raises:
      ConfigError: with the setting, its value and what is wrong.
    """
    target = _inspect("model.target", config.model.target)
    path = config.model.tokenizer or config.model.target
    tokenizer = _load_tokenizer("model.tokenizer", path)
    pieces = _known_pieces("model.tokenizer", path, tokenizer, target.vocab_size)
    _check_positions("model.target", config, target)
    draft = None
    if config.model.draft:
        draft = check_draft("model.draft", config.model.draft, config, target, pieces)
    if config.decoding.max_input_tokens < 2:
        raise ConfigError(
            f"decoding.input_buckets is {config.decoding.input_buckets!r}; allowed: a last one of at least 2, "
            "a token and the end of the input"
        )
    identity = {"target": model_identity(config.model.target, target)}
    if draft is not None:
        identity["draft"] = draft.identity
    vocab_size = shared_vocab_size(config.model, target, [draft] if draft else [], pieces)
    if vocab_size is not None:
        identity["vocab_size"] = vocab_size
    found = find_tokenizer(path)
    return CheckedModels(
        tokenizer=found,
        tokenizer_sha256=tokenizer.sha256,
        eos_ids=target.eos_ids,
        input_eos_id=target.eos_id if target.encoder_decoder else None,
        identity=identity,
        to_load=models_of(config.model, vocab_size),
        chat_template=_check_chat_template(config, target, found),
        empty_id=_check_empty(config, target),
        translation=_check_languages(config, target, found, tokenizer),
        hints=check_hints(config, tokenizer.sha256, target.eos_ids[0]),
    )


def models_of(config: ModelConfig, vocab_size: int | None = None) -> Models:
    """What the settings say is to be loaded."""
    return Models(
        target=config.target,
        draft=config.draft,
        dtype=config.dtype,
        vocab_size=vocab_size,
        max_ngram=config.prompt_lookup_max_ngram,
        min_ngram=config.prompt_lookup_min_ngram,
        min_match=config.draft_min_match,
        mesh=config.mesh,
        weights=config.weights,
        draft_weights=config.draft_weights,
        draft_vocabulary=config.draft_vocabulary,
        draft_vocabulary_size=config.draft_vocabulary_size,
    )


def _known_pieces(setting: str, path: str, tokenizer: Tokenizer, vocab_size: int) -> list[str]:
    """The pieces that a model has rows for.

    Tokens added beyond them, such as a padding token that no input has, do no harm; a record that contains one is that
    record's error. A vocabulary that is larger by itself belongs to another model.
    """
    if tokenizer.size > vocab_size:
        raise ConfigError(
            f"{setting} is {path!r} with {tokenizer.size} pieces; allowed: at most the target's vocabulary of {vocab_size}"
        )
    return tokenizer.pieces()[:vocab_size]


def _check_positions(setting: str, config: JobConfig, info: decoding.CheckpointInfo) -> None:
    longest, most = config.decoding.max_input_tokens, config.decoding.max_decode_tokens
    needed, together = (max(longest, most), "each") if info.encoder_decoder else (longest + most, "together")
    if info.max_positions and needed > info.max_positions:
        raise ConfigError(
            f"decoding.input_buckets is up to {longest} and decoding.max_decode_tokens {most}; allowed: {info.max_positions} "
            f"{together}, the positions of {setting}"
        )


def _check_chat_template(config: JobConfig, target: decoding.CheckpointInfo, tokenizer: str) -> chat.ChatTemplate | None:
    setting = config.input.chat_template
    if not setting:
        return None
    if target.encoder_decoder:
        raise ConfigError(f'input.chat_template is {setting!r}; allowed: "" for an encoder-decoder model')
    try:
        template = dataclasses.replace(chat.find_template(tokenizer, setting), date=config.input.chat_date or None)
        chat.render(template, [{"role": "user", "content": "A text."}])
    except (OSError, ValueError) as error:
        hint = "; input.chat_date says what it shows" if "'strftime_now' is undefined" in str(error) else ""
        raise ConfigError(f"input.chat_template is {setting!r}: {error}{hint}") from error
    return template


def _check_empty(config: JobConfig, target: decoding.CheckpointInfo) -> int | None:
    if config.input.empty == "error":
        return None
    if target.encoder_decoder:
        raise ConfigError(f'input.empty is {config.input.empty!r}; allowed: "error" for an encoder-decoder model')
    return target.start_id


def _check_languages(
    config: JobConfig, target: decoding.CheckpointInfo, path: str, tokenizer: Tokenizer
) -> Translation | None:
    found = find_languages(path, tokenizer) if target.encoder_decoder else None
    source, language, field = config.input.source_language, config.input.target_language, config.input.target_language_field
    if found is None:
        for setting, value in (("source_language", source), ("target_language", language), ("target_language_field", field)):
            if value:
                raise ConfigError(f'input.{setting} is {value!r}; allowed: "" for a model without tokens for languages')
        return None
    allowed = known(found.ids)
    if source not in found.ids:
        raise ConfigError(f"input.source_language is {source!r}; allowed: {allowed}")
    if target.start_id in found.ids.values():  # mBART's: whatever is first, texts begin with it
        if language or field:
            raise ConfigError(f'input.target_language is {language or field!r}; allowed: "": the start token is a language')
    elif language and language not in found.ids:
        raise ConfigError(f"input.target_language is {language!r}; allowed: {allowed}")
    elif not (language or field) and target.forced_bos_id is None:
        raise ConfigError(f'input.target_language is ""; allowed: {allowed}, or input.target_language_field')
    return Translation(found.ids[source], found.after, found.ids.get(language), found.ids if field else {})


def check_draft(
    setting: str, draft: str, config: JobConfig, target: decoding.CheckpointInfo, pieces: Sequence[str]
) -> CheckedDraft:
    """Checks that a draft is there, deals in the target's tokens and takes texts as long as the job's.

    Args:
      setting: where it comes from, for messages.
      draft: what `decoding.load_draft` takes, "" excepted.
      config: the job's settings.
      target: the target.
      pieces: of its tokeniser.

    Raises:
      ConfigError: with the setting, its value and what is wrong.
    """
    model = config.model
    if len(names := drafts_of(draft)) > 1:
        found = [check_draft(setting, one, config, target, pieces) for one in names]
        if not all(one.identity.get("kind") in (PROMPT_LOOKUP, INDEX) for one in found[:-1]):
            raise ConfigError(f'{setting} is {draft!r}; allowed before a comma: "{PROMPT_LOOKUP}" or the directory of an index')
        identity = {"kind": CASCADE, "drafts": [one.identity for one in found], "min_match": model.draft_min_match}
        return CheckedDraft(identity, found[-1].vocab_size)
    if draft in LOOKUPS:
        lengths = {"max_ngram": model.prompt_lookup_max_ngram, "min_ngram": model.prompt_lookup_min_ngram}
        return CheckedDraft({"kind": PROMPT_LOOKUP, **lengths}, target.vocab_size)
    if draft in DRAFTS:
        return CheckedDraft({"kind": draft}, target.vocab_size)
    try:
        with storage.store_errors(draft):
            table = next((kind for kind, is_there in _TABLES.items() if is_there(draft)), None)
            info = table.read_info(draft) if table else decoding.inspect_checkpoint(draft)
    except (decoding.CheckpointError, OSError) as error:
        close = difflib.get_close_matches(draft.rsplit("/", 1)[-1], DRAFTS.names(), 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"{setting} is {draft!r}: {error}{hint}") from error
    name = "start_id" if table else "encoder_decoder"
    mine, other = getattr(target, name), getattr(info, name)
    if mine != other:
        raise ConfigError(
            f"{setting} is {draft!r}, whose {name} is {other}; allowed: a draft with that of {model.target!r}, {mine}"
        )
    ends = (info.eos_id,) if table else info.eos_ids
    if not set(ends) & set(target.eos_ids):
        raise ConfigError(
            f"{setting} is {draft!r}, whose eos_id is {' or '.join(map(str, ends))}; allowed: a draft with an end token of "
            f"{model.target!r}, {' or '.join(map(str, target.eos_ids))}"
        )
    if table:
        known = info.about.get("pieces_sha256") == pieces_sha256(pieces)
        if not known and "pieces_sha256" in info.about:
            raise ConfigError(
                f"{setting} is {draft!r}, which was fitted with another tokeniser than that of {model.target!r}; allowed: "
                f"one made with the same one (python -m pipeline.{'fit_ngram' if table is ngram else 'fit_index'})"
            )
        identity = {table.FILE: _digest(storage.join(draft, table.FILE))}
        identity |= {"kind": INDEX, "min_match": model.draft_min_match} if table is suffixes else {}
    else:
        # A tokeniser that was named apart is taken to be both models', unless their sizes raise the question.
        known = (not model.tokenizer or info.vocab_size != target.vocab_size) and bool(find_tokenizer(draft))
        if known:
            _check_same_pieces(setting, draft, model.target, pieces, _load_tokenizer(setting, draft).pieces())
        identity = model_identity(draft, info)
        if model.draft_vocabulary:
            identity["vocabulary"] = _check_vocabulary(model, target, pieces)
        _check_positions(setting, config, info)
    if info.vocab_size != target.vocab_size and (not known or info.vocab_size < len(pieces)):
        raise ConfigError(
            f"{setting} is {draft!r}, whose vocab_size is {info.vocab_size}; allowed: the target's, {target.vocab_size}, "
            f"or another with the target's tokeniser of {len(pieces)} pieces beside it, which shows "
            "that the rest is padding"
        )
    return CheckedDraft(identity, info.vocab_size)


_TABLES = {ngram: ngram.is_ngram, suffixes: suffixes.is_index}


def _check_vocabulary(model: ModelConfig, target: decoding.CheckpointInfo, pieces: Sequence[str]) -> dict:
    """Checks `model.draft_vocabulary`. Returns its identity.

    Raises:
      ConfigError: with the setting, its value and what is wrong.
    """
    folder, size = model.draft_vocabulary, model.draft_vocabulary_size
    try:
        with storage.store_errors(folder):
            info = ngram.read_info(folder)
    except (decoding.CheckpointError, OSError) as error:
        raise ConfigError(f"model.draft_vocabulary is {folder!r}: {error}") from error
    if info.vocab_size != target.vocab_size or info.about.get("pieces_sha256", pieces_sha256(pieces)) != pieces_sha256(pieces):
        raise ConfigError(
            f"model.draft_vocabulary is {folder!r}, which was fitted with another tokeniser than that of {model.target!r}; "
            'allowed: an n-gram fitted with the same one (python -m pipeline.fit_ngram), or "" for drafts of all tokens'
        )
    if size > target.vocab_size:
        raise ConfigError(f"model.draft_vocabulary_size is {size}; allowed: 1 to {target.vocab_size}, the target's vocabulary")
    return {"digest": _digest(storage.join(folder, ngram.FILE)), "size": size}


def shared_vocab_size(
    config: ModelConfig, target: decoding.CheckpointInfo, drafts: Sequence[CheckedDraft], pieces: Sequence[str]
) -> int | None:
    """`Models.vocab_size`: the setting, or where sizes differ the number of tokens that are not padding.

    For an encoder-decoder model that is what all models have: T5's sentinel tokens lie beyond its tokeniser's pieces.

    Raises:
      ConfigError: the setting is more than a model has, or would cut a special token off.
    """
    sizes = [target.vocab_size, *(draft.vocab_size for draft in drafts)]
    special = max(target.start_id, *target.eos_ids) + 1
    if config.vocab_size:
        if not special <= config.vocab_size <= min(sizes):
            raise ConfigError(
                f"model.vocab_size is {config.vocab_size}; allowed: {special}, which has the special tokens, to "
                f"{min(sizes)}, which all models have, or 0"
            )
        return config.vocab_size
    if min(sizes) == max(sizes):
        return None
    return min(sizes) if target.encoder_decoder else max(len(pieces), special)


def pieces_sha256(pieces: Sequence[str]) -> str:
    """Identity of a vocabulary, whatever the tokeniser's file format."""
    return hashlib.sha256(json.dumps(list(pieces)).encode()).hexdigest()


def _inspect(setting: str, path: str) -> decoding.CheckpointInfo:
    try:
        with storage.store_errors(path):
            return decoding.inspect_checkpoint(path)
    except (decoding.CheckpointError, OSError) as error:
        raise ConfigError(f"{setting} is {path!r}: {error}") from error


def _load_tokenizer(setting: str, path: str) -> Tokenizer:
    try:
        return load_tokenizer(path)
    except TokenizerError as error:
        raise ConfigError(f"{setting}: {error}") from error


def _check_same_pieces(setting: str, path: str, target_path: str, target: list[str], draft: list[str]) -> None:
    if target == draft:
        return
    length = min(len(target), len(draft))
    first = next((i for i in range(length) if target[i] != draft[i]), length)
    shown = [repr(pieces[first]) if first < len(pieces) else "missing" for pieces in (target, draft)]
    raise ConfigError(
        f"{setting} is {path!r}, whose tokeniser differs from the target's: piece {first} is {shown[1]} there and "
        f"{shown[0]} in {target_path!r}; allowed: a draft with the same tokeniser"
    )


def model_identity(path: str, info: decoding.CheckpointInfo) -> dict:
    """Digests of a model's config and weight files, by their path below `path`, and the commit of one from the hub.

    A launch must not read 44 GB, nor 500 files block by block: see `_digest`.
    """
    configs = [storage.join(path, name) for name in ("config.json", "generation_config.json")]
    files = [*filter(storage.exists, configs), *info.weight_files]
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        digests = pool.map(lambda file: _digest(file, len(info.weight_files)), files)
        found = {_below(path, file): digest for file, digest in zip(files, digests)}
    commit = hub.commit_of(path)
    return {**found, "commit": commit} if commit else found


def _below(path: str, file: str) -> str:
    folder = path.rstrip("/") + "/"
    return file.removeprefix(folder) if file.startswith(folder) else file.rsplit("/", 1)[-1]


def _digest(path: str, files: int = 1) -> str:
    """Digest of a file that is one of so many.

    All files together of up to 256 MB are hashed whole, each having an equal share of that. Of a larger file its size,
    beginning, end and up to 64 blocks spread evenly over it are: training changes every block.
    """
    digest, samples = hashlib.sha256(), max(1, _SAMPLES // files)
    with storage.open_raw(path) as stream:
        size = stream.seek(0, 2)
        size = stream.tell() if size is None else size
        stream.seek(0)
        if size <= _WHOLE_FILE_BYTES // files:
            while block := stream.read(1 << 22):
                digest.update(block)
            return digest.hexdigest()
        digest.update(str(size).encode())
        for i in range(samples + 1):
            stream.seek(max(0, size - _SAMPLE_BYTES) * i // samples)
            digest.update(stream.read(_SAMPLE_BYTES))
    return "sampled-" + digest.hexdigest()
