"""The paper's language-model setting: a GPT-like 97M on lm1b, drafted by a GPT-like 6M.

    python -m pipeline.generate --config=configs/lm1b_gpt.py --output=gs://BUCKET/lm1b \\
        --config.input.data_dir=gs://BUCKET/tensorflow_datasets \\
        --config.model.target=gs://BUCKET/gpt_97m --config.model.draft=gs://BUCKET/gpt_6m

`data_dir` holds `lm1b/1.1.0` as TFDS prepares it (`tfds build lm1b`); nothing is downloaded. The models are decoder-only
checkpoints of your own with one tokeniser (the paper: BERT's pieces, 8k of them), of the shapes `gpt-97m` and `gpt-6m` in
decoding/checkpoints/presets.py. Generation is unconditional, from the start token alone, one text for every sentence of lm1b's
test set. `--config.input.name=specbeam_lm1b_prompted` gives the first words of each (transforms/inputs/tasks.py).

Table 3 of 2211.17192 gives alpha 0.88 at temperature 0 and 0.89 at 1, 0.05 with a bigram and 0.03 with a unigram draft.
It states no gamma and no speedup for this pair. With c = 1/6, the ratio of the layers, Theorem 3.8 is largest at 7.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    config = config_dict.ConfigDict()

    config.input = config_dict.ConfigDict()
    config.input.format = "seqio"
    config.input.name = "specbeam_lm1b"
    config.input.split = "test"
    config.input.data_dir = ""
    config.input.target_field = "targets_pretokenized"
    config.input.empty = "start"

    config.model = config_dict.ConfigDict()
    config.model.target = "gs://BUCKET/lm1b/gpt_97m"
    config.model.draft = "gs://BUCKET/lm1b/gpt_6m"

    config.decoding = config_dict.ConfigDict()
    config.decoding.gamma = 7
    config.decoding.temperature = 1.0
    config.decoding.max_decode_tokens = 128
    config.decoding.num_slots = 1  # as in the paper
    config.decoding.input_buckets = (16, 32, 64)

    config.shards = config_dict.ConfigDict()
    config.shards.examples_per_shard = 256
    return config
