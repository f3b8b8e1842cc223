"""Models split over a mesh of devices: heads, feed-forward and vocabulary over `model`, slots over `data`.

Every parameter, state and row has logical axes; a model names them where it makes its parameters
(`models.linear.weight`). `RULES` maps them to axes of the mesh, and XLA's partitioner does the rest, so that logits and
tokens are the same on any mesh up to rounding. What an axis does not divide is left whole on every device (`undivided`
says what).

A projection that is fused of several ([q k v], [wi_0 wi_1]) cannot be cut into contiguous columns: the first device
would get queries only. `Division.arrange` therefore lays its columns out device by device, [q_0 k_0 v_0 | q_1 k_1 v_1 |
...], and the model, whose config then says how many such pieces there are, takes them apart again without moving
anything (`models.base.split_fused`). Where fewer heads of keys than devices exist (grouped-query attention), each is
repeated until they divide: the devices that share it hold a copy.
"""

import dataclasses
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from decoding.config import DATA, MODEL
from decoding.config import parse_mesh as parse_mesh
from decoding.kernels.logits import used_by
from decoding.models.base import LanguageModel, Shape, State
from decoding.models.linear import RoundedWeight

RULES = {"slots": DATA, "heads": MODEL, "feed_forward": MODEL, "vocabulary": MODEL}
_SHOWN = {"heads": "attention heads", "feed_forward": "feed-forward width", "vocabulary": "vocabulary"}


def make_mesh(data: int = 1, model: int = 1, devices=None) -> Mesh:
    """A mesh of `data` x `model` devices.

    Args:
      data: groups of slots; each group has a copy of the parameters.
      model: devices over which one copy is split.
      devices: which ones, in order; None for all of this job's.

    Raises:
      ValueError: there are not as many devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    if data < 1 or model < 1 or data * model != len(devices):
        raise ValueError(
            f"a mesh of data:{data},model:{model} has {data * model} devices, but there are {len(devices)}; allowed: two "
            f"numbers of at least 1 whose product is {len(devices)}"
        )
    return Mesh(np.array(devices).reshape(data, model), (DATA, MODEL))


def divided(config: Shape, mesh: Mesh) -> Shape:
    """The config of the same model split over the mesh: how many pieces its projections have, keys' heads repeated."""
    if not set(mesh.axis_names) <= {DATA, MODEL} or MODEL not in mesh.axis_names:
        raise ValueError(f"the mesh has the axes {mesh.axis_names}; allowed: ('data', 'model') or ('model',)")
    return config.divided(mesh.shape[MODEL])


def undivided(config: Shape, mesh: Mesh) -> list[str]:
    """What of a model the mesh does not divide, for people: every device holds and computes all of it."""
    ways = mesh.shape[MODEL]
    return [
        f"{_SHOWN[axis]} {size} is not divisible by {ways}: whole on every device"
        for axis, size in config.sizes.items()
        if size % ways
    ]


def abstract(config: Shape, dtype=jnp.float32) -> LanguageModel:
    """A model whose parameters have shapes and dtypes only; nothing is allocated."""
    return nnx.eval_shape(lambda: config.build(rngs=nnx.Rngs(0), dtype=dtype))


def parameters(model: nnx.Module) -> dict[str, nnx.Variable]:
    """By path."""
    return {".".join(map(str, keys)): leaf for keys, leaf in nnx.to_flat_state(nnx.state(model))}


