"""T5X's names for the parameters of its `t5`, `scalable_t5` and `decoder_only` networks.

Kernels are [in, out] in the first, with heads apart ([in, H, D] and [H, D, out]) in the second, which also may hold all
layers of a side in one array, stacked on axis 1, and then has a table of relative positions in every layer.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from decoding.checkpoints.fill import Source, as_is
from decoding.checkpoints.storage import CheckpointError
from decoding.models.decoder_only import DecoderConfig
from decoding.models.t5 import T5Config

_BIAS_NAMES = ("relpos_bias", "relative_posemb")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one side, "encoder" or "decoder", is laid out; found from the names and ranks of its arrays.

    Attributes:
      side: its name.
      layers: how many it has.
      scanned: the prefix of the arrays that hold all its layers, or None where every layer has its own.
      heads_apart: attention kernels have an axis of heads.
      bias: prefix of its relative positions' table: of the whole side, or below a layer.
      bias_per_layer: which of the two.
    """

    side: str
    layers: int
    scanned: str | None
    heads_apart: bool
    bias: str
    bias_per_layer: bool

    def array(self, name: str, *shape: int, layer: int, transposed: bool = False) -> Source:
        """One layer's part of `name`, flattened to a matrix or vector: [first axis, rest], or [rest, last axis] where
        the kernel leads out of the heads (its shape then ends with d_model)."""
        if self.scanned is None:
            stored = as_is(f"{self.side}.layers_{layer}.{name}", *shape)
            return stored._replace(combine=lambda array: _flat(array, transposed))
        stacked = (shape[0], self.layers, *shape[1:])
        take = lambda array: _flat(array[:, layer], transposed)
        return Source((f"{self.scanned}.{name}",), (stacked,), take)


def _flat(array: np.ndarray, out_of_heads: bool) -> np.ndarray:
    if array.ndim < 3:
        return array
    return array.reshape(-1, array.shape[-1]) if out_of_heads else array.reshape(array.shape[0], -1)


def _scanned_prefix(side: str, shapes: Iterable[str]) -> str | None:
    prefixes = (f"{side}.layers.", f"{side}.{side}.")  # of newer and older networks
    return next((prefix[:-1] for prefix in prefixes if any(name.startswith(prefix) for name in shapes)), None)


def is_scanned(shapes: Iterable[str]) -> bool:
    """Whether some array of these names holds several layers."""
    return any(_scanned_prefix(side, shapes) for side in ("encoder", "decoder"))


