"""How long a model pass takes at least: its bytes and operations over the chip's published peaks.

Per chip, a pass reads the parameters that it uses and the caches that exist, and writes and reads the logits; it does
two operations per parameter of a matrix and token, and the attention's. Reading and computing overlap, so that the longer
of the two counts; sums over chips are added, as a two-way ring over single links takes them. What a pass takes beyond
that (starting operations, waiting) is no part of a roofline: `overhead`, seconds per layer, adds it where it is known.
"""

import dataclasses
import math

import jax
from flax import nnx

from decoding.models.base import KEY_BLOCK, LanguageModel, state_length
from decoding.models.linear import RoundedWeight
from decoding.sharding import DATA, MODEL
from pipeline.planning.chips import Chip


@dataclasses.dataclass(frozen=True)
class Work:
    """What one pass does on each chip.

    Attributes:
      bytes: read from and written to memory.
      flops: operations.
      sums: bytes of activations that are summed over the chips that share the parameters.
      layers: passed through one after the other.
    """

    bytes: float
    flops: float
    sums: float
    layers: int

    def seconds(self, chip: Chip, ways: int, overhead: float = 0.0) -> float:
        """Args:
        ways: chips that share the parameters.
        overhead: seconds per layer.
        """
        ring = 2 * (ways - 1) / ways * self.sums / (2 * chip.link) if ways > 1 and chip.link else 0.0
        return max(self.bytes / chip.bandwidth, self.flops / chip.flops) + ring + overhead * self.layers


def shard_size(leaf: jax.ShapeDtypeStruct) -> int:
    """Elements of one device's part."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape) if getattr(leaf, "sharding", None) else leaf.shape)


def shard_bytes(value: jax.ShapeDtypeStruct | RoundedWeight) -> int:
    """Bytes of one device's part."""
    return sum(shard_size(leaf) * leaf.dtype.itemsize for leaf in jax.tree.leaves(value))


def whole_bytes(value: jax.ShapeDtypeStruct | RoundedWeight) -> int:
    """Bytes of all of it."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(value))


def parameters(model: nnx.Module) -> dict[str, jax.ShapeDtypeStruct | RoundedWeight]:
    """By path."""
    return {".".join(map(str, keys)): leaf.get_value() for keys, leaf in nnx.to_flat_state(nnx.state(model))}


def step_work(
    model: LanguageModel, mesh, *, slots: int, positions: int, input_length: int, max_decode_tokens: int, max_positions: int
) -> Work:
    """One decoding pass over `positions` tokens of each of `slots` rows, half-way through a generation.

    Args:
      model: abstract or not, on the mesh.
      input_length: tokens of every input.
      max_decode_tokens, max_positions: of a generation, and what the states have room for.
    """
    config = model.config
    rows = slots / mesh.shape.get(DATA, 1)
    read = flops = 0.0
    for path, value in parameters(model).items():
        matrix = jax.tree.leaves(value)[0]
        if not config.read_by_step(path):
            if path == "embedding":  # of which as many rows are
                read += rows * positions * config.d_model * matrix.dtype.itemsize
            continue
        read += shard_bytes(value)
        flops += 2 * shard_size(matrix) * rows * positions if len(matrix.shape) == 2 else 0
    itemsize, ways = model.dtype.itemsize, mesh.shape[MODEL]
    shares = ways if config.attention_shards == ways else 1
    layers, dim = config.decoder_layers, config.head_dim
    attentions = 2 if config.encoder_decoder else 1
    if config.encoder_decoder:
        keys = _existing(max_decode_tokens / 2, max_positions) + _existing(input_length, input_length)
    else:
        keys = _existing(input_length + max_decode_tokens / 2, input_length + max_positions)
    read += rows * layers * 2 * config.num_kv_heads / shares * dim * keys * itemsize
    flops += rows * layers * 4 * config.num_heads / shares * dim * keys * positions
    words_split = config.vocab_size % ways == 0
    read += 2 * 4 * rows * positions * config.vocab_size / (ways if words_split else 1)
    # What is whole on every chip needs no sum.
    per_layer = attentions * (config.attention_shards == ways) + (config.feed_forward_shards == ways)
    sums = layers * per_layer + words_split if ways > 1 else 0
    return Work(read, flops, sums * rows * positions * config.d_model * itemsize, layers)


def _existing(keys: float, room: int) -> float:
    """Keys that attention reads: whole blocks, where the cache has several."""
    length = state_length(room)
    return length if length <= KEY_BLOCK else min(math.ceil(keys / KEY_BLOCK) * KEY_BLOCK, length)
