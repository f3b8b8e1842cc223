"""Hugging Face directories: config.json and safetensors, whole or split with an index.  Nothing is unpickled."""

from collections.abc import Iterator, Mapping

import numpy as np

from decoding.checkpoints import architecture, storage
from decoding.checkpoints.checkpoint import Checkpoint
from decoding.checkpoints.fill import stream
from decoding.checkpoints.safetensors import SafeTensors
from decoding.checkpoints.storage import CheckpointError
from decoding.registry import FAMILIES

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def find(path: str, names: list[str], given: str | Mapping | None) -> Checkpoint:
    """A directory's checkpoint; of the weights only names and shapes are read.

    Args:
      path: the directory.
      names: what lies in it.
      given: the architecture, where there is no config.json.

    Raises:
      CheckpointError: no config, an unknown architecture, or no weights in a safe format.
    """
    config_file = storage.join(path, "config.json")
    own = storage.read_json(config_file) if "config.json" in names or given is None else None
    if own is not None and isinstance(own.get("eos_token_id"), list) and "tokenizer_config.json" in names:
        own["eos_token_id"] = _end_of_turn(storage.read_json(storage.join(path, "tokenizer_config.json")), own["eos_token_id"])
    if own is not None:  # An unknown family is worth more of a message than its lack of weights.
        architecture.parse_config(own, config_file)
    files = weight_files(path, names)
    tensors = SafeTensors(files)
    raw, config = architecture.settle(own, config_file, given, tied="lm_head.weight" not in tensors.shapes)
    family = FAMILIES.get(raw["model_type"])
    if family.sources is None:
        raise CheckpointError(f"{config_file}: a {raw['model_type']!r} is read from T5X and Orbax checkpoints, not safetensors")
    found, ignored = family.sources(config), frozenset(family.ignored(config))
    if "wte.weight" in tensors.shapes:  # GPT-2 as OpenAI's own checkpoints name it
        plain = lambda names: (name.removeprefix("transformer.") for name in names)
        found = {ours: source._replace(names=tuple(plain(source.names))) for ours, source in found.items()}
        ignored = frozenset(plain(ignored))

    def parameters(dtype) -> Iterator[tuple[str, np.ndarray]]:
        return stream(path, found, tensors, dtype, ignored)

    return Checkpoint(raw, config, tuple(files), parameters)


def _end_of_turn(tokenizer: Mapping, candidates: list[int]) -> int:
    """Of several tokens that end a text, the one that the tokeniser names: with an instruct model it ends the answer."""
    eos = tokenizer.get("eos_token")
    eos = eos.get("content") if isinstance(eos, dict) else eos
    added = tokenizer.get("added_tokens_decoder", {})
    named = [int(i) for i, token in added.items() if token.get("content") == eos and int(i) in candidates]
    return (named or candidates)[0]


def weight_files(path: str, names: list[str]) -> list[str]:
    """Paths of the directory's safetensors files, sorted.

    Args:
      path: the directory.
      names: what lies in it.

    Raises:
      CheckpointError: there are none; where only pickled weights exist the message says so.
    """
    if INDEX in names:
        weight_map = storage.read_json(storage.join(path, INDEX)).get("weight_map")
        wanted = sorted(set(weight_map.values())) if isinstance(weight_map, dict) else []
        missing = [name for name in wanted if name not in names]
        if missing or not wanted:
            raise CheckpointError(f"{path}/{INDEX} names files that are not there: {missing or 'none at all'}")
        return [storage.join(path, name) for name in wanted]
    if SINGLE in names:
        return [storage.join(path, SINGLE)]
    pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5"))]
    hint = f"; {pickled} are in formats that are never loaded (pickles may run code): convert them to safetensors"
    raise CheckpointError(f"{path} has neither {SINGLE} nor {INDEX}{hint if pickled else ''}")