class Division:
    """How the parameters of a model are split over a mesh.

    Attributes:
      config: the `divided` one.
    """

    def __init__(self, config: Shape, mesh: Mesh):
        self.config, self._mesh = divided(config, mesh), mesh
        self._whole, self._split = (parameters(abstract(shape)) for shape in (config, self.config))

    def partition(self, path: str) -> PartitionSpec:
        """How the parameter at a path is split."""
        leaf, ways = self._split[path], self._mesh.shape[MODEL]
        axes = leaf.get_metadata().get("axes", ())
        axes = (None,) * (len(leaf.shape) - len(axes)) + axes
        return PartitionSpec(*(RULES[axis] if axis and self.config.sizes[axis] % ways == 0 else None for axis in axes))

    def arrange(self, path: str, value):
        """An array, of NumPy or JAX, of the parameter of the whole model, as the split one holds it."""
        whole, split = (leaves[path].get_metadata() for leaves in (self._whole, self._split))
        if not whole.get("parts"):
            return value
        xp, lead = np if isinstance(value, np.ndarray) else jnp, value.shape[:-1]
        pieces, start = [], 0
        for (units, width), (copies, _) in zip(whole["parts"], split["parts"], strict=True):
            part = value[..., start : start + units * width].reshape(*lead, units, width)
            part = xp.repeat(part, copies // units, axis=-2)
            pieces.append(part.reshape(*lead, self.config.pieces[whole["axes"][-1]], -1))
            start += units * width
        return xp.concatenate(pieces, axis=-1).reshape(*lead, -1)

    def arranged(self, values: Iterable[tuple[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
        """`arrange` for every parameter of a stream."""
        return ((path, self.arrange(path, value)) for path, value in values)

    def place(self, path: str, value: np.ndarray | RoundedWeight) -> jax.Array | RoundedWeight:
        """An arranged parameter on the mesh; every device is sent its own part only."""
        spec = self.partition(path)
        if isinstance(value, RoundedWeight):
            scale = value.scale
            scale = None if scale is None else self._put(scale, PartitionSpec(spec[value.outputs]))
            return dataclasses.replace(value, values=self._put(value.values, spec), scale=scale)
        return self._put(value, spec)

    def _put(self, value: np.ndarray, spec: PartitionSpec) -> jax.Array:
        return jax.make_array_from_callback(value.shape, NamedSharding(self._mesh, spec), lambda index: value[index])


def shard(model: LanguageModel, mesh: Mesh) -> LanguageModel:
    """A model with a `Shape`, abstract ones too, split over a mesh."""
    division = Division(model.config, mesh)
    graph, target = nnx.split(abstract(division.config, model.dtype))
    values = parameters(model)
    flat = []
    for keys, leaf in nnx.to_flat_state(target):
        path = ".".join(map(str, keys))
        value = values.pop(path).get_value()
        if isinstance(value, jax.ShapeDtypeStruct):
            sharding = NamedSharding(mesh, division.partition(path))
            value = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        else:
            value = division.place(path, np.asarray(division.arrange(path, value)))
        flat.append((keys, leaf.replace(value)))
    return nnx.merge(graph, nnx.from_flat_state(flat))


def mesh_of(model: nnx.Module) -> Mesh | None:
    """The mesh that a model's parameters lie on, None where they lie on one device."""
    for leaf in jax.tree.leaves(nnx.state(model)):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and {DATA, MODEL} & set(sharding.mesh.axis_names):
            return sharding.mesh
    return None


class Placement:
    """Where the arrays of a `Generator` lie: on the target's mesh, or, without one, where JAX puts them.

    Rows that come from the host and those that go to it are whole on every device, so that the host may be any of
    several; inside a program they are split like the states.
    """

    def __init__(self, mesh: Mesh | None):
        self.mesh = mesh
        self.groups = mesh.shape.get(DATA, 1) if mesh else 1
        self.everywhere = NamedSharding(mesh, PartitionSpec()) if mesh else None

    @property
    def platform(self) -> str:
        """Of the devices: "cpu", "gpu" or "tpu"."""
        return self.mesh.devices.flat[0].platform if self.mesh else jax.default_backend()

    def check_slots(self, num_slots: int) -> None:
        """Raises ValueError where slots cannot be shared out evenly."""
        if num_slots % self.groups:
            raise ValueError(
                f"decoding.num_slots is {num_slots}; allowed: multiples of {self.groups}, the mesh's axis 'data'"
            )

    def replicate(self, params):
        """Parameters that are not on the mesh, as those of a draft loaded without it, copied to every device of it."""
        if self.mesh is None:
            return params

        def move(leaf):
            sharding = getattr(leaf, "sharding", None)
            if isinstance(sharding, NamedSharding) and sharding.mesh == self.mesh:
                return leaf
            if isinstance(leaf, jax.ShapeDtypeStruct):
                return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self.everywhere)
            return jax.device_put(leaf, self.everywhere)

        return jax.tree.map(move, params)

    def abstract(self, arrays):
        """Shapes, dtypes and, on a mesh, shardings of arrays."""
        if self.mesh is None:
            return jax.tree.map(lambda x: x if isinstance(x, jax.ShapeDtypeStruct) else jax.eval_shape(lambda: x), arrays)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), arrays)

    def whole(self, shapes):
        """Shapes of arrays that every device has all of."""
        if self.mesh is None:
            return shapes
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.everywhere), shapes)

    def states(self, models: Iterable[nnx.Module], states: Iterable[State]) -> tuple[State, ...]:
        """Shapes of states: slots over `data`, and heads of caches over `model` where the model's are."""
        if self.mesh is None:
            return tuple(states)
        return tuple(self._state(model, state) for model, state in zip(models, states))

    def _state(self, model, state):
        config = getattr(model, "config", None)  # tables and copying have none
        heads = MODEL if config is not None and config.attention_shards == self.mesh.shape[MODEL] else None

        def split(leaf):
            slots = DATA if self.groups > 1 and leaf.shape[0] % self.groups == 0 else None
            spec = PartitionSpec(slots, heads) if len(leaf.shape) == 4 else PartitionSpec(slots)
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(self.mesh, spec))

        return jax.tree.map(split, state)

    def split_rows(self, rows: jax.Array) -> jax.Array:
        """Inside a program: int32[B, ...] shared out over `data`."""
        if self.groups == 1 or rows.shape[0] % self.groups:
            return rows
        return jax.lax.with_sharding_constraint(rows, NamedSharding(self.mesh, PartitionSpec(DATA)))

    def jit(self, function, outputs=None, **options):
        """`jax.jit` whose results lie as in `outputs`: shapes as from the methods above, or `everywhere`.

        None leaves it to JAX. Without a mesh rows over the vocabulary are those of `decoding.kernels` on a processor.
        """
        if self.mesh is None:
            return jax.jit(used_by(function), **options)
        if outputs is not None:
            options["out_shardings"] = jax.tree.map(lambda x: getattr(x, "sharding", x), outputs)
        return jax.jit(function, **options)
