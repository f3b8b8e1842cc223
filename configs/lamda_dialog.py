"""Answers in dialogs, by a model of LaMDA's shape and a smaller one as its draft, sampled as LaMDA was (top-40).

    python -m pipeline.generate --config=configs/lamda_dialog.py --output=gs://bucket/answers \\
        --config.model.target=gs://bucket/lamda-137b --config.model.draft=gs://bucket/lamda-2b

LaMDA's weights are not public: models are what `pipeline.convert` writes, or T5X checkpoints with a config.json of the
presets' keys (`lamda-137b`, `lamda-8b`, `lamda-2b`, `lamda-100m`), with their piece model beside. Dialogs are JSON
lines whose field `turns` holds the texts so far, the last one the user's; some come with SpecBeam.
"""

import pathlib

from ml_collections import config_dict

_DATA = pathlib.Path(__file__).resolve().parent.parent / "examples" / "data"

# One turn a line; the answer is the next one. LaMDA's own format is not published.
TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}"


def get_config() -> config_dict.ConfigDict:
    config = config_dict.ConfigDict()

    config.input = config_dict.ConfigDict()
    config.input.pattern = str(_DATA / "dialogs.jsonl")
    config.input.input_field = "turns"
    config.input.id_field = "id"
    config.input.chat_template = TEMPLATE

    config.model = config_dict.ConfigDict()
    config.model.target = config_dict.placeholder(str)  # yours
    config.model.draft = config_dict.placeholder(str)
    config.model.dtype = "bfloat16"

    config.decoding = config_dict.ConfigDict()
    config.decoding.gamma = 5
    config.decoding.temperature = 1.0
    config.decoding.top_k = 40
    config.decoding.max_decode_tokens = 128
    config.decoding.num_slots = 8
    config.decoding.input_buckets = (128, 256, 512, 1024)

    config.shards = config_dict.ConfigDict()
    config.shards.examples_per_shard = 256
    return config
