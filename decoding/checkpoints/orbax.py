"""Orbax checkpoints of our own parameters: what `pipeline.convert` writes, a config.json beside a tree of arrays.

The tree's keys are the paths of the parameters, as `decoding.models` names them. Orbax is imported where it is used:
it takes longer than the rest of `decoding`.
"""

import json
import types
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from decoding.checkpoints import architecture, storage
from decoding.checkpoints.checkpoint import Checkpoint
from decoding.checkpoints.fill import as_is, parameter_shapes, stream
from decoding.checkpoints.storage import CheckpointError

FOLDER = "orbax"
_METADATA = "_CHECKPOINT_METADATA"
_GROUP_BYTES = 256 << 20  # read or written by one call of Orbax


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
    own = storage.read_json(config_file) if "config.json" in names else None
    root = storage.join(path, FOLDER) if FOLDER in names else path
    arrays = _Arrays(root)
    raw, config = architecture.settle(own, config_file, given, tied="head" not in arrays.shapes)
    shapes = parameter_shapes(architecture.abstract(config))
    sources = {name: as_is(name, *shape) for name, shape in shapes.items()}

    def parameters(dtype) -> Iterator[tuple[str, np.ndarray]]:
        return stream(path, sources, arrays, dtype)

    return Checkpoint(raw, config, tuple(storage.list_files(root)), parameters)


class _Arrays:
    """`decoding.checkpoints.fill.Tensors` over an Orbax checkpoint; neighbours are read together.

    Raises:
      CheckpointError: not a finished Orbax checkpoint of a tree of arrays.
    """

    def __init__(self, root: str):
        import jax
        import orbax.checkpoint.experimental.v1 as ocp

        storage.use_emulator_in_tensorstore()
        self._root, self._ahead = root, {}
        try:
            self._tree = ocp.metadata(root).metadata
            leaves = jax.tree_util.tree_flatten_with_path(self._tree)[0]
            self._leaves = {".".join(str(_key(k)) for k in keys): leaf for keys, leaf in leaves}
            self.shapes = {name: tuple(leaf.shape) for name, leaf in self._leaves.items()}
            if not leaves:
                raise ValueError("no array in it can be read")
        except Exception as error:  # Orbax raises whatever an unfinished or foreign directory leads it to
            raise CheckpointError(f"{root} is not a finished Orbax checkpoint of arrays: {error}") from error

    def read(self, name: str) -> np.ndarray:
        if name not in self._ahead:
            self._read_from(name)
        return self._ahead.pop(name)

    def _read_from(self, name: str) -> None:
        """Reads `name` and what follows it, up to the size of a group."""
        import jax
        import orbax.checkpoint.experimental.v1 as ocp

        names = list(self._leaves)
        wanted, size = set(), 0
        for other in names[names.index(name) :]:
            size += np.dtype(self._leaves[other].dtype).itemsize * int(np.prod(self.shapes[other]))
            if wanted and size > _GROUP_BYTES:
                break
            wanted.add(other)

        def abstract(keys, leaf):
            if ".".join(str(_key(k)) for k in keys) not in wanted:
                return ocp.PLACEHOLDER
            return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)

        try:
            found = ocp.load(self._root, jax.tree_util.tree_map_with_path(abstract, self._tree))
        except Exception as error:
            raise CheckpointError(f"{self._root}: {name} cannot be read: {error}") from error
        leaves = jax.tree_util.tree_flatten_with_path(found)[0]
        self._ahead = {path: leaf for keys, leaf in leaves if (path := ".".join(str(_key(k)) for k in keys)) in wanted}


def _key(key) -> object:
    """The name or number in one of JAX's tree keys."""
    return getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))


def write(
    output: str,
    raw: Mapping,
    parameters: Iterable[tuple[str, np.ndarray]],
    beside: Mapping[str, bytes] = types.MappingProxyType({}),
) -> int:
    """Writes a converted model: the arrays, then config.json, without which the directory is not a checkpoint.

    Args:
      output: directory, local or gs://; must not hold a converted model.
      raw: the config, in Hugging Face's keys.
      parameters: path and value of each; at most a group of them is held at a time.
      beside: more files for the directory, by name: the tokeniser's.

    Returns:
      Number of values written.

    Raises:
      CheckpointError: the directory holds a model already.
    """
    import orbax.checkpoint.experimental.v1 as ocp

    storage.use_emulator_in_tensorstore()
    names = storage.list_names(output)
    present = [name for name in (FOLDER, "config.json") if name in names]
    if present:
        raise CheckpointError(f"{output} holds {' and '.join(present)} already; give a new directory")
    for name in names:  # what an interrupted conversion left; Orbax would go on with it
        if name.startswith(f"{FOLDER}."):
            storage.remove_directory(storage.join(output, name))
    root = storage.absolute(storage.join(output, FOLDER))
    group, size, count = {}, 0, 0
    for path, value in parameters:
        if group and size + value.nbytes > _GROUP_BYTES:
            ocp.partial.save(root, _nested(group))
            group, size = {}, 0
        group[path] = value
        size, count = size + value.nbytes, count + value.size
    ocp.partial.save(root, _nested(group))
    ocp.partial.finalize(root)
    for name, content in beside.items():
        storage.write_bytes(storage.join(output, name), content)
    storage.write_bytes(storage.join(output, "config.json"), (json.dumps(dict(raw), indent=2) + "\n").encode())
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
