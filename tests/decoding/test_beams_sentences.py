"""n-best lists of real sentences against transformers' `generate` with the same weights; needs PyTorch."""

import importlib.util
import os

import numpy as np
import pytest

import decoding
from benchmarks.workloads import EOS, read_sentences
from tests.decoding.test_same_bits import PAIR

CLOSE = 1e-4
BEAMS, NEW_TOKENS = 4, 64
SENTENCES = int(os.environ.get("SPECBEAM_SENTENCES", "300"))


def theirs(inputs) -> list[list[tuple[list[int], float]]]:
    """Of each input tokens and score of its texts, one input at a time."""
    import torch
    from transformers import T5ForConditionalGeneration

    model, found = T5ForConditionalGeneration.from_pretrained(PAIR / "target", dtype=torch.float32).eval(), []
    for tokens in inputs:
        with torch.inference_mode():
            out = model.generate(
                torch.tensor([tokens]), do_sample=False, max_new_tokens=NEW_TOKENS, num_beams=BEAMS, length_penalty=0.6,
                num_return_sequences=BEAMS, output_scores=True, return_dict_in_generate=True,
            )  # fmt: skip
        texts = [text[1:] for text in out.sequences.tolist()]  # padded, behind EOS, with EOS
        ends = [text.index(EOS) + 1 if EOS in text else len(text) for text in texts]
        found.append([(text[:end], score) for text, end, score in zip(texts, ends, out.sequences_scores.tolist())])
    return found


@pytest.mark.soak
@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="PyTorch, of the extra bench, is not installed")
def test_the_pair_on_300_sentences():
    """Identical texts in the same order but where two scores are closer than 1e-4, and scores within 1e-4."""
    target, draft = (decoding.load_model(str(PAIR / name)) for name in ("target", "draft"))
    data = PAIR.parents[1] / "data" / "ende_software.test.jsonl"
    inputs = read_sentences(data, PAIR / "target" / "spiece.model", 256)[:SENTENCES]
    config = decoding.DecodingConfig(
        gamma=4, temperature=0.0, max_decode_tokens=NEW_TOKENS, input_buckets=(64, 256), num_beams=BEAMS, draft_beams=8,
        num_return_sequences=BEAMS, length_penalty=0.6,
    )  # fmt: skip
    results = decoding.Generator(target, draft, config).generate(inputs, list(map(str, range(len(inputs)))))
    close = furthest = 0
    for i, texts in enumerate(theirs(inputs)):
        ours = results[i * BEAMS : (i + 1) * BEAMS]
        mine, scores = [one.tokens.tolist() for one in ours], np.array([one.score for one in ours])
        np.testing.assert_allclose(scores, [score for _, score in texts], atol=CLOSE)
        furthest = max(furthest, *np.abs(scores - [score for _, score in texts]))
        if mine != [text for text, _ in texts]:
            close += 1  # what differs has a score as close to another's, or to that of the next best
            for rank, (text, _) in enumerate(texts):
                assert mine[rank] == text or np.sum(np.abs(scores - scores[rank]) < CLOSE) > 1 or rank == BEAMS - 1, i
    print(f"{len(inputs)} sentences, {close} with texts in another order where scores are close, scores within {furthest:.1e}")
    assert close <= len(inputs) // 50
