"""T5X checkpoints written array by array, in the layouts of its networks."""

import pathlib

import numpy as np
import tensorstore
from flax import serialization


def read(directory) -> dict[str, np.ndarray]:
    """The target's arrays of a checkpoint, by name without "target."."""
    found = {}
    for folder in sorted(pathlib.Path(directory).glob("target.*")):
        spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(folder)}}
        found[folder.name.removeprefix("target.")] = tensorstore.open(spec, open=True).result().read().result()
    return found


def write(directory, arrays: dict[str, np.ndarray], *, chunks: int = 1, inline: dict[str, np.ndarray] | None = None) -> str:
    """Writes index and arrays as T5X does.

    Args:
      directory: `.../checkpoint_<step>`.
      arrays: by name without "target.".
      chunks: of every array, along its last axis.
      inline: arrays that only the index holds.
    """
    directory, target = pathlib.Path(directory), {}
    directory.mkdir(parents=True)
    for name, array in arrays.items():
        size = [*array.shape[:-1], -(-array.shape[-1] // chunks)]
        spec = {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": str(directory / f"target.{name}") + "/"},
            "metadata": {
                "shape": list(array.shape),
                "dtype": {"float32": "<f4", "bfloat16": "bfloat16"}[array.dtype.name],
                "chunks": size,
                "compressor": {"id": "gzip", "level": 1},
            },
        }
        tensorstore.open(spec, create=True).result().write(array).result()
        _put(target, name, {"driver": "zarr", "kvstore": {"driver": "file", "path": f"target.{name}"}})
    for name, array in (inline or {}).items():
        _put(target, name, array)
    index = {"version": 3, "optimizer": {"target": target, "state": {"step": np.zeros((), np.int32)}}}
    (directory / "checkpoint").write_bytes(serialization.msgpack_serialize(index))
    return str(directory)


def _put(tree: dict, name: str, value) -> None:
    *folders, last = name.split(".")
    for folder in folders:
        tree = tree.setdefault(folder, {})
    tree[last] = value


def heads_apart(arrays: dict[str, np.ndarray], heads: int) -> dict[str, np.ndarray]:
    """Attention kernels with an axis of heads."""
    found = {}
    for name, array in arrays.items():
        if "attention." in name and name.endswith("out.kernel"):
            array = array.reshape(heads, -1, array.shape[-1])
        elif "attention." in name and name.endswith(".kernel"):
            array = array.reshape(array.shape[0], heads, -1)
        found[name] = array
    return found


def scanned(arrays: dict[str, np.ndarray], bias: str, *, inner: str | None = None) -> dict[str, np.ndarray]:
    """All layers of a side in one array, stacked on axis 1, each with the side's table of relative positions.

    Args:
      arrays: of layers apart and one table.
      bias: what the tables are called.
      inner: name of the stacked layers; the side's own where None.
    """
    layers: dict[tuple[str, str], list] = {}
    rest = {}
    for name, array in arrays.items():
        side, _, below = name.partition(".")
        if below.startswith("layers_"):
            layers.setdefault((side, below.partition(".")[2]), []).append(array)  # the names are in layer order
        else:
            rest[name] = array
    for side in ("encoder", "decoder"):
        table = rest.pop(f"{side}.relpos_bias.rel_embedding")
        depth = len(next(stack for (of, _), stack in layers.items() if of == side))
        layers[side, f"{bias}.rel_embedding"] = [table] * depth
    stacked = {f"{side}.{inner or side}.{name}": np.stack(stack, axis=1) for (side, name), stack in layers.items()}
    return rest | stacked
