"""Chat templates: a conversation as the prompt that an instruct model was trained on.

A template is Jinja source, from the model's own files or from the config, and is rendered as transformers does, in a
sandbox with limits (`text.chat_renderer`): a checkpoint is data, and nothing in it is executed.

A record's text is the one user message of a conversation, or a JSON list: of messages, {"role": ..., "content": ...},
or of texts, which are taken as turns of alternating roles, the last one the user's.
"""

import contextlib
import dataclasses
import functools
import json
import os

from decoding.checkpoints import gguf
from transforms import storage
from transforms.text.added_tokens import beside, read_surroundings
from transforms.text.chat_renderer import Renderer, RenderError
from transforms.tokenize import Tokenizer, encode_start, find_tokenizer

OWN = "model"  # in a config: the template that comes with the tokeniser
FILE = "chat_template.jinja"


class ChatError(ValueError):
    """A template that is missing or unusable, or a record that is no conversation."""


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A template, and what it may refer to.

    Attributes:
      source: Jinja.
      bos_token, eos_token: special tokens.
      others: further ones, name and text.
      date: what `strftime_now` shows: YYYY-MM-DD, "" for today, None where the template shall not know a date.
    """

    source: str
    bos_token: str = ""
    eos_token: str = ""
    others: tuple[tuple[str, str], ...] = ()
    date: str | None = ""


def find_template(tokenizer: str, source: str = OWN) -> ChatTemplate:
    """A template with the special tokens of the tokeniser at `tokenizer`, a file or a directory.

    Args:
      tokenizer: path.
      source: the template, or `OWN` for the one that comes with the tokeniser.

    Raises:
      ChatError: there is none.
      TokenizerError, CheckpointError: the files that it would be in are broken.
    """
    path = find_tokenizer(tokenizer)
    if path is None:
        raise ChatError(f"no tokeniser at {tokenizer!r}, beside which a chat template could be")
    own, special = _of_gguf(path) if path.endswith(".gguf") else _of_files(path)
    source = own if source == OWN else source
    if not source:
        raise ChatError(f"no chat template comes with {path!r}")
    if not isinstance(source, str):
        raise ChatError(f"the chat template of {path!r} is a {type(source).__name__}, not a text")
    bos, eos = (special.pop(name, "") for name in ("bos_token", "eos_token"))
    return ChatTemplate(source, bos, eos, tuple(sorted(special.items())))


def _of_gguf(path: str) -> tuple[str | None, dict[str, str]]:
    with gguf.open_file(path, weights=False) as file:
        source, pieces = file.get("tokenizer.chat_template"), file.get("tokenizer.ggml.tokens", [])
        names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
        ids = {name: file.get(f"tokenizer.ggml.{key}_token_id") for name, key in names.items()}
    pieces = pieces if isinstance(pieces, list) else []
    return source, {name: pieces[i] for name, i in ids.items() if type(i) is int and 0 <= i < len(pieces)}


def _of_files(path: str) -> tuple[str | None, dict[str, str]]:
    """As transformers: chat_template.jinja before the tokeniser's config, and of several the one called "default"."""
    surroundings = read_surroundings(path)
    source = surroundings.config.get("chat_template")
    if isinstance(source, list):
        named = {one.get("name"): one.get("template") for one in source if isinstance(one, dict)}
        source = named.get("default")
        if source is None:
            raise ChatError(f"none of the chat templates of {path!r} is called default: {sorted(map(str, named))}")
    file = beside(path, FILE)
    if storage.exists(file):
        source = storage.read_bytes(file).decode()
    return source, surroundings.named()


def messages_of(text: str) -> list[dict[str, str]]:
    """The conversation that a record's text stands for; see the module's docstring.

    Raises:
      ChatError: it is a list, but neither of messages nor of texts.
    """
    turns = None
    if text.lstrip().startswith("["):
        with contextlib.suppress(ValueError, RecursionError):  # a text may begin with a bracket, too
            turns = json.loads(text)
    if not turns or not any(isinstance(turn, str | dict) for turn in turns):
        return [{"role": "user", "content": text}]
    if all(isinstance(turn, str) for turn in turns):
        roles = ("user", "assistant")
        return [{"role": roles[(len(turns) - 1 - i) % 2], "content": turn} for i, turn in enumerate(turns)]
    for turn in turns:
        if not isinstance(turn, dict) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            raise ChatError(f"a turn is {turn!r:.100}; allowed: a text each, or an object with a role and a content each")
    return turns


def render(template: ChatTemplate, messages: list[dict[str, str]]) -> str:
    """The prompt, up to where the assistant's answer begins.

    Raises:
      ChatError: the template cannot be used, or refuses the messages.
    """
    special = {"bos_token": template.bos_token, "eos_token": template.eos_token, **dict(template.others)}
    variables = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True, **special}
    try:
        return _renderer(os.getpid()).render(template.source, variables, template.date)
    except RenderError as error:
        raise ChatError(f"the chat template fails: {error}") from error


@functools.lru_cache(maxsize=1)
def _renderer(process: int) -> Renderer:
    """Of this process: one that was forked has its parent's pipes, which are not its own."""
    return Renderer()


def encode(
    tokenizer: Tokenizer, template: ChatTemplate, text: str, *, prefix: str, max_tokens: int
) -> tuple[list[int], bool]:
    """Token ids of a record's conversation.

    Too long a conversation loses its oldest turns, two at a time so that the roles still alternate, and then the end
    of its last message: what the template puts around it is kept.

    Args:
      tokenizer: of the model.
      template: for the conversation.
      text: see `messages_of`.
      prefix: put before the last message.
      max_tokens: at most so many are returned.

    Returns:
      The ids, and whether something was cut.

    Raises:
      ChatError: the text is no conversation, the template refuses it, or does not fit by itself.
    """
    messages = messages_of(text)
    messages[-1] = messages[-1] | {"content": prefix + messages[-1]["content"]}
    ids, whole = encode_start(tokenizer, render(template, messages), max_tokens)
    if whole and len(ids) <= max_tokens:
        return ids, False
    system = [messages.pop(0)] if messages[0]["role"] == "system" and len(messages) > 1 else []
    while not (whole and len(ids) <= max_tokens) and len(messages) > 2:
        messages = messages[2:]
        ids, whole = encode_start(tokenizer, render(template, system + messages), max_tokens)
    if whole and len(ids) <= max_tokens:
        return ids, True
    content = messages[-1]["content"].strip()
    prompt = render(template, system + messages)
    end = prompt.rfind(content) + len(content)
    after, _ = encode_start(tokenizer, prompt[end:], max_tokens)
    if len(content) > end or len(after) >= max_tokens:
        raise ChatError(f"the conversation cannot be cut to {max_tokens} tokens; raise decoding.input_buckets")
    return encode_start(tokenizer, prompt[:end], max_tokens)[0][: max_tokens - len(after)] + after, True
