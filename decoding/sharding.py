"""Models split over a mesh of devices: heads, feed-forward and vocabulary over `model`, slots over `data`.

Every parameter, state and row has logical axes; `RULES` maps them to axes of the mesh, and XLA's partitioner does the
rest, so that logits and tokens are the same on any mesh up to rounding. What an axis does not divide is left whole on
every device (`undivided` says what).

A projection that is fused of several ([q k v], [wi_0 wi_1]) cannot be cut into contiguous columns: the first device
would get queries only. `arrange` therefore lays its columns out device by device, [q_0 k_0 v_0 | q_1 k_1 v_1 | ...], and
the model, whose config then says how many such pieces there are, takes them apart again without moving anything
(`models.base.split_fused`). Where fewer heads of keys than devices exist (grouped-query attention), each is repeated
until they divide: the devices that share it hold a copy.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from decoding.config import DATA, MODEL
from decoding.config import parse_mesh as parse_mesh
from decoding.models.base import LanguageModel, State
from decoding.models.decoder_only import DecoderConfig, DecoderOnly
from decoding.models.t5 import T5, T5Config

Config = T5Config | DecoderConfig

RULES = {"slots": DATA, "heads": MODEL, "feed_forward": MODEL, "vocabulary": MODEL}

# Logical axes of parameters by their name, that of their Linear where it is one's kernel or bias. All others are whole.
_AXES = {
    "embedding": ("vocabulary", None),
    "head": (None, "vocabulary"),
    "qkv": (None, "heads"),
    "query": (None, "heads"),
    "kv": (None, "heads"),
    "out": ("heads", None),
    "wi": (None, "feed_forward"),
    "wo": ("feed_forward", None),
    "encoder_bias": (None, "heads"),
    "decoder_bias": (None, "heads"),
    "relative": (None, "heads"),
}


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


def divided(config: Config, mesh: Mesh) -> Config:
    """The config of the same model split over the mesh: how many pieces its projections have, keys' heads repeated."""
    if not set(mesh.axis_names) <= {DATA, MODEL} or MODEL not in mesh.axis_names:
        raise ValueError(f"the mesh has the axes {mesh.axis_names}; allowed: ('data', 'model') or ('model',)")
    ways = mesh.shape[MODEL]
    heads = ways if config.num_heads % ways == 0 else 1
    settings = {"attention_shards": heads, "feed_forward_shards": ways if config.d_ff % ways == 0 else 1}
    if isinstance(config, DecoderConfig):
        settings["num_kv_heads"] = math.lcm(config.num_kv_heads, heads)
    return dataclasses.replace(config, **settings)


def undivided(config: Config, mesh: Mesh) -> list[str]:
    """What of a model the mesh does not divide, for people: every device holds and computes all of it."""
    ways = mesh.shape[MODEL]
    found = {"attention heads": config.num_heads, "feed-forward width": config.d_ff, "vocabulary": config.vocab_size}
    return [f"{what} {size} is not divisible by {ways}: whole on every device" for what, size in found.items() if size % ways]


def logical_axes(path: str, ndim: int) -> tuple[str | None, ...]:
    """Logical axes of the parameter at a path like "decoder.0.attention.qkv" or "blocks.3.qkv.bias"."""
    *_, owner, name = ["", *path.split(".")]
    axes = _AXES.get(owner if name in ("kernel", "bias") else name, ())[-ndim:]
    return (None,) * (ndim - len(axes)) + axes


def partition(path: str, ndim: int, config: Config, mesh: Mesh) -> PartitionSpec:
    """How a parameter is split, of a model with a `divided` config."""
    ways = mesh.shape[MODEL]
    divides = {
        "heads": config.attention_shards == ways,
        "feed_forward": config.feed_forward_shards == ways,
        "vocabulary": config.vocab_size % ways == 0,
    }
    return PartitionSpec(*(RULES[axis] if divides.get(axis) else None for axis in logical_axes(path, ndim)))


def arrange(path: str, value, config: Config, split: Config):
    """The parameter of a model with `config` as the model with `split = divided(config, mesh)` holds it.

    Args:
      path: of the parameter.
      value: its array, of NumPy or JAX.
    """
    xp = np if isinstance(value, np.ndarray) else jnp
    *_, owner, name = ["", *path.split(".")]
    base = owner if name in ("kernel", "bias") else name
    lead = value.shape[:-1]
    if base == "wi" and config.gated:
        parts, ways = xp.split(value, 2, axis=-1), split.feed_forward_shards
    elif base == "kv":
        parts, ways = xp.split(value, 2, axis=-1), split.attention_shards
    elif base == "qkv":
        ways = split.attention_shards
        if isinstance(config, T5Config):
            parts = xp.split(value, 3, axis=-1)
        else:
            dim, groups = config.head_dim, config.num_kv_heads
            edges = [config.num_heads * dim, (config.num_heads + groups) * dim]
            query, *parts = xp.split(value, edges, axis=-1)
            copies = split.num_kv_heads // groups
            parts = [xp.repeat(part.reshape(*lead, groups, dim), copies, axis=-2).reshape(*lead, -1) for part in parts]
            parts = [query, *parts]
    else:
        return value
    pieces = [part.reshape(*lead, ways, part.shape[-1] // ways) for part in parts]
    return xp.concatenate(pieces, axis=-1).reshape(*lead, -1)


def arranged(
    parameters: Iterable[tuple[str, np.ndarray]], config: Config, split: Config
) -> Iterator[tuple[str, np.ndarray]]:
    """`arrange` for every parameter of a stream."""
    return ((path, arrange(path, value, config, split)) for path, value in parameters)


def place(path: str, value: np.ndarray, split: Config, mesh: Mesh) -> jax.Array:
    """A parameter on the mesh; every device is sent its own part only."""
    sharding = NamedSharding(mesh, partition(path, value.ndim, split, mesh))
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def shard(model: LanguageModel, mesh: Mesh) -> LanguageModel:
    """A T5 or decoder-only model, abstract ones too, split over a mesh."""
    config, dtype = model.config, model.embedding.get_value().dtype
    split = divided(config, mesh)
    cls = T5 if isinstance(config, T5Config) else DecoderOnly
    graph, target = nnx.split(nnx.eval_shape(lambda: cls(split, rngs=nnx.Rngs(0), dtype=dtype)))
    values = {".".join(map(str, keys)): leaf.get_value() for keys, leaf in nnx.to_flat_state(nnx.state(model))}
    flat = []
    for keys, leaf in nnx.to_flat_state(target):
        path = ".".join(map(str, keys))
        value = values.pop(path)
        if isinstance(value, jax.ShapeDtypeStruct):
            sharding = NamedSharding(mesh, partition(path, len(leaf.shape), split, mesh))
            value = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        else:
            value = place(path, np.asarray(arrange(path, value, config, split)), split, mesh)
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

    def settle(self, params):
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
        while hasattr(model, "model"):
            model = model.model
        ways = self.mesh.shape[MODEL]
        heads = MODEL if getattr(getattr(model, "config", None), "attention_shards", 0) == ways else None

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

    def jit(self, function, outputs, **options):
        """`jax.jit` whose results lie as in `outputs`: shapes as from the methods above, or `everywhere`."""
        if self.mesh is not None:
            options["out_shardings"] = jax.tree.map(lambda x: getattr(x, "sharding", x), outputs)
        return jax.jit(function, **options)
