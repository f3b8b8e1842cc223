"""What transformers' beam search finds with the tiny models of tests/testdata/golden; needs PyTorch.

    python -m tests.support.hf_beams        writes tests/testdata/golden/beams.json anew

One input at a time, since in a batch transformers ends a search when the last of the batch does.
"""

import json
import pathlib

GOLDEN = pathlib.Path(__file__).parents[1] / "testdata" / "golden"
DECODER_ONLY = ("gpt2", "llama", "gemma2", "gpt_neox", "opt")
FAMILIES = ("t5_v1_0", "t5_v1_1_target", "bart", "marian", "mbart", "m2m_100", "pegasus", *DECODER_ONLY)
INPUTS = ((5, 9, 14, 3, 22, 8, 31, 17, 6, 2, 40, 11, 7, 19, 4, 2, 1), (12, 33, 7, 1), (21, 1), (9, 8, 7, 6, 5, 4, 3, 1))
SETTINGS = (
    dict(num_beams=4, num_return_sequences=4),
    dict(num_beams=4, num_return_sequences=4, length_penalty=0.6, early_stopping=True),
    dict(num_beams=3, num_return_sequences=2, length_penalty=2.0, early_stopping="never"),
    dict(num_beams=2, num_return_sequences=2, length_penalty=-0.5, early_stopping="never"),
    dict(num_beams=4, num_return_sequences=3, min_new_tokens=5, no_repeat_ngram_size=2),
)
NEW_TOKENS = 12


def found(model, tokens: tuple[int, ...], settings: dict) -> list[dict]:
    """Generated tokens, EOS included, and scores, the best first."""
    import torch

    out = model.generate(
        torch.tensor([tokens]), attention_mask=torch.ones((1, len(tokens)), dtype=torch.long), do_sample=False,
        max_new_tokens=NEW_TOKENS, output_scores=True, return_dict_in_generate=True, **settings,
    )  # fmt: skip
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    texts, skipped = [], 1 if model.config.is_encoder_decoder else len(tokens)
    for text, score in zip(out.sequences.tolist(), out.sequences_scores.tolist()):
        text = text[skipped:]
        length = next((i + 1 for i, token in enumerate(text) if token in ends), len(text))
        texts.append({"tokens": text[:length], "score": round(score, 6)})
    return texts


def main():
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    lines = []
    for family in FAMILIES:
        kind = AutoModelForCausalLM if family in DECODER_ONLY else AutoModelForSeq2SeqLM
        model = kind.from_pretrained(GOLDEN / family).eval()
        for settings in SETTINGS:
            texts = [found(model, tokens, settings) for tokens in INPUTS]
            lines.append(json.dumps({"family": family, "settings": settings, "texts": texts}))
    (GOLDEN / "beams.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
