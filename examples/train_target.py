"""Trains a T5 v1.1 from nothing on one parallel corpus: a target that a draft can then be distilled from.

    python examples/train_target.py --train=train.jsonl.gz --output=out/target [--input-field=en] [--reference-field=de]

The corpus is JSON lines, one pair a line, gzipped or not: `{"en": "delete node", "de": "Oberbegriff löschen"}`. One piece
model is trained on both sides. `--output` is a Hugging Face directory from the first `--save-steps` on. Its BLEU is told by
`pipeline.generate`, its draft made by `pipeline.distill`: docs/distill.md.
"""

import argparse
import gzip
import io
import itertools
import json
import pathlib

import numpy as np
import sentencepiece
import tqdm

from decoding.training.recipe import Recipe
from decoding.training.trainer import Text, Trainer
from decoding.training.weights import Weights

SHAPE = {"d_model": 256, "d_ff": 768, "num_heads": 8, "d_kv": 32, "num_layers": 4, "num_decoder_layers": 3}
SPECIAL = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
BUCKETS = (32, 64, 128)
"""Longest inputs and references of the classes that batches are made of; longer pairs are left out."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=pathlib.Path, required=True, help="JSON lines, gzipped or not")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder of the target")
    parser.add_argument("--input-field", default="en")
    parser.add_argument("--reference-field", default="de")
    parser.add_argument("--shape", type=json.loads, default=SHAPE, help="keys of T5's config.json; default: %(default)s")
    parser.add_argument("--pieces", type=int, default=8192, help="size of the vocabulary")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-tokens", type=int, default=4096, help="padded tokens of a step")
    parser.add_argument("--save-steps", type=int, default=250)
    args = parser.parse_args()

    opened = gzip.open if args.train.suffix == ".gz" else open
    with opened(args.train, "rt", encoding="utf-8") as lines:
        pairs = [(row[args.input_field], row[args.reference_field]) for row in map(json.loads, lines)]
    piece_model = train_pieces(pairs, args.pieces)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=piece_model)
    sides = (pieces.encode(list(side), add_eos=True) for side in zip(*pairs))
    texts = [Text(*(np.array(tokens, np.int32) for tokens in pair)) for pair in zip(*sides)]

    raw = {"model_type": "t5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "dropout_rate": 0.0}
    raw |= {"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True, "layer_norm_epsilon": 1e-6}
    raw |= {"vocab_size": args.pieces, **SPECIAL, **args.shape}
    recipe = Recipe(steps=args.steps, batch_tokens=args.batch_tokens, kl_weight=1.0)
    start = Weights.new(raw, recipe.seed)
    trainer = Trainer(None, start, recipe, buckets=BUCKETS, longest=BUCKETS[-1])
    texts = [text for text in texts if trainer.fits(text)]
    beside = {"spiece.model": piece_model, "generation_config.json": json.dumps(SPECIAL).encode()}

    state = trainer.begin(start)
    batches = (batch for epoch in itertools.count() for batch in trainer.batches(texts, epoch))
    with tqdm.trange(1, args.steps + 1, unit="step") as steps:
        for step, (batch, cut, _) in zip(steps, batches):
            state, loss = trainer.step(state, batch, cut)
            if step % 16 == 0:
                steps.set_postfix(loss=f"{float(loss):.3f}")
            if step % args.save_steps == 0 or step == args.steps:
                Weights(raw, state.tensors).write(str(args.output), beside)
    print(f"{start.size:,} parameters, {len(texts):,} pairs, cross-entropy of the last batch {float(loss):.3f}: {args.output}")


def train_pieces(pairs: list[tuple[str, str]], size: int) -> bytes:
    """A unigram piece model of both sides; rare characters become bytes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=itertools.chain.from_iterable(pairs),
        model_writer=model,
        vocab_size=size,
        model_type="unigram",
        byte_fallback=True,
        character_coverage=0.9998,
        normalization_rule_name="nmt_nfkc",
        max_sentence_length=8192,
        pad_id=SPECIAL["pad_token_id"],
        eos_id=SPECIAL["eos_token_id"],
        unk_id=2,
        bos_id=-1,
        minloglevel=1,
    )
    return model.getvalue()


if __name__ == "__main__":
    main()
