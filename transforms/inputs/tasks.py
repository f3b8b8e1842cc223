"""SeqIO tasks over the data sets of the paper, registered here and nowhere else.

Inputs carry T5's prefixes. With a sentencepiece model, the target's own tokeniser file, texts are also tokenised and end
with EOS ("inputs", "targets"); as text they are "inputs_pretokenized" and "targets_pretokenized" in any case. TFDS reads
prepared data sets from `input.data_dir`; nothing is downloaded. Importing this module imports no TensorFlow.
"""

import functools

PROMPT_WORDS = 8
"""Of a sentence of lm1b, the words that are given; the rest is the reference."""

_DATA_SETS = {
    "specbeam_wmt14_ende": "wmt14_translate/de-en:1.0.0",
    "specbeam_wmt16_ende": "wmt16_translate/de-en:1.0.0",
    "specbeam_cnn_dm": "cnn_dailymail:3.4.0",
    "specbeam_lm1b": "lm1b:1.1.0",
    "specbeam_lm1b_prompted": "lm1b:1.1.0",
}
NAMES = tuple(_DATA_SETS)


def register(vocabulary: str = "") -> None:
    """Registers the tasks of NAMES. Safe to call again, also with another vocabulary.

    Args:
      vocabulary: path of a sentencepiece model; with anything else (another tokeniser's file, "") tasks yield text only.
    """
    import seqio

    texts = {
        "specbeam_wmt14_ende": _translation,
        "specbeam_wmt16_ende": _translation,
        "specbeam_cnn_dm": _summary,
        "specbeam_lm1b": _unconditional,
        "specbeam_lm1b_prompted": _continuation,
    }
    for name, data_set in _DATA_SETS.items():
        if name in seqio.TaskRegistry.names():
            seqio.TaskRegistry.remove(name)
        steps, features = [functools.partial(_map, texts[name]), _name_as_text], {}
        if vocabulary.endswith(".model"):
            pieces = seqio.SentencePieceVocabulary(vocabulary)
            features = {field: seqio.Feature(pieces, add_eos=True) for field in ("inputs", "targets")}
            steps = [steps[0], seqio.preprocessors.tokenize, seqio.preprocessors.append_eos]
        source = seqio.TfdsDataSource(data_set, read_only=True)
        seqio.TaskRegistry.add(name, source=source, preprocessors=steps, output_features=features, metric_fns=[])


def _map(function, dataset):
    return dataset.map(function)


def _name_as_text(dataset):
    return dataset.map(lambda row: {f"{name}_pretokenized": text for name, text in row.items()})


def _translation(row):
    return {"inputs": "translate English to German: " + row["en"], "targets": row["de"]}


def _summary(row):
    return {"inputs": "summarize: " + row["article"], "targets": row["highlights"]}


def _unconditional(row):
    return {"inputs": "", "targets": row["text"]}


def _continuation(row):
    import tensorflow as tf

    words = tf.strings.split(row["text"])
    given, rest = words[:PROMPT_WORDS], words[PROMPT_WORDS:]
    return {"inputs": tf.strings.reduce_join(given, separator=" "), "targets": tf.strings.reduce_join(rest, separator=" ")}
