"""Jobs on real sentences with a tiny model of every decoder-only family, its own tokeniser and a draft: they are plain ones."""

import json
import pathlib

import numpy as np
import pytest
from flax import nnx

from decoding.checkpoints import architecture, orbax
from pipeline import generate
from tests.pipeline.helpers import rows, summary
from tests.support import tiny_tokenizers
from transforms.tokenize import load_tokenizer

SENTENCES = pathlib.Path(__file__).parents[1] / "testdata" / "sentences" / "sentences_software.test.jsonl"
SHAPE = dict(
    hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=256,
    bos_token_id=2, eos_token_id=1, pad_token_id=0,
)  # fmt: skip
GROUPS = dict(num_key_value_heads=2, head_dim=8)
GEMMA = GROUPS | dict(query_pre_attn_scalar=8, sliding_window=6)
FAMILIES = {
    "gemma": (tiny_tokenizers.write_gemma, GROUPS),
    "gemma2": (tiny_tokenizers.write_gemma, GEMMA | dict(attn_logit_softcapping=5.0, final_logit_softcapping=8.0)),
    "gemma3_text": (tiny_tokenizers.write_gemma, GEMMA | dict(layer_types=["sliding_attention", "full_attention"])),
    "gpt_neox": (tiny_tokenizers.write_gpt_neox, dict(rotary_pct=0.5, bos_token_id=0, eos_token_id=0)),
    "opt": (tiny_tokenizers.write_opt, dict(ffn_dim=40, bos_token_id=2, eos_token_id=2, pad_token_id=1)),
    "phi3": (tiny_tokenizers.write_phi3, dict(num_key_value_heads=2, sliding_window=9, bos_token_id=1, eos_token_id=2)),
    "mistral": (tiny_tokenizers.write_phi3, dict(num_key_value_heads=2, sliding_window=9, bos_token_id=1, eos_token_id=2)),
}


def write_model(folder: pathlib.Path, family: str, seed: int) -> str:
    """A model in a folder with its tokeniser; models of two seeds are alike, so that one is a draft of the other."""
    write, changes = FAMILIES[family]
    raw = SHAPE | changes | {"model_type": family, "vocab_size": write(folder) + 3}
    model = architecture.build(architecture.parse_config(raw, ""), "float32")
    rng, noise, values = np.random.default_rng(0), np.random.default_rng(seed), {}
    for keys, leaf in nnx.to_flat_state(nnx.state(model)):
        name, shape = ".".join(map(str, keys)), leaf.shape
        spread = 0.1 if len(shape) < 2 else (0.5 if name == "embedding" else 3.0) * min(shape) ** -0.5  # else texts repeat
        middle = float(name.endswith("scale") and "gemma" not in family)
        values[name] = (middle + spread * (rng.normal(size=shape) + 0.1 * noise.normal(size=shape))).astype(np.float32)
    orbax.write(str(folder), raw, values.items())
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_job(family, tmp_path):
    target, draft = (write_model(tmp_path / name, family, seed) for seed, name in enumerate(("target", "draft")))
    texts = [json.loads(line)["text"] for line in SENTENCES.read_text().splitlines()[:12]]
    (tmp_path / "in.txt").write_text("".join(f"{text}\n" for text in texts))
    sections = {
        "input": {"pattern": str(tmp_path / "in.txt")},
        "model": {"target": target, "draft": draft},
        "decoding": dict(gamma=3, temperature=0.0, max_decode_tokens=20, num_slots=4, input_buckets=(64, 160)),
        "shards": {"examples_per_shard": 8},
    }
    config = tmp_path / "job.py"
    config.write_text(f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({sections!r})\n")
    plainly = ["--config.model.draft=", "--config.decoding.gamma=0"]
    for name, settings in (("out", []), ("plain", plainly)):
        assert generate.main([f"--config={config}", f"--output={tmp_path / name}", *settings]) == 0
        assert summary(tmp_path / name)["errors"] == {"total": 0}
        assert summary(tmp_path / name)["compilations_while_decoding"] == 0
    found, plain, tokenizer = rows(tmp_path / "out"), rows(tmp_path / "plain"), load_tokenizer(target)
    assert found["inputs"].tolist() == texts
    for text, row, other in zip(texts, found.to_dict("records"), plain.to_dict("records")):
        assert row["input_tokens"].tolist() == [*tokenizer.begin, *tokenizer.encode(text)]
        assert row["output_tokens"].tolist() == other["output_tokens"].tolist()
        assert row["prediction"] == other["prediction"] == tokenizer.decode(row["output_tokens"])
    accepted = np.concatenate(found["accepted"].to_numpy())
    assert 0 < accepted.mean() < 3 and len({tuple(row) for row in found["output_tokens"]}) > 2
