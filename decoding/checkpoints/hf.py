"""Hugging Face directories: config.json and safetensors, whole or split with an index.  Nothing is unpickled."""

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from decoding.checkpoints import architecture, special_tokens, storage
from decoding.checkpoints.checkpoint import Checkpoint
from decoding.checkpoints.fill import Source, Tensors, available, stream
from decoding.checkpoints.safetensors import SafeTensors
from decoding.checkpoints.storage import CheckpointError
from decoding.registry import FAMILIES

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
HEADS = ("lm_head.weight", "embed_out.weight")
_EMBEDDING_NAMES = ("wte.weight", "embed_tokens.weight", "shared.weight", "embed_in.weight")
_BODIES = ("transformer.", "model.", "gpt_neox.")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")


def is_hf(names: list[str]) -> bool:
    """Whether a directory of these names has a config and weights as Hugging Face names them, whatever else lies there."""
    weights = (SINGLE, INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json", "flax_model.msgpack", "tf_model.h5")
    return "config.json" in names and any(name in names for name in weights)


def find(path: str, names: list[str], given: str | Mapping | None) -> Checkpoint:
    """A directory's checkpoint; of the weights only names and shapes are read.

    Args:
      path: the directory.
      names: what lies in it.
      given: the architecture, where there is no config.json.

    Raises:
      CheckpointError: no config, an unknown architecture, or no weights in a safe format.
    """
    refuse_other_folders(path, names)
    config_file = storage.join(path, "config.json")
    own = special_tokens.read_config(path, names) if "config.json" in names or given is None else None
    if own is not None:  # An unknown family is worth more of a message than its lack of weights.
        architecture.parse_config(own, config_file)
    files = weight_files(path, names)
    tensors = SafeTensors(files)
    raw, config = architecture.settle(own, config_file, given, tied=_is_tied(tensors.shapes))
    family = FAMILIES.get(raw["model_type"])
    if family.sources is None:
        raise CheckpointError(f"{config_file}: a {raw['model_type']!r} is read from T5X and Orbax checkpoints, not safetensors")
    found, ignored, tables = family.sources(config), frozenset(family.ignored(config)), family.embedding(config)
    if not any(name.startswith(_BODIES) for name in tensors.shapes):  # the body of a model, saved alone
        plain = lambda names: (next((name.removeprefix(p) for p in _BODIES if name.startswith(p)), name) for name in names)
        found = {ours: _renamed(source, plain) for ours, source in found.items()}
        ignored, tables = frozenset(plain(ignored)), tuple(plain(tables))
    found = {ours: available(source, tensors.shapes) for ours, source in found.items()}
    copies = _copies(tables, found, tensors.shapes)
    if copies:
        found["embedding"] = found["embedding"]._replace(names=copies[:1])

    def parameters(dtype) -> Iterator[tuple[str, np.ndarray]]:
        _check_copies(path, copies, tensors)
        yield from stream(path, found, tensors, dtype, ignored | set(copies[1:]))

    return Checkpoint(raw, config, tuple(files), parameters)


def _is_tied(shapes: Mapping[str, tuple[int, ...]]) -> bool | None:
    """Whether logits come from the embedding, as far as a file's names tell; None where it has the head only."""
    if not any(head in shapes for head in HEADS):
        return True
    return False if any(name.endswith(_EMBEDDING_NAMES) for name in shapes) else None


def _renamed(source: Source, rename: Callable[[Iterable[str]], Iterable[str]]) -> Source:
    otherwise = source.otherwise and _renamed(source.otherwise, rename)
    return source._replace(names=tuple(rename(source.names)), otherwise=otherwise)


def _copies(tables: tuple[str, ...], found: Mapping[str, Source], shapes: Mapping) -> tuple[str, ...]:
    """Names under which a file holds the embedding, the one to take first.

    What PyTorch shares, a file keeps once, under whichever name its writer came upon: MADLAD-400's have the decoder's,
    `safetensors.torch.save_model` the first in the alphabet. The head is one of them only where it is tied.
    """
    if "embedding" not in found:
        return ()
    names = tables or found["embedding"].names
    return tuple(name for name in (*names, *(HEADS if "head" not in found else ())) if name in shapes)


def _check_copies(path: str, names: tuple[str, ...], tensors: Tensors) -> None:
    """Raises CheckpointError where tensors differ that are one in our models."""
    if len(names) < 2:
        return
    first = tensors.read(names[0])
    for name in names[1:]:
        if not np.array_equal(first, tensors.read(name)):
            raise CheckpointError(f"{path}: {name} differs from {names[0]}; supported: one embedding for encoder and decoder")


def refuse_other_folders(path: str, names: list[str]) -> None:
    """Raises CheckpointError for folders that are often taken for a model's, with what to name instead."""
    if "adapter_config.json" in names:
        base = storage.read_json(storage.join(path, "adapter_config.json")).get("base_model_name_or_path")
        raise CheckpointError(
            f"{path} holds an adapter of {base!r:.200}, not a model: merge the two (peft's merge_and_unload), name the result"
        )
    if "config.json" in names:
        return
    if "snapshots" in names or path.rstrip("/").endswith("/snapshots"):
        folder = storage.join(path, "snapshots") if "snapshots" in names else path.rstrip("/")
        found = ", ".join(storage.join(folder, name) for name in storage.list_names(folder))
        raise CheckpointError(f"{path} is a folder of the hub's cache; name a snapshot in it: {found or 'it has none'}")
    if ggufs := [storage.join(path, name) for name in names if name.endswith(".gguf")]:
        raise CheckpointError(f"{path} has no config.json, but GGUF files; name one of them: {', '.join(ggufs)}")


def weight_files(path: str, names: list[str]) -> list[str]:
    """Paths of the directory's safetensors files, sorted.

    Args:
      path: the directory.
      names: what lies in it.

    Raises:
      CheckpointError: there are none; where only pickled weights exist the message says so.
    """
    if SINGLE in names:  # an index beside it is another model's, or an older one's
        return [storage.join(path, SINGLE)]
    if INDEX in names:
        weight_map = storage.read_json(storage.join(path, INDEX)).get("weight_map")
        wanted = list(weight_map.values()) if isinstance(weight_map, dict) else []
        if not all(isinstance(name, str) for name in wanted):
            raise CheckpointError(f"{path}/{INDEX}: weight_map has values that are no file names")
        wanted = sorted(set(wanted))
        missing = [name for name in wanted if name not in names]
        if missing or not wanted:
            raise CheckpointError(f"{path}/{INDEX} names files that are not there: {missing or 'none at all'}")
        return [storage.join(path, name) for name in wanted]
    pickled = [name for name in names if name.endswith(_PICKLED)]
    hint = f"; {pickled} are in formats that are never loaded (pickles may run code): convert them to safetensors"
    raise CheckpointError(f"{path} has neither {SINGLE} nor {INDEX}{hint if pickled else ''}")
