"""The paper's summarisation setting: T5 v1.1 XXL (11B) on the test set of CNN/DailyMail, drafted by T5-small.

    python -m pipeline.generate --config=configs/cnn_dm_t5_xxl.py --output=gs://BUCKET/cnn_dm \\
        --config.input.data_dir=gs://BUCKET/tensorflow_datasets \\
        --config.model.target=gs://BUCKET/t5_v1_1_xxl --config.model.draft=gs://BUCKET/t5_v1_1_small

`data_dir` holds `cnn_dailymail/3.4.0` as TFDS prepares it (`tfds build cnn_dailymail`); nothing is downloaded. The models
are fine-tuned checkpoints of your own, with T5's `spiece.model` beside the target.

Tables 2 and 4 of 2211.17192, batch 1; c is that of a TPU v4:

| draft | temperature | gamma | alpha | c | speedup |
|---|---|---|---|---|---|
| small (77M) | 0 | 5 | 0.65 | 0.02 | 3.1 |
| base (250M) | 0 | 5 | 0.73 | 0.04 | 3.0 |
| large (800M) | 0 | 3 | 0.74 | 0.11 | 2.2 |
| small | 1 | 5 | 0.53 | 0.02 | 2.3 |
| base | 1 | 3 | 0.55 | 0.04 | 2.2 |
| large | 1 | 3 | 0.56 | 0.11 | 1.7 |

`--config=configs/cnn_dm_t5_xxl.py:beams` searches with four beams and a length penalty of 0.6, as the T5 paper did, here with a
draft: docs/beams.md.
"""

from ml_collections import config_dict

_VARIANTS = ("greedy", "beams")


def get_config(variant: str = "greedy") -> config_dict.ConfigDict:
    """`variant` is "greedy" or "beams"; on the command line it follows the file's name and a colon."""
    if variant not in _VARIANTS:
        raise ValueError(f"the variant of configs/cnn_dm_t5_xxl.py is {variant!r}; allowed: {', '.join(_VARIANTS)}")
    config = config_dict.ConfigDict()

    config.input = config_dict.ConfigDict()
    config.input.format = "seqio"
    config.input.name = "specbeam_cnn_dm"  # transforms/inputs/tasks.py: T5's prefix is the task's
    config.input.split = "test"
    config.input.data_dir = ""
    config.input.target_field = "targets_pretokenized"

    config.model = config_dict.ConfigDict()
    config.model.target = "gs://BUCKET/cnn_dm/t5_v1_1_xxl"
    config.model.draft = "gs://BUCKET/cnn_dm/t5_v1_1_small"
    config.model.dtype = "bfloat16"

    config.decoding = config_dict.ConfigDict()
    config.decoding.gamma = 5
    config.decoding.temperature = 0.0
    config.decoding.max_decode_tokens = 256
    config.decoding.num_slots = 1  # as in the paper; more for throughput, then with gamma = "auto"
    config.decoding.input_buckets = (256, 512, 1024, 2048)  # longer articles are cut, flagged and counted

    if variant == "beams":
        config.decoding.num_beams = 4
        config.decoding.draft_beams = 16
        config.decoding.gamma = 4
        config.decoding.length_penalty = 0.6
        config.decoding.length_penalty_form = "t5x"
        config.decoding.early_stopping = "never"

    config.shards = config_dict.ConfigDict()
    config.shards.examples_per_shard = 64
    return config
