"""Which tokens start and end a text: config.json's, or generation_config.json's where it lies beside and says so."""

from collections.abc import Mapping

from decoding.checkpoints import storage
from decoding.checkpoints.storage import CheckpointError

GENERATION = "generation_config.json"
_KEYS = (
    "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id",
)  # fmt: skip
_WORDS = "bad_words_ids"  # tokens that never occur, each in a list of its own: Marian's padding, the start of its texts
_FORCED = (_WORDS, "forced_bos_token_id", "forced_eos_token_id")


def read_config(path: str, names: list[str]) -> dict:
    """A directory's config.json with the special tokens that its generation_config.json has others for.

    Of several end tokens the first ends an encoder-decoder's inputs and references: the one that the tokeniser names, else
    the only one that config.json does.

    Args:
      path: the directory.
      names: what lies in it.

    Raises:
      CheckpointError: one of the files is missing or no JSON object.
    """
    raw = storage.read_json(storage.join(path, "config.json"))
    own = raw.get("eos_token_id")
    if GENERATION in names:
        generation = storage.read_json(storage.join(path, GENERATION))
        raw = raw | {key: generation[key] for key in _KEYS if generation.get(key) is not None}
        # What generation is forced to do, such a file says alone: its silence goes before a family's default.
        raw |= {key: generation.get(key) for key in _FORCED}
    ends = raw.get("eos_token_id")
    if isinstance(ends, list) and len(ends) > 1:
        first = [own]
        if "tokenizer_config.json" in names:
            first = [*_named_end(storage.read_json(storage.join(path, "tokenizer_config.json"))), own]
        first = [token for token in first if token in ends][:1]
        raw["eos_token_id"] = first + [token for token in ends if token not in first]
    return raw


def _named_end(tokenizer: Mapping) -> list[int]:
    """Ids that the tokeniser's `added_tokens_decoder` has for its `eos_token`."""
    eos, added = tokenizer.get("eos_token"), tokenizer.get("added_tokens_decoder")
    eos = eos.get("content") if isinstance(eos, dict) else eos
    if not isinstance(added, dict) or eos is None:
        return []
    return [int(i) for i, token in added.items() if i.isdecimal() and isinstance(token, dict) and token.get("content") == eos]


def special_tokens(raw: Mapping, shown: str, *, start: str, defaults: tuple[int | None, int | None]) -> dict:
    """Fields of a model's config: start_id, eos_ids, pad_id, forced_bos_id, forced_eos_id, suppressed_ids.

    Args:
      raw: keys of a Hugging Face config, `vocab_size` among them.
      shown: where they come from, for messages.
      start: the key of what texts of this family start with.
      defaults: the family's start and end token, where the config has no such key.

    Raises:
      CheckpointError: a token that is not one of the vocabulary.
    """
    size = raw["vocab_size"]

    def ids(name: str, value) -> list[int]:
        """What a key says, ids beyond the vocabulary left out: they are never drawn."""
        values = value if isinstance(value, list) else [value]
        if not all(type(token) is int for token in values) or not (known := [t for t in values if 0 <= t < size]):
            raise CheckpointError(f"{shown}: the {name} token is {value!r:.100}; allowed: 0 to {size - 1}")
        return known

    def optional(name: str, key: str) -> int | None:
        if raw.get(key) is None:
            return None
        tokens = ids(name, raw[key])
        if len(tokens) > 1:
            raise CheckpointError(f"{shown}: {key} is {tokens!r:.100}; supported: one token")
        return tokens[0]

    ends = tuple(dict.fromkeys(ids("end", raw.get("eos_token_id", defaults[1]))))
    begin = raw.get(start, defaults[0])
    if begin is None:  # as in transformers, whose encoder-decoders need one of both
        begin = raw.get("bos_token_id")
    if begin is None and start == "bos_token_id":
        begin = ends[0]
    pad, words = raw.get("pad_token_id"), raw.get(_WORDS) or []
    if not isinstance(words, list) or not all(isinstance(word, list) and len(word) == 1 for word in words):
        raise CheckpointError(f"{shown}: {_WORDS} is {words!r:.100}; supported: lists of one token each")
    return {
        "start_id": ids("start", begin)[0],
        "eos_ids": ends,
        "pad_id": pad if type(pad) is int and 0 <= pad < size else ends[0],
        "forced_bos_id": optional("first", "forced_bos_token_id"),
        "forced_eos_id": optional("last", "forced_eos_token_id"),
        "suppressed_ids": tuple(sorted({token for word in words for token in ids("suppressed", word)})),
    }
