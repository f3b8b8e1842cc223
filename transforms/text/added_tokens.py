"""Tokens that lie beside a tokeniser's own vocabulary, in the files that Hugging Face's tokenisers write around it.

A sentencepiece model never reads its control pieces from a text and knows nothing of tokens that were added later. What
transformers knows of both is spread over `added_tokens.json`, `tokenizer_config.json` and `special_tokens_map.json`.
"""

import json
from typing import NamedTuple

from transforms import storage
from transforms.text.vocabularies import TokenizerError

CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
FILES = (CONFIG, SPECIAL, ADDED)

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LISTED = ("additional_special_tokens", "extra_special_tokens")
_DEFAULTS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
_T5_SENTINELS = 100


class AddedToken(NamedTuple):
    """A token that is cut out of a text before the rest is tokenised; fields as of `tokenizers.AddedToken`."""

    content: str
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


class Surroundings(NamedTuple):
    """What the files around a tokeniser's say: JSON objects, {} where a file is not there."""

    config: dict
    special: dict
    added: dict

    def named(self) -> dict[str, str]:
        """Special tokens by their name, as a chat template may refer to them."""
        return {name: text for source in self._by_rank() for name in _NAMED if (text := token_text(source.get(name)))}

    def listed(self) -> list[str]:
        """Further special tokens."""
        found = [value for source in self._by_rank() for key in _LISTED for value in _values(source.get(key))]
        return [text for text in map(token_text, found) if text]

    def _by_rank(self) -> list[dict]:
        """The config alone where it tells of added tokens, as newer ones do, else what is in the older file over it."""
        return [self.config] if "added_tokens_decoder" in self.config else [self.config, self.special]


def beside(path: str, name: str) -> str:
    """The file of that name in a file's folder."""
    folder, slash, _ = path.rpartition("/")
    return folder + slash + name


def read_surroundings(path: str) -> Surroundings:
    """The files beside a tokeniser's.

    Raises:
      TokenizerError: one of them is no JSON object.
    """
    return Surroundings(*(read_object(beside(path, name)) for name in FILES))


def read_object(path: str) -> dict:
    """The JSON object in a file; {} where there is none. Raises TokenizerError where it is something else."""
    if not storage.exists(path):
        return {}
    try:
        found = json.loads(storage.read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise TokenizerError(f"{path} holds a JSON {type(found).__name__}, not an object")
    return found


def token_text(token: str | dict | None) -> str:
    """A special token of these files: text, or an object with its content."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def is_t5(surroundings: Surroundings, path: str) -> bool:
    """Whether a sentencepiece model is T5's, of which every word begins with a space, whatever stands before it."""
    name = surroundings.config.get("tokenizer_class")
    return "t5" in name.lower() if isinstance(name, str) else path.endswith("spiece.model")


def read_added(surroundings: Surroundings, path: str, piece_ids: dict[str, int]) -> dict[int, AddedToken]:
    """Tokens to cut out of texts, by id.

    Args:
      surroundings: of the tokeniser.
      path: of its file.
      piece_ids: of its own pieces; tokens that have no id are numbered from there. {} where they are not known, and then
        ids mean nothing.

    Raises:
      TokenizerError: a token that is none.
    """
    config, new = surroundings.config, [*surroundings.named().values(), *surroundings.listed()]
    hidden = {*(_DEFAULTS | surroundings.named()).values(), *new}
    found = {piece_ids[text]: AddedToken(text) for text in hidden if text in piece_ids}
    for text, i in ({} if "added_tokens_decoder" in config else surroundings.added).items():
        found[_id(i)] = AddedToken(text, special=text in hidden)
    for i, token in _object(config.get("added_tokens_decoder")).items():
        text = token_text(token)
        if not text:
            raise TokenizerError(f"{CONFIG}: added_tokens_decoder has {token!r:.100}; allowed: objects with content")
        found[_id(i)] = AddedToken(text, *(bool(_object(token).get(flag)) for flag in AddedToken._fields[1:]))
    sentinels = config.get("extra_ids", _T5_SENTINELS)
    contents = [*piece_ids, *new, *(token.content for token in found.values())]
    if piece_ids and config and is_t5(surroundings, path) and not any("<extra_id_" in text for text in contents):
        count = sentinels if type(sentinels) is int and 0 <= sentinels <= 10_000 else _T5_SENTINELS
        new = [*(f"<extra_id_{i}>" for i in reversed(range(count))), *new]
    known = {*piece_ids, *(token.content for token in found.values())}
    following = len(piece_ids)
    for text in dict.fromkeys(new):
        if text in known:
            continue
        while following in found:
            following += 1
        found[following] = AddedToken(text)
    return dict(sorted(found.items()))


def _values(value) -> list:
    return value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else []


def _object(value) -> dict:
    return value if isinstance(value, dict) else {}


def _id(value) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = -1
    if not 0 <= number < 2**24:
        raise TokenizerError(f"an added token has the id {value!r:.100}; allowed: whole numbers from 0")
    return number