def find_layout(side: str, layers: int, shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """The layout of a side; where arrays are missing, that of T5X's `t5`, so that they are reported by those names."""
    scanned = _scanned_prefix(side, shapes)
    attention = "attention" if side == "encoder" else "self_attention"
    layer = scanned or f"{side}.layers_0"
    query = shapes.get(f"{layer}.{attention}.query.kernel", ())
    of_layer = next((name for name in _BIAS_NAMES if f"{layer}.{name}.rel_embedding" in shapes), None)
    return Layout(
        side,
        layers,
        scanned,
        heads_apart=len(query) == (4 if scanned else 3),
        bias=of_layer or f"{side}.relpos_bias",
        bias_per_layer=of_layer is not None,
    )


def beside(parts: Sequence[Source]) -> Source:
    """Matrices fused side by side: [in, sum of outs]."""
    names = tuple(name for part in parts for name in part.names)
    shapes = tuple(shape for part in parts for shape in part.shapes)
    join = lambda *arrays: np.concatenate([part.combine(array) for part, array in zip(parts, arrays)], axis=1)
    return Source(names, shapes, join)


def _attention(layout: Layout, name: str, d: int, heads: int, dim: int, layer: int) -> dict[str, Source]:
    """"query", "key", "value" and "out" of one attention block."""
    inside = (d, heads, dim) if layout.heads_apart else (d, heads * dim)
    outside = (heads, dim, d) if layout.heads_apart else (heads * dim, d)
    found = {x: layout.array(f"{name}.{x}.kernel", *inside, layer=layer) for x in ("query", "key", "value")}
    return found | {"out": layout.array(f"{name}.out.kernel", *outside, layer=layer, transposed=True)}


def _feed_forward(layout: Layout, d: int, d_ff: int, gated: bool, layer: int) -> tuple[Source, Source]:
    first = ("wi_0", "wi_1") if gated else ("wi",)
    into = beside([layout.array(f"mlp.{name}.kernel", d, d_ff, layer=layer) for name in first])
    return into, layout.array("mlp.wo.kernel", d_ff, d, layer=layer)


def _bias(layout: Layout, heads: int, buckets: int) -> Source:
    """T5X holds [H, buckets]."""
    name = f"{layout.bias}.rel_embedding"
    if not layout.bias_per_layer:
        return as_is(name, heads, buckets)._replace(combine=np.transpose)
    tables = [layout.array(name, heads, buckets, layer=i) for i in range(layout.layers)]
    if layout.scanned is not None:
        stacked = tables[0]
        return Source(stacked.names, stacked.shapes, lambda array: array.transpose(1, 2, 0))
    names, shapes = (tuple(value for table in tables for value in getattr(table, key)) for key in ("names", "shapes"))
    return Source(names, shapes, lambda *arrays: np.stack([array.T for array in arrays]))


def read_t5(
    raw: Mapping, config: T5Config, shapes: Mapping[str, tuple[int, ...]], shown: str
) -> tuple[Mapping, T5Config, dict[str, Source]]:
    """`decoding.checkpoints.families.Family.t5x`: where tables of relative positions are per layer, the model is a umT5.

    Raises:
      CheckpointError: one side has a table of relative positions per layer and the other does not.
    """
    layouts = tuple(
        find_layout(side, layers, shapes)
        for side, layers in (("encoder", config.num_layers), ("decoder", config.num_decoder_layers))
    )
    per_layer = layouts[0].bias_per_layer
    if per_layer != layouts[1].bias_per_layer:
        raise CheckpointError(
            f"{shown}: encoder and decoder must both have a table of relative positions in every layer, or neither"
        )
    config = dataclasses.replace(config, bias_per_layer=per_layer)
    return {**raw, **({"model_type": "umt5"} if per_layer else {})}, config, t5_sources(config, layouts)


def t5_sources(config: T5Config, layouts: tuple[Layout, Layout]) -> dict[str, Source]:
    """Our parameter path -> its source. Parameters made of the same stacked arrays follow each other."""
    d, heads, dim, buckets = config.d_model, config.num_heads, config.d_kv, config.relative_attention_num_buckets
    found = {"embedding": as_is("token_embedder.embedding", config.vocab_size, d)}
    for layout in layouts:
        side = layout.side
        found[f"{side}_bias"] = _bias(layout, heads, buckets)
        found[f"{side}_norm"] = as_is(f"{side}.{side}_norm.scale", d)
        name = "attention" if side == "encoder" else "self_attention"
        for i in range(layout.layers):
            parts = _attention(layout, name, d, heads, dim, i)
            norm = layout.array(f"pre_{name}_layer_norm.scale", d, layer=i)
            into, out = _feed_forward(layout, d, config.d_ff, config.gated, i)
            ours = {
                "attention.norm": norm,
                "attention.qkv": beside([parts["query"], parts["key"], parts["value"]]),
                "attention.out": parts["out"],
                "feed_forward.norm": layout.array("pre_mlp_layer_norm.scale", d, layer=i),
                "feed_forward.wi": into,
                "feed_forward.wo": out,
            }
            if side == "decoder":
                cross = _attention(layout, "encoder_decoder_attention", d, heads, dim, i)
                ours |= {
                    "cross.norm": layout.array("pre_cross_attention_layer_norm.scale", d, layer=i),
                    "cross.query": cross["query"],
                    "cross.kv": beside([cross["key"], cross["value"]]),
                    "cross.out": cross["out"],
                }
            found |= {f"{side}.{i}.{path}": source for path, source in ours.items()}
    if not config.tied:
        found["head"] = as_is("decoder.logits_dense.kernel", d, config.vocab_size)
    return _in_order_of_arrays(found)


def read_decoder_only(
    raw: Mapping, config: DecoderConfig, shapes: Mapping[str, tuple[int, ...]], shown: str
) -> tuple[Mapping, DecoderConfig, dict[str, Source]]:
    """As `read_t5`, of T5X's `decoder_only`.

    Raises:
      CheckpointError: an architecture that T5X's decoder-only network does not have.
    """
    layout = find_layout("decoder", config.num_layers, shapes)
    if config.position != "relative" or config.tied or layout.bias_per_layer:
        raise CheckpointError(
            f"{shown}: of T5X's decoder-only checkpoints those with one table of relative positions and a head of "
            'their own are supported (model_type "lamda", tie_word_embeddings false)'
        )
    d, heads, dim = config.d_model, config.num_heads, config.head_dim
    embedding = next((name for name in shapes if name.endswith("token_embedder.embedding")), "decoder.token_embedder.embedding")
    found = {
        "embedding": as_is(embedding, config.vocab_size, d),
        "relative": _bias(layout, heads, config.relative_buckets),
        "norm.scale": as_is("decoder.decoder_norm.scale", d),
        "head": as_is("decoder.logits_dense.kernel", d, config.vocab_size),
    }
    for i in range(layout.layers):
        parts = _attention(layout, "self_attention", d, heads, dim, i)
        into, out = _feed_forward(layout, d, config.d_ff, config.gated, i)
        found |= {
            f"blocks.{i}.attention_norm.scale": layout.array("pre_self_attention_layer_norm.scale", d, layer=i),
            f"blocks.{i}.qkv.kernel": beside([parts["query"], parts["key"], parts["value"]]),
            f"blocks.{i}.out.kernel": parts["out"],
            f"blocks.{i}.feed_forward_norm.scale": layout.array("pre_mlp_layer_norm.scale", d, layer=i),
            f"blocks.{i}.wi.kernel": into,
            f"blocks.{i}.wo.kernel": out,
        }
    return raw, config, _in_order_of_arrays(found)


def _in_order_of_arrays(sources: dict[str, Source]) -> dict[str, Source]:
    order: dict[tuple[str, ...], int] = {}
    for source in sources.values():
        order.setdefault(source.names, len(order))
    return dict(sorted(sources.items(), key=lambda item: order[item[1].names]))
