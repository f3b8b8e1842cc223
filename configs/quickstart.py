"""English to German with the small pair that comes with SpecBeam, on 300 sentences that come with it.

    python -m pipeline.generate --config=configs/quickstart.py --output=out/quickstart

Everything can be overridden: `--config.decoding.gamma=3`, `--config.input.pattern=my/*.jsonl`,
`--config.model.target=path/to/t5`. pipeline/settings/sections.py and decoding/config.py say what each setting means.
"""

import pathlib

from ml_collections import config_dict

_EXAMPLES = pathlib.Path(__file__).resolve().parent.parent / "examples"
_PAIR = _EXAMPLES / "models" / "ende_software"


def get_config() -> config_dict.ConfigDict:
    config = config_dict.ConfigDict()

    config.input = config_dict.ConfigDict()
    config.input.pattern = str(_EXAMPLES / "data" / "ende_software.test.jsonl")
    config.input.input_field = "en"
    config.input.target_field = "de"

    config.model = config_dict.ConfigDict()
    config.model.target = str(_PAIR / "target")
    config.model.draft = str(_PAIR / "draft")
    # What makes the draft cheaper at the cost of a little α: of 8,192 pieces those that the target says most often (not where
    # another target is given), and on processors int8.
    config.model.draft_vocabulary = str(_PAIR / "unigram")
    config.model.draft_vocabulary_size = 4096
    config.model.draft_weights = "int8"

    config.decoding = config_dict.ConfigDict()
    config.decoding.gamma = 3
    config.decoding.temperature = 0.0
    config.decoding.max_decode_tokens = 128
    config.decoding.num_slots = 1  # as in the paper's measurements
    config.decoding.input_buckets = (32, 64, 128, 256)

    config.shards = config_dict.ConfigDict()
    config.shards.examples_per_shard = 64
    return config
