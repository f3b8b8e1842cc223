"""What is decoded: a model directory every system can load, and the token ids of the inputs.

Systems get the same weights and the same token ids, so tokenisers play no part. CTranslate2 addresses tokens by name;
its copy of a model gets a vocabulary whose names are the ids in decimal.
"""
from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np

PAD, EOS = 0, 1   # of every T5 vocabulary; PAD also starts the decoder

# T5 v1.1: d_model, d_ff, layers of encoder and of decoder, heads; d_kv 64, vocabulary 32,128, gated GELU, untied.
SHAPES = {"small": (512, 1024, 8, 6), "base": (768, 2048, 12, 12), "tiny-draft": (128, 256, 1, 2)}


@dataclasses.dataclass(frozen=True)
class Workload:
    """A target, a draft, the inputs, and how many tokens each input may generate."""

    name: str
    target: Path                    # Hugging Face directory, or GGUF file
    draft: Path | None              # None: prompt lookup
    converted: Path | None          # the target for CTranslate2
    inputs: list[list[int]]         # token ids, EOS at the end
    max_new_tokens: int
    examples: dict[int, int]        # batch size -> how many of `inputs` one run decodes
    eos: int = EOS

    def batch_inputs(self, batch: int) -> list[list[int]]:
        return self.inputs[: self.examples[batch]]


def random_t5(directory: Path, shape: str, seed: int) -> Path:
    """Writes a randomly initialised T5 v1.1 in float32, unless it is there already; returns its directory.

    The output row of EOS is zero: its logit is 0 while the largest of 32,127 random logits is positive, so that greedy
    decoding always runs to the token limit, in every system and without options that only some systems have.
    """
    if (directory / "config.json").exists():
        return directory
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import T5Config, T5ForConditionalGeneration

    d_model, d_ff, layers, heads = SHAPES[shape]
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=32128, d_model=d_model, d_ff=d_ff, d_kv=64, num_layers=layers, num_decoder_layers=layers,
        num_heads=heads, feed_forward_proj="gated-gelu", tie_word_embeddings=False, dropout_rate=0.0,
        decoder_start_token_id=PAD, eos_token_id=EOS, pad_token_id=PAD,
    )
    model = T5ForConditionalGeneration(config)
    with torch.no_grad():
        model.lm_head.weight[EOS] = 0.0
    model.save_pretrained(directory)
    # As published v1.1 checkpoints are: with a head of their own. Transformers 5 ties it and leaves it out.
    file = directory / "model.safetensors"
    weights = load_file(file)
    save_file(weights | {"lm_head.weight": weights["shared.weight"].clone()}, file, metadata={"format": "pt"})
    stored = json.loads((directory / "config.json").read_text())
    stored["tie_word_embeddings"] = False
    stored.pop("scale_decoder_outputs", None)
    (directory / "config.json").write_text(json.dumps(stored, indent=2))
    return directory


def convert_to_ctranslate2(source: Path, directory: Path) -> Path:
    """Converts a Hugging Face T5 to CTranslate2 in float32, with ids in decimal as token names; returns its directory."""
    if (directory / "model.bin").exists():
        return directory
    import torch
    from ctranslate2.converters import TransformersConverter
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast, T5ForConditionalGeneration

    staging = directory.with_name(directory.name + ".source")
    model = T5ForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
    model.save_pretrained(staging)
    names = {str(i): i for i in range(model.config.vocab_size)}
    tokenizer = Tokenizer(WordLevel(names, unk_token="2"))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=str(PAD), eos_token=str(EOS), unk_token="2",
    ).save_pretrained(staging)
    TransformersConverter(str(staging)).convert(str(directory), quantization="float32", force=True)
    shutil.rmtree(staging)
    return directory


def random_workload(shape: str, directory: Path, batches: list[int], max_new_tokens: int, seed: int = 0) -> Workload:
    """Random T5 v1.1 weights of `shape` and random inputs of 16 to 40 tokens; the draft is a small random T5."""
    rng = np.random.default_rng(seed)
    rows = [[*map(int, rng.integers(3, 32000, size=rng.integers(15, 40))), EOS] for _ in range(max(batches))]
    target = random_t5(directory / f"t5_v1_1_{shape}", shape, seed)
    return Workload(
        name=f"T5 v1.1 {shape}, random weights",
        target=target,
        converted=convert_to_ctranslate2(target, directory / f"t5_v1_1_{shape}.ctranslate2"),
        draft=random_t5(directory / "t5_v1_1_draft", "tiny-draft", seed + 1),
        inputs=rows,
        max_new_tokens=max_new_tokens,
        examples={batch: min(max(2, batch), max(batches)) for batch in batches},
    )


def read_sentences(sentences: Path, pieces: Path, longest: int) -> list[list[int]]:
    """Token ids of the English sentences (JSON lines with "en") that have from 4 to `longest` tokens, EOS included."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(pieces))
    texts = [json.loads(line)["en"] for line in sentences.read_text(encoding="utf-8").splitlines()]
    rows = [[*processor.encode(text), EOS] for text in texts]
    return [row for row in rows if 4 <= len(row) <= longest]


def demo_workload(pair: Path, sentences: Path, directory: Path, batches: list[int], max_new_tokens: int) -> Workload:
    """The trained English-German pair in `pair`/target and `pair`/draft over real sentences (JSON lines with "en")."""
    rows = read_sentences(sentences, pair / "target" / "spiece.model", 64)
    examples = {batch: min(max(16, 2 * batch), len(rows)) for batch in batches}
    return Workload(
        name="English-German pair, real sentences",
        target=pair / "target",
        draft=pair / "draft",
        converted=convert_to_ctranslate2(pair / "target", directory / "pair.ctranslate2"),
        inputs=rows[: max(examples.values())],
        max_new_tokens=max_new_tokens,
        examples=examples,
    )


def smollm2_workload(texts: int, max_new_tokens: int) -> Workload:
    """SmolLM2-135M-Instruct's GGUF file, one shipped text to summarise at a time, as configs/smollm2.py asks for it."""
    from configs import smollm2
    from transforms import chat
    from transforms.tokenize import load_tokenizer

    settings = smollm2.get_config().input
    file = smollm2.model_file()
    tokenizer, template = load_tokenizer(file), chat.find_template(file)
    lines = Path(settings.pattern).read_text(encoding="utf-8").splitlines()[:texts]
    articles = [json.loads(line)[settings.input_field] for line in lines]
    return Workload(
        name="SmolLM2-135M-Instruct, summaries",
        target=Path(file),
        draft=None,
        converted=None,
        inputs=[chat.encode(tokenizer, template, text, prefix=settings.prefix, max_tokens=512)[0] for text in articles],
        max_new_tokens=max_new_tokens,
        examples={1: texts},
        eos=2,
    )
