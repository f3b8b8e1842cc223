"""Pairs of one family by their ids on the hub, over texts of one's own: a larger model, drafted by a smaller one.

    python -m pipeline.generate --config=configs/pairs.py:pythia --output=gs://BUCKET/continued \\
        --config.input.pattern=gs://BUCKET/prompts.jsonl

The pairs: `pythia` (12B and 410M), `gemma2` (27B and 2B, instruct; gated, HF_TOKEN), `bart` (news summaries, distilbart 6-6).
"""

from ml_collections import config_dict

# Target, draft, and longest input and output.
PAIRS = {
    "pythia": ("EleutherAI/pythia-12b", "EleutherAI/pythia-410m", 1024, 256),
    "gemma2": ("google/gemma-2-27b-it", "google/gemma-2-2b-it", 2048, 512),
    "bart": ("facebook/bart-large-cnn", "sshleifer/distilbart-cnn-6-6", 1024, 142),
}


def get_config(pair: str = "pythia") -> config_dict.ConfigDict:
    if pair not in PAIRS:
        raise ValueError(f"the pair is {pair!r}; allowed: {', '.join(PAIRS)}")
    target, draft, longest, tokens = PAIRS[pair]
    config = config_dict.ConfigDict()

    config.input = config_dict.ConfigDict()
    config.input.pattern = "gs://BUCKET/prompts.jsonl"
    config.input.input_field = "text"
    config.input.chat_template = "model" if pair == "gemma2" else ""

    config.model = config_dict.ConfigDict()
    config.model.target = target
    config.model.draft = draft
    config.model.dtype = "bfloat16"

    config.decoding = config_dict.ConfigDict()
    config.decoding.gamma = 4
    config.decoding.temperature = 0.0
    config.decoding.max_decode_tokens = tokens
    config.decoding.num_slots = 32
    config.decoding.input_buckets = (longest // 4, longest // 2, longest)

    config.shards = config_dict.ConfigDict()
    config.shards.examples_per_shard = 256
    return config
