"""Chat templates: a conversation as the prompt that an instruct model was trained on.

A template is Jinja source, from the model's own files or from the config. It is rendered in a sandbox: a checkpoint is
data, and nothing in it is executed. Time is kept out of it, so that a prompt is the same on every day.

A record's text is the one user message of a conversation, or a JSON list: of messages, {"role": ..., "content": ...},
or of texts, which are taken as turns of alternating roles, the last one the user's.
"""

import contextlib
import dataclasses
import functools
import json

from decoding.checkpoints import gguf
from transforms import storage
from transforms.tokenize import Tokenizer, find_tokenizer, token_text, tokenizer_config

OWN = "model"  # in a config: the template that comes with the tokeniser
FILE = "chat_template.jinja"


class ChatError(ValueError):
    """A template that is missing or unusable, or a record that is no conversation."""


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A template, and what it may refer to as `bos_token` and `eos_token`."""

    source: str
    bos_token: str = ""
    eos_token: str = ""


def find_template(tokenizer: str) -> ChatTemplate:
    """The template that comes with the tokeniser at `tokenizer`, a file or a directory.

    Raises:
      ChatError: there is none.
    """
    path = find_tokenizer(tokenizer)
    if path is None:
        raise ChatError(f"no tokeniser at {tokenizer!r}, beside which a chat template could be")
    if path.endswith(".gguf"):
        with gguf.open_file(path, weights=False) as file:
            source, pieces = file.get("tokenizer.chat_template"), file.get("tokenizer.ggml.tokens", [])
            ids = [file.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")]
        special = [pieces[i] if i is not None and i < len(pieces) else "" for i in ids]
    else:
        config, beside = tokenizer_config(path), storage.join(path.rpartition("/")[0], FILE)
        source = config.get("chat_template")
        if isinstance(source, list):  # several, by name
            source = next((one["template"] for one in source if one["name"] == "default"), None)
        if storage.exists(beside):
            source = storage.read_bytes(beside).decode()
        special = [token_text(config.get(name)) for name in ("bos_token", "eos_token")]
    if not source:
        raise ChatError(f"no chat template comes with {path!r}")
    return ChatTemplate(source, *special)


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
    try:
        return _compile(template.source).render(
            messages=messages,
            add_generation_prompt=True,
            bos_token=template.bos_token,
            eos_token=template.eos_token,
        )
    except ImportError as error:
        raise ChatError(f"chat templates need the extra 'gguf' of specbeam ({error})") from error
    except Exception as error:  # a template may raise whatever it likes
        raise ChatError(f"the chat template fails: {type(error).__name__}: {error}") from error


@functools.lru_cache(maxsize=4)
def _compile(source: str):
    import jinja2.ext
    import jinja2.sandbox

    def refuse(message):
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = refuse
    return environment.from_string(source)


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
    ids = tokenizer.encode(render(template, messages))
    if len(ids) <= max_tokens:
        return ids, False
    system = [messages.pop(0)] if messages[0]["role"] == "system" and len(messages) > 1 else []
    while len(ids) > max_tokens and len(messages) > 2:
        messages = messages[2:]
        ids = tokenizer.encode(render(template, system + messages))
    if len(ids) <= max_tokens:
        return ids, True
    content = messages[-1]["content"].strip()
    prompt = render(template, system + messages)
    end = prompt.rfind(content) + len(content)
    after = tokenizer.encode(prompt[end:])
    if len(content) > end or len(after) >= max_tokens:
        raise ChatError(f"the conversation cannot be cut to {max_tokens} tokens; raise decoding.input_buckets")
    return tokenizer.encode(prompt[:end])[: max_tokens - len(after)] + after, True
