"""Orbax checkpoints of our own parameters: what `pipeline.convert` writes, a config.json beside a tree of arrays.

The tree's keys are the paths of the parameters, as `decoding.models` names them. Orbax writes; what it wrote is read
through tensorstore, in which it lies, because importing Orbax takes longer than the rest of `decoding`, and because on
gs:// it would go through TensorFlow wherever that is installed.
"""

import json
import types
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from decoding import sharding
from decoding.checkpoints import architecture, special_tokens, storage
from decoding.checkpoints.arrays import Arrays
from decoding.checkpoints.checkpoint import Checkpoint
from decoding.checkpoints.fill import as_is, parameter_shapes, stream
from decoding.checkpoints.storage import CheckpointError

FOLDER = "orbax"
_METADATA = "_CHECKPOINT_METADATA"
_GROUP_BYTES = 256 << 20  # written by one call of Orbax
_INDEX_CACHE_BYTES = 64 << 20


def is_orbax(names: list[str]) -> bool:
    """Whether a directory of these names is a converted model, or an Orbax checkpoint itself."""
    return FOLDER in names or _METADATA in names


def find(path: str, names: list[str], given: str | Mapping | None) -> Checkpoint:
    """A converted model.

    Args:
      path: its directory.
      names: what lies in it.
      given: the architecture, where there is no config.json.

    Raises:
      CheckpointError: no config, or not a finished Orbax checkpoint.
    """
    config_file = storage.join(path, "config.json")
    own = special_tokens.read_config(path, names) if "config.json" in names else None
    root = storage.join(path, FOLDER) if FOLDER in names else path
    arrays = _open(root)
    raw, config = architecture.settle(own, config_file, given, tied="head" not in arrays.shapes)
    layers, found = config.decoder_layers, len(arrays.shapes)
    if layers > found:
        raise CheckpointError(f"{path} does not match its config: {found} arrays for {layers} layers")
    shapes = parameter_shapes(sharding.abstract(config))
    sources = {name: as_is(name, *shape) for name, shape in shapes.items()}

    def parameters(dtype) -> Iterator[tuple[str, np.ndarray]]:
        return stream(path, sources, arrays, dtype)

    return Checkpoint(raw, config, tuple(storage.list_files(root)), parameters)


def _open(root: str) -> Arrays:
    """The arrays of an Orbax checkpoint, which lie in one OCDBT store; their names there are our parameters' paths."""
    import tensorstore

    manifests = [file for file in storage.list_files(root) if file.endswith("/manifest.ocdbt")]
    if not manifests:
        raise CheckpointError(f"{root} is not a finished Orbax checkpoint: it has no manifest.ocdbt")
    # Every process that wrote has a store of its own below the one that joins them all.
    store = min(manifests, key=lambda file: file.count("/")).removesuffix("manifest.ocdbt")
    base = storage.tensorstore_spec(store)
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": _INDEX_CACHE_BYTES}})
    try:
        keys = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}, context=context).result().list().result()
    except ValueError as error:
        raise CheckpointError(f"{root} is not a finished Orbax checkpoint: {error}") from error
    for driver, metadata in (("zarr3", "/zarr.json"), ("zarr", "/.zarray")):
        names = [key.decode().removesuffix(metadata) for key in keys if key.decode().endswith(metadata)]
        if names:
            kvstores = {name: {"driver": "ocdbt", "base": base, "path": f"{name}/"} for name in names}
            return Arrays(root, driver, kvstores, context)
    raise CheckpointError(f"{root} is not an Orbax checkpoint of arrays: its store has none")


def write(
    output: str,
    raw: Mapping,
    parameters: Iterable[tuple[str, np.ndarray]],
    beside: Mapping[str, bytes] = types.MappingProxyType({}),
) -> int:
    """Writes a converted model: the arrays, then config.json, without which the directory is not a checkpoint.

    Args:
      output: directory, must not hold a converted model. For gs:// the arrays are written to local disk first.
      raw: the config, in Hugging Face's keys.
      parameters: path and value of each; at most a group of them is held at a time.
      beside: more files for the directory, by name: the tokeniser's.

    Returns:
      Number of values written.

    Raises:
      CheckpointError: the directory holds a model already.
    """
    names = storage.list_names(output)
    present = [name for name in (FOLDER, "config.json") if name in names]
    if present:
        raise CheckpointError(f"{output} holds {' and '.join(present)} already; give a new directory")
    for name in names:  # what an interrupted conversion left; Orbax would go on with it
        if name.startswith(f"{FOLDER}."):
            storage.remove_directory(storage.join(output, name))
    with storage.written_locally(storage.join(output, FOLDER)) as local:
        count = _write_arrays(local, parameters)
    for name, content in beside.items():
        storage.write_bytes(storage.join(output, name), content)
    storage.write_bytes(storage.join(output, "config.json"), (json.dumps(dict(raw), indent=2) + "\n").encode())
    return count


def _write_arrays(directory: str, parameters: Iterable[tuple[str, np.ndarray]]) -> int:
    import orbax.checkpoint.experimental.v1 as ocp

    group, size, count = {}, 0, 0
    for path, value in parameters:
        if group and size + value.nbytes > _GROUP_BYTES:
            ocp.partial.save(directory, _nested(group))
            group, size = {}, 0
        group[path] = value
        size, count = size + value.nbytes, count + value.size
    ocp.partial.save(directory, _nested(group))
    ocp.partial.finalize(directory)
    return count


def _nested(flat: Mapping[str, np.ndarray]) -> dict:
    tree: dict = {}
    for path, value in flat.items():
        *folders, last = path.split(".")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = value
    return tree
