"""Families of models, drafts and verification rules by name: the built-in ones, and those of other packages.

The built-in ones are named here, and imported when they are asked for, so that names can be checked without waiting for
JAX.  Another package adds its own from a module that the entry point group `specbeam` names:

    [project.entry-points.specbeam]            # in its pyproject.toml
    mine = "my_package.my_rules"               # a module that calls decoding.register_rule("mine", MyRule)

That module is imported the first time that a name is not a built-in one, in every process that asks: the launcher's and
the workers', where the package has to be installed too.
"""

import functools
import importlib
import importlib.metadata
import re
from collections.abc import Mapping
from typing import Any

GROUP = "specbeam"


class Registry:
    """What a setting may name."""

    def __init__(self, setting: str, builtin: Mapping[str, str]):
        """
        Args:
          setting: whose values the names are, for messages.
          builtin: "module:attribute" by name.
        """
        self._setting, self._entries = setting, dict(builtin)

    def register(self, name: str, value: Any) -> None:
        """Adds a name.

        Raises:
          ValueError: it is taken, or is none: names are letters, digits, "_", "-" and ".".
        """
        if not re.fullmatch(r"[\w.-]+", name):
            raise ValueError(f'the name is {name!r}; allowed: letters, digits, "_", "-" and "."')
        if self._entries.setdefault(name, value) is not value:
            raise ValueError(f"{self._setting} {name!r} is registered already")

    def __contains__(self, name: str) -> bool:
        if name not in self._entries and re.fullmatch(r"[\w.-]+", name):
            _import_plugins()
        return name in self._entries

    def names(self) -> tuple[str, ...]:
        """All of them."""
        _import_plugins()
        return tuple(self._entries)

    def get(self, name: str) -> Any:
        """What a name stands for.

        Raises:
          ValueError: it stands for nothing; the message says what is allowed.
        """
        if name not in self:
            raise ValueError(f"{self._setting} is {name!r}; allowed: {', '.join(self.names())}")
        value = self._entries[name]
        if isinstance(value, str):
            module, _, attribute = value.partition(":")
            self._entries[name] = value = getattr(importlib.import_module(module), attribute)
        return value


@functools.cache
def _import_plugins() -> None:
    for entry in importlib.metadata.entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:  # whatever importing a foreign module leads to
            raise ValueError(f"the entry point {entry.name} = {entry.value!r} cannot be imported: {error}") from error


# `model_type` of a config in Hugging Face's keys -> a `decoding.checkpoints.families.Family`.
_T5, _DECODER_ONLY = "decoding.checkpoints.hf_t5", "decoding.checkpoints.hf_decoder_only"
_ENCODER_DECODER = "decoding.checkpoints.hf_encoder_decoder"
FAMILIES = Registry(
    "model_type",
    {
        "t5": f"{_T5}:FAMILY",
        "mt5": f"{_T5}:FAMILY",
        "umt5": f"{_T5}:FAMILY",
        "bart": f"{_ENCODER_DECODER}:BART",
        "mbart": f"{_ENCODER_DECODER}:MBART",
        "marian": f"{_ENCODER_DECODER}:MARIAN",
        "m2m_100": f"{_ENCODER_DECODER}:M2M_100",
        "pegasus": f"{_ENCODER_DECODER}:PEGASUS",
        "gpt2": f"{_DECODER_ONLY}:GPT2",
        "llama": f"{_DECODER_ONLY}:LLAMA",
        "mistral": f"{_DECODER_ONLY}:LLAMA",
        "qwen2": f"{_DECODER_ONLY}:LLAMA",
        "qwen3": f"{_DECODER_ONLY}:LLAMA",
        "phi3": f"{_DECODER_ONLY}:PHI3",
        "gemma": "decoding.checkpoints.hf_gemma:GEMMA",
        "gemma2": "decoding.checkpoints.hf_gemma:GEMMA",
        "gemma3_text": "decoding.checkpoints.hf_gemma:GEMMA",
        "gpt_neox": "decoding.checkpoints.hf_layer_norms:GPT_NEOX",
        "opt": "decoding.checkpoints.hf_layer_norms:OPT",
        "lamda": f"{_DECODER_ONLY}:LAMDA",
    },
)

# `decoding.verification` -> a `decoding.verification.Rule`.
_RULES = "decoding.verification"
RULES = Registry(
    "decoding.verification", {"token": f"{_RULES}:Token", "block": f"{_RULES}:Block", "coupled": f"{_RULES}:Coupled"}
)

# `model.draft` -> what makes a `decoding.drafts.Draft` without arguments; it takes what it needs from its target.
PROMPT_LOOKUP = "prompt_lookup"
LOOKUPS = (PROMPT_LOOKUP, "lookup")  # names of the same
INDEX, CASCADE = "index", "cascade"  # kinds of drafts that have no name: a file's, and several names'
COPYING = (PROMPT_LOOKUP, INDEX, CASCADE)
DRAFTS = Registry(
    "model.draft",
    {
        **dict.fromkeys(LOOKUPS, "decoding.drafts.prompt_lookup:PromptLookupDraft"),
        "uniform": "decoding.drafts.uniform:UniformDraft",
    },
)


def drafts_of(draft: str) -> list[str]:
    """The drafts that `model.draft` names: of a cascade, which has commas between them, several."""
    return draft.split(",")


register_draft = DRAFTS.register
register_family = FAMILIES.register
register_rule = RULES.register
