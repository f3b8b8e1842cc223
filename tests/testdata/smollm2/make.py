"""Writes reference.json beside it: what transformers makes of SmolLM2's GGUF file. Run by hand, once.

    python tests/testdata/smollm2/make.py      needs torch, transformers and accelerate

Greedy, float32: continuations of the first three shipped prompts, and a summary of the first shipped text.
"""

import hashlib
import json
import pathlib
import sys

import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from configs import smollm2  # noqa: E402

NEW_TOKENS = 64
PREFIX = "Summarize this text in two sentences:\n\n"


def rows(name: str, count: int) -> list[dict]:
    lines = (ROOT / "examples" / "data" / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:count]]


def main() -> None:
    file = pathlib.Path(smollm2.model_file())
    where = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    model = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()

    def generate(ids: list[int]) -> dict:
        with torch.no_grad():
            found = model.generate(
                torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False,
                max_new_tokens=NEW_TOKENS, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id,
            )[0, len(ids) :].tolist()  # fmt: skip
            logits = model(torch.tensor([ids])).logits[0, -1].topk(8)
        return {
            "input_tokens": ids,
            "output_tokens": found,
            "text": tokenizer.decode(found, skip_special_tokens=True),
            "first_logits": {str(i): round(v, 5) for i, v in zip(logits.indices.tolist(), logits.values.tolist())},
        }

    prompts = [row["text"] for row in rows("prompts.jsonl", 3)]
    article = rows("summarize_software.test.jsonl", 1)[0]["article"]
    messages = [{"role": "user", "content": PREFIX + article}]
    chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    reference = {
        "made_with": {name.__name__: name.__version__ for name in (torch, transformers)},
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "continuations": [generate(tokenizer(text, add_special_tokens=False).input_ids) for text in prompts],
        "summary": {"prefix": PREFIX, **generate(tokenizer(chat, add_special_tokens=False).input_ids)},
    }
    path = pathlib.Path(__file__).with_name("reference.json")
    path.write_text(json.dumps(reference, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
