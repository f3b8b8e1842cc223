"""The weights of a model in training: a checkpoint's tensors, under Hugging Face's names.

Training changes these and not the model's fused parameters: a family's table of names (`families.Family.sources`) says how
parameters are made of them, inside the program, so that gradients pass through, writing a checkpoint is writing them, and
an optimiser sees queries apart from keys.
"""

import dataclasses
import json
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save

from decoding import sharding
from decoding.checkpoints import architecture, find_checkpoint, storage
from decoding.checkpoints.fill import Source, fill
from decoding.checkpoints.hf import SINGLE
from decoding.checkpoints.storage import CheckpointError
from decoding.models.base import LanguageModel, Shape
from decoding.registry import FAMILIES

Tensors = dict[str, jax.Array]
LAYERS = {
    "num_layers": "encoder",
    "num_decoder_layers": "decoder",
    "num_hidden_layers": "blocks",
    "n_layer": "blocks",
}
"""Keys of configs that count layers, and where these are in our models; T5's decoder has as many where it says nothing."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """A model as a config in Hugging Face's keys and, by name, its tensors: float32."""

    raw: Mapping
    tensors: Tensors

    @classmethod
    def read(cls, path: str) -> "Weights":
        """Of a checkpoint in any format whose family has Hugging Face's names.

        Raises:
          CheckpointError: it is unusable, or its family has none.
        """
        checkpoint = find_checkpoint(path)
        sources, tensors = sources_of(checkpoint.raw, checkpoint.config), {}
        for name, value in checkpoint.parameters(np.float32):
            tensors |= taken_apart(sources[name], jnp.asarray(value))
        return cls(_explicit(checkpoint.raw, checkpoint.config), tensors)

    @classmethod
    def of_layers(cls, target: "Weights", counts: Mapping[str, int]) -> "Weights":
        """Evenly spaced layers of a target, the first and the last among them, and all that is not in a layer.

        Args:
          target: where they come from.
          counts: how many layers to keep, by a key of the target's config that counts them.

        Raises:
          CheckpointError: a key that the config lacks, or more layers than there are.
        """
        raw = {**target.raw, **counts}
        kept = {}
        for key, count in counts.items():
            most = target.raw.get(key)
            if key not in LAYERS or not isinstance(most, int) or not 1 <= count <= most:
                raise CheckpointError(f"{key} is {count}; allowed: 1 to {most}, the target's")
            kept[LAYERS[key]] = [round(i) for i in np.linspace(0, most - 1, count)] if count > 1 else [0]
        config = architecture.parse_config(raw, "the draft's config")
        mine, others = sources_of(raw, config), sources_of(target.raw)
        tensors = {}
        for path, source in mine.items():
            side, *rest = path.split(".")
            if side in kept and rest and rest[0].isdigit():
                names = others[".".join([side, str(kept[side][int(rest[0])]), *rest[1:]])].names
            else:  # whole; or, of every layer's bias, those of the layers that are kept
                names, layers = others[path].names, kept.get(path.removesuffix("_bias"))
                names = [names[i] for i in layers] if layers and len(names) > len(source.names) else names
            tensors |= {name: target.tensors[other] for name, other in zip(source.names, names, strict=True)}
        return cls(raw, tensors)

    @classmethod
    def new(cls, raw: Mapping, seed: int, target: "Weights | None" = None) -> "Weights":
        """Random ones. Given a target of the same vocabulary, embedding and head are its own, as far as they fit.

        Of fewer features than the target has, they are its tables' principal components (Eckart and Young): what tokens
        have in common is there from the first step, and only the layers have to be learnt.
        """
        config = architecture.parse_config(raw, "the draft's config")
        model, sources, tensors = config.build(rngs=nnx.Rngs(seed), dtype=jnp.float32), sources_of(raw, config), {}
        for path, leaf in sharding.parameters(model).items():
            tensors |= taken_apart(sources[path], leaf[...])
        for name in unscaled_queries(config, tensors):
            tensors[name] = tensors[name] * config.head_dim**-0.5
        if target is not None:
            tables = sources_of(target.raw)
            for path in ("embedding", "head"):
                if path not in sources:
                    continue
                (mine,), (other,) = sources[path].names, tables[path if path in tables else "embedding"].names
                table, (size, width) = target.tensors[other], tensors[mine].shape
                if len(table) == size and table.shape[1] >= width:
                    tensors[mine] = _components(table, width)
        return cls(raw, tensors)

    def grown(self, shape: Mapping[str, int], seed: int) -> "Weights":
        """The same model with more of what `shape` names, and the same logits (Chen et al., "Net2Net", 1511.05641).

        What writes into the residual stream writes nothing at first where it is new, so that what reads there, which is
        random, reads zeros: new features, wider feed-forwards, more heads and layers appended cost nothing to begin with.

        Raises:
          CheckpointError: something would be smaller, or the model has norms other than RMS norms, which notice new features.
        """
        raw, before = {**self.raw, **shape}, self.config
        fresh, sources, old = Weights.new(raw, seed), sources_of(raw), sources_of(self.raw)
        config, tensors = fresh.config, {}
        if getattr(config, "norm", "rms") != "rms":
            raise CheckpointError("its norms are layer norms; allowed to grow: models with RMS norms")
        thinner = (before.d_model / config.d_model) ** 0.5
        for path, source in sources.items():
            writes = path == "embedding" or path.removesuffix(".kernel").endswith((".out", ".wo"))
            for name in source.names:
                new = fresh.tensors[name] * (not writes)
                if path in old:
                    given = self.tensors[name]
                    if any(has > may for has, may in zip(given.shape, new.shape)):
                        raise CheckpointError(f"{name} would be {list(new.shape)} and is {list(given.shape)}; allowed: no less")
                    scaled = path == "decoder_norm" and getattr(config, "scale_decoder_outputs", False)
                    factor = thinner if given.shape == (before.d_model,) and not scaled else 1.0
                    new = new.at[tuple(slice(size) for size in given.shape)].set(given * factor)
                tensors[name] = new
        return Weights(raw, tensors)

    @property
    def config(self) -> Shape:
        return architecture.parse_config(self.raw, "the draft's config")

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(tensor.size for tensor in self.tensors.values())

    def write(self, output: str, beside: Mapping[str, bytes], dtype=np.float32) -> None:
        """Writes a Hugging Face directory: weights, what lies `beside` them by name, and last config.json."""
        tensors = {name: np.asarray(value).astype(dtype) for name, value in self.tensors.items()}
        storage.write_bytes(storage.join(output, SINGLE), save(tensors, metadata={"format": "pt"}))
        for name, content in beside.items():
            storage.write_bytes(storage.join(output, name), content)
        raw = {**self.raw, "torch_dtype": np.dtype(dtype).name}
        storage.write_bytes(storage.join(output, "config.json"), (json.dumps(raw, indent=2) + "\n").encode())


