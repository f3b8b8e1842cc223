"""Any checkpoint that loads, as an Orbax checkpoint that loads fast and says by itself what it is.

    python -m pipeline.convert --model=CHECKPOINT --output=DIR [--architecture=PRESET] [--dtype=bfloat16]
        [--tokenizer=FILE]

CHECKPOINT is what `decoding.load_model` takes: a Hugging Face directory, a T5X checkpoint (with --architecture, a
preset's name or a JSON object of Hugging Face's config keys), a .gguf file, local or gs://. DIR gets the weights in
DIR/orbax, the tokeniser's files that lie beside the checkpoint, and last config.json; it can then be a job's
model.target or model.draft. Weights are read, cast and written one after the other: memory stays near that of the
largest ones, whatever the model's size.

Exit status: 0 when everything was written, 2 when something is wrong with the command or the checkpoint.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence

from absl import flags

from pipeline.job.command import command
from pipeline.settings import ConfigError
from transforms import storage

BESIDE_TOKENIZER = (
    "target.spm",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)
"""The rest of tokenisers of several files, and what says how one is used."""

_FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_string("model", None, "Checkpoint to convert.", flag_values=_FLAGS)
_OUTPUT = flags.DEFINE_string("output", None, "Directory to write.", flag_values=_FLAGS)
_ARCHITECTURE = flags.DEFINE_string("architecture", None, "Preset, or a JSON object of keys.", flag_values=_FLAGS)
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Of the written weights.", flag_values=_FLAGS)
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "Tokeniser file to put beside them.", flag_values=_FLAGS)


@command
def main(argv: Sequence[str]) -> int:
    if "--help" in argv:
        print(__doc__)
        return 0
    try:
        left = _FLAGS(["pipeline.convert", *argv])[1:]
    except flags.Error as error:
        raise ConfigError(str(error)) from error
    if left:
        raise ConfigError(f"unknown arguments: {' '.join(left)}")
    if missing := [f"--{flag.name}" for flag in (_MODEL, _OUTPUT) if flag.value is None]:
        raise ConfigError(f"{' and '.join(missing)} must be given")
    architecture, began = parse_architecture(_ARCHITECTURE.value), time.monotonic()
    from decoding.checkpoints import CheckpointError  # only now: the command's own mistakes are told without JAX

    try:
        count, files = convert(
            _MODEL.value, _OUTPUT.value, architecture=architecture, dtype=_DTYPE.value, tokenizer=_TOKENIZER.value
        )
    except CheckpointError as error:
        raise ConfigError(str(error)) from error
    beside = f"with {', '.join(files)}" if files else "without a tokeniser: none lies beside it"
    print(f"{_OUTPUT.value}: {count:,} parameters in {_DTYPE.value}, {beside}, {time.monotonic() - began:.1f} s")
    return 0


def parse_architecture(text: str | None) -> str | dict | None:
    """A preset's name, a JSON object, or nothing.

    Raises:
      ConfigError: an object that is not valid JSON.
    """
    if text is None or not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--architecture is {text!r}: not a JSON object: {error}") from error


def convert(
    model: str,
    output: str,
    *,
    architecture: str | Mapping | None = None,
    dtype: str = "bfloat16",
    tokenizer: str | None = None,
) -> tuple[int, list[str]]:
    """Converts a checkpoint.

    Returns:
      Number of parameters written, and names of the tokeniser's files beside them.

    Raises:
      CheckpointError: the checkpoint is unusable, or `output` holds a model already.
    """
    from decoding.checkpoints import CheckpointError, find_checkpoint, orbax
    from decoding.checkpoints.load import DTYPES
    from transforms.tokenize import NAMES

    checkpoint = find_checkpoint(model, architecture)
    if tokenizer is not None and tokenizer.rpartition("/")[2] not in NAMES:
        raise CheckpointError(f"--tokenizer is {tokenizer!r}; allowed: a file called {', '.join(NAMES)}")
    files = {name: storage.join(model, name) for name in (*NAMES, *BESIDE_TOKENIZER)}
    files = {name: path for name, path in files.items() if storage.exists(path)}
    if tokenizer is not None:
        files[tokenizer.rpartition("/")[2]] = tokenizer
    contents = {name: storage.read_bytes(path) for name, path in files.items()}
    count = orbax.write(output, checkpoint.raw, checkpoint.parameters(DTYPES[dtype]), contents)
    return count, sorted(contents)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
