"""Everything that can be wrong with models and tokenisers, found from small files before any model is loaded."""

import dataclasses
import hashlib

import decoding
from pipeline.config import ConfigError, JobConfig
from transforms import chat, storage
from transforms.tokenize import Tokenizer, TokenizerError, find_tokenizer, load_tokenizer

_WHOLE_FILE_BYTES = 256 << 20
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 16


@dataclasses.dataclass(frozen=True)
class CheckedModels:
    """What preflight found out.

    Attributes:
      tokenizer: file of the tokeniser.
      tokenizer_sha256: its identity.
      eos_id: ends a generation.
      input_eos_id: appended to every input; None for decoder-only models.
      identity: what tells these models' weights from others, for the fingerprint.
      chat_template: makes prompts of texts; None for none.
      empty_id: what an empty text becomes; None makes it an error.
    """

    tokenizer: str
    tokenizer_sha256: str
    eos_id: int
    input_eos_id: int | None
    identity: dict
    chat_template: chat.ChatTemplate | None = None
    empty_id: int | None = None


def check_models(config: JobConfig) -> CheckedModels:
    """Checks that the models are there, share one vocabulary, and have a tokeniser that fits.

    Raises:
      ConfigError: with the setting, its value and what is wrong.
    """
    target = _inspect("model.target", config.model.target)
    draft = _inspect("model.draft", config.model.draft) if config.model.draft else None
    if draft is not None:
        for name in ("vocab_size", "eos_id"):
            mine, other = getattr(target, name), getattr(draft, name)
            if mine != other:
                raise ConfigError(
                    f"model.draft is {config.model.draft!r}, whose {name} is {other}; allowed: a draft with the "
                    f"target's vocabulary ({name} {mine} in {config.model.target!r})"
                )
    path = config.model.tokenizer or config.model.target
    tokenizer = _load_tokenizer("model.tokenizer", path)
    pieces = tokenizer.pieces()
    if len(pieces) > target.vocab_size:
        raise ConfigError(
            f"model.tokenizer is {path!r} with {len(pieces)} pieces; allowed: at most the target's vocabulary of "
            f"{target.vocab_size}"
        )
    if draft is not None and not config.model.tokenizer and find_tokenizer(config.model.draft):
        _check_same_pieces(config, pieces, _load_tokenizer("model.draft", config.model.draft).pieces())
    if config.decoding.max_input_tokens < 2:
        raise ConfigError(
            f"decoding.input_buckets is {config.decoding.input_buckets!r}; allowed: a last one of at least 2, "
            "a token and the end of the input"
        )
    identity = {"target": model_identity(config.model.target, target)}
    if draft is not None:
        identity["draft"] = model_identity(config.model.draft, draft)
    found = find_tokenizer(path)
    return CheckedModels(
        found, tokenizer.sha256, target.eos_id, target.eos_id if target.encoder_decoder else None, identity,
        chat_template=_check_chat_template(config, target, found),
        empty_id=_check_empty(config, target),
    )  # fmt: skip


def _check_chat_template(config: JobConfig, target: decoding.CheckpointInfo, tokenizer: str) -> chat.ChatTemplate | None:
    setting = config.input.chat_template
    if not setting:
        return None
    if target.encoder_decoder:
        raise ConfigError(f'input.chat_template is {setting!r}; allowed: "" for an encoder-decoder model')
    try:
        template = chat.find_template(tokenizer) if setting == chat.OWN else chat.ChatTemplate(setting)
        chat.render(template, [{"role": "user", "content": "A text."}])
    except (chat.ChatError, ValueError) as error:
        raise ConfigError(f"input.chat_template is {setting!r}: {error}") from error
    return template


def _check_empty(config: JobConfig, target: decoding.CheckpointInfo) -> int | None:
    if config.input.empty == "error":
        return None
    if target.encoder_decoder:
        raise ConfigError(f'input.empty is {config.input.empty!r}; allowed: "error" for an encoder-decoder model')
    return target.start_id


def _inspect(setting: str, path: str) -> decoding.CheckpointInfo:
    try:
        return decoding.inspect_checkpoint(path)
    except (decoding.CheckpointError, OSError) as error:
        raise ConfigError(f"{setting} is {path!r}: {error}") from error


def _load_tokenizer(setting: str, path: str) -> Tokenizer:
    try:
        return load_tokenizer(path)
    except TokenizerError as error:
        raise ConfigError(f"{setting}: {error}") from error


def _check_same_pieces(config: JobConfig, target: list[str], draft: list[str]) -> None:
    if target == draft:
        return
    length = min(len(target), len(draft))
    first = next((i for i in range(length) if target[i] != draft[i]), length)
    shown = [repr(pieces[first]) if first < len(pieces) else "missing" for pieces in (target, draft)]
    raise ConfigError(
        f"model.draft is {config.model.draft!r}, whose tokeniser differs from the target's: piece {first} is "
        f"{shown[1]} there and {shown[0]} in {config.model.target!r}; allowed: a draft with the same tokeniser"
    )


def model_identity(path: str, info: decoding.CheckpointInfo) -> dict:
    """Digests of a model's config and weight files, by file name.

    A file of up to 256 MB is hashed whole. Of a larger one its size, beginning, end and 64 blocks spread evenly over it
    are: training changes every block, and a launch must not read 44 GB.
    """
    config = storage.join(path, "config.json")
    files = [config] if storage.exists(config) else []
    return {file.rsplit("/", 1)[-1]: _digest(file) for file in [*files, *info.weight_files]}


def _digest(path: str) -> str:
    digest = hashlib.sha256()
    with storage.open_raw(path) as stream:
        size = stream.seek(0, 2)
        size = stream.tell() if size is None else size
        stream.seek(0)
        if size <= _WHOLE_FILE_BYTES:
            while block := stream.read(1 << 22):
                digest.update(block)
            return digest.hexdigest()
        digest.update(str(size).encode())
        for i in range(_SAMPLES + 1):
            stream.seek((size - _SAMPLE_BYTES) * i // _SAMPLES)
            digest.update(stream.read(_SAMPLE_BYTES))
    return "sampled-" + digest.hexdigest()