def sources_of(raw: Mapping, config: Shape | None = None) -> dict[str, Source]:
    """The table of a family's names, by the path of our parameters.

    Raises:
      CheckpointError: it has none.
    """
    family = FAMILIES.get(raw["model_type"])
    if family.sources is None:
        raise CheckpointError(f"a {raw['model_type']!r} has no names of Hugging Face's; allowed: models of other families")
    return family.sources(config or architecture.parse_config(raw, "the config"))


def taken_apart(source: Source, value: jax.Array) -> Tensors:
    """The tensors that a parameter is made of: `combine` moves values only, so that its transpose is its inverse."""
    if not source.names:  # computed, and in no file
        return {}
    shapes = (jax.ShapeDtypeStruct(shape, value.dtype) for shape in source.shapes)
    return dict(zip(source.names, jax.linear_transpose(source.combine, *shapes)(value)))


def assemble(
    config: Shape, sources: Mapping[str, Source], tensors: Tensors, dtypes: Mapping[str, str] | None = None
) -> LanguageModel:
    """The model of these tensors, plain arrays all; inside a program gradients pass through.

    Args:
      dtypes: of the parameters that are rounded, by path.
    """
    parameters = ((path, source.combine(*(tensors[name] for name in source.names))) for path, source in sources.items())
    rounded = dtypes or {}

    def place(path: str, value: jax.Array) -> jax.Array:
        return value.astype(rounded.get(path, value.dtype))

    return fill(lambda: config.build(rngs=nnx.Rngs(0), dtype=jnp.float32), parameters, place)


def unscaled_queries(config: Shape, tensors: Tensors) -> list[str]:
    """Names of query matrices, where attention does not divide scores by the square root of the heads' width.

    T5 leaves the factor to them: they begin and move so much smaller.
    """
    return [name for name in tensors if re.search(r"Attention\.q\.weight$", name)] if config.encoder_decoder else []


def _explicit(raw: Mapping, config: Shape) -> dict:
    """A config that says itself what was told by the weights: whether the head is tied, and by that T5's scale."""
    told = {"tie_word_embeddings": "tied", "scale_decoder_outputs": "scale_decoder_outputs"}
    return {**raw, **{key: getattr(config, name) for key, name in told.items() if hasattr(config, name)}}


def _components(table: jax.Array, width: int) -> jax.Array:
    """A table [V, d] in its first `width` principal directions; itself where that is d."""
    if table.shape[1] == width:
        return table
    _, vectors = np.linalg.eigh(np.asarray(table.T @ table, np.float64))
    return table @ vectors[:, ::-1][:, :width].astype(np.float32)
