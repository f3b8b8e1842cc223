"""TFRecord files, prepared TFDS data sets and SeqIO tasks: ids, slices, broken records, and what is not there."""

import gzip
import sys

import numpy as np
import pytest

from tests.support import datasets
from transforms.inputs import tasks, tfrecord
from transforms.inputs.seqio import _find_tasks
from transforms.plan import Cut, InputError, InputSpec, RecordFields, ShardTable, plan_input
from transforms.read import read_shard

PAIRS = RecordFields("en", "de")
WMT = "wmt14_translate/de-en:1.0.0"


class Letters:
    begin = ()

    def encode(self, text):
        return [ord(letter) for letter in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


def read_all(spec: InputSpec, size: int, limit: int = 9999) -> tuple[list, list]:
    """(examples, errors) of all shards of `size` records."""
    plan = plan_input(spec, Cut(size))
    table = ShardTable(plan)
    shards = [
        read_shard(table[i], spec, Letters(), prefix="", eos_id=1, max_input_tokens=limit) for i in range(plan.num_shards)
    ]
    if len(plan.files) == 1:
        assert [shard.work.num_records for shard in shards[:-1]] == [size] * (len(shards) - 1)
    return [e for shard in shards for e in shard.examples], [e for shard in shards for e in shard.errors]


# TFRecord.


def frame(data: bytes, crc: bytes | None = None) -> bytes:
    length = len(data).to_bytes(8, "little")
    return length + tfrecord._masked_crc(length) + data + (crc or tfrecord._masked_crc(data))


def tf_example(**features) -> bytes:
    import tensorflow as tf

    def feature(value):
        if isinstance(value, int):
            return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    return tf.train.Example(
        features=tf.train.Features(feature={name: feature(value) for name, value in features.items()})
    ).SerializeToString()


@pytest.mark.slow
def test_tensorflow_reads_our_frames(tmp_path):
    import tensorflow as tf

    path = tmp_path / "a.tfrecord"
    path.write_bytes(frame(b"one") + frame(b""))
    assert list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator()) == [b"one", b""]


@pytest.mark.parametrize("packed", [False, True])
def test_tfrecord(tmp_path, packed):
    records = [tf_example(en=f"text {i}".encode(), de=f"Satz {i}".encode(), k=i) for i in range(7)]
    records[2] = tf_example(en=b"caf\xe9", k=2)
    records[4] = b"no example"
    content = b"".join(frame(data, b"\0\0\0\0" if i == 5 else None) for i, data in enumerate(records))
    path = tmp_path / "a.tfrecord"
    path.write_bytes(gzip.compress(content) if packed else content)
    spec = InputSpec("tfrecord", RecordFields("en", "de", "k"), (str(path),))
    for size in (1, 3, 100):
        examples, errors = read_all(spec, size)
        assert [(e.example_id, e.inputs, e.targets, e.index) for e in examples] == [
            (str(i), f"text {i}", f"Satz {i}", i) for i in (0, 1, 3, 6)
        ]
        assert [(e.place, e.error_type) for e in errors] == [
            ("a.tfrecord:3", "InvalidUtf8"), ("a.tfrecord:5", "MalformedExample"), ("a.tfrecord:6", "CorruptRecord"),
        ]  # fmt: skip
    path.write_bytes(content[:-3])
    with pytest.raises(InputError, match="ends inside a record"):
        plan_input(spec, Cut(3))
    path.write_bytes(b"x" * 100)
    with pytest.raises(InputError, match="no TFRecord file"):
        plan_input(spec, Cut(3))


@pytest.mark.parametrize("packed", [False, True])
def test_a_tfrecord_that_is_too_long_is_one_broken_record(tmp_path, monkeypatch, packed):
    monkeypatch.setattr(tfrecord, "MAX_RECORD_BYTES", 200)
    monkeypatch.setattr(tfrecord, "_BLOCK_BYTES", 64)
    texts = [b"a", b"x" * 1000, b"b" * 100, b"y" * 9999, b"c"]
    content = b"".join(frame(tf_example(en=text, de=b"Satz")) for text in texts)
    path = tmp_path / "a.tfrecord"
    path.write_bytes(gzip.compress(content) if packed else content)
    for size in (1, 2, 100):
        examples, errors = read_all(InputSpec("tfrecord", PAIRS, (str(path),)), size)
        assert [e.inputs.encode() for e in examples] == [texts[0], texts[2], texts[4]]
        assert [(e.place, e.error_type) for e in errors] == [
            ("a.tfrecord:2", "RecordTooLong"), ("a.tfrecord:4", "RecordTooLong"),
        ]  # fmt: skip
        assert all(len(e.record) < 2000 for e in errors)


# TFDS.


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    datasets.prepare(folder, WMT, datasets.translations(20), num_files=3)
    return folder


def test_tfds(data_dir, monkeypatch):
    spec = InputSpec("tfds", PAIRS, name=WMT, split="test", data_dir=str(data_dir))
    whole, errors = read_all(spec, 100)
    assert not errors and len({e.example_id for e in whole}) == 20
    assert sorted((e.inputs, e.targets) for e in whole) == sorted((r["en"], r["de"]) for r in datasets.translations())
    assert whole[0].example_id == "wmt14_translate-test.tfrecord-00000-of-00003__0"
    assert [e.index for e in whole] == list(range(20))
    for size in (1, 7):
        cut, _ = read_all(spec, size)
        assert [(e.example_id, e.index, e.inputs) for e in cut] == [(e.example_id, e.index, e.inputs) for e in whole]


def test_tfds_slices_keep_ids(data_dir):
    spec = InputSpec("tfds", PAIRS, name=WMT, split="test", data_dir=str(data_dir))
    whole, _ = read_all(spec, 100)
    sliced = InputSpec("tfds", PAIRS, name=WMT, split="test[50%:75%]+test[:2]", data_dir=str(data_dir))
    assert [file.name for file in plan_input(sliced, Cut(2)).files] == ["test[10:15]", "test[0:2]"]
    examples, _ = read_all(sliced, 2)
    assert [e.example_id for e in examples] == [e.example_id for e in whole[10:15] + whole[:2]]
    assert [e.index for e in examples] == list(range(7))


def test_tfds_content_is_told_apart(tmp_path, data_dir):
    def digest(folder, name=WMT):
        spec = InputSpec("tfds", PAIRS, name=name, split="test", data_dir=str(folder))
        return plan_input(spec, Cut(5)).files[0].digest

    rows = datasets.translations(20)
    rows[3] = {**rows[3], "en": rows[3]["en"][::-1]}
    datasets.prepare(tmp_path, WMT, rows, num_files=3)
    datasets.prepare(tmp_path / "same", WMT, datasets.translations(20), num_files=3)
    assert digest(tmp_path / "same") == digest(data_dir) != digest(tmp_path)
    assert digest(data_dir / "wmt14_translate" / "de-en" / "1.0.0", name="") == digest(data_dir)


def test_tfds_ids_from_a_field(tmp_path):
    rows = datasets.articles()
    datasets.prepare(tmp_path, "cnn_dailymail:3.4.0", rows)
    fields = RecordFields("article", "highlights", "id")
    spec = InputSpec("tfds", fields, name="cnn_dailymail:3.4.0", split="test", data_dir=str(tmp_path))
    assert {e.example_id for e in read_all(spec, 5)[0]} == {row["id"] for row in rows}
    with pytest.raises(InputError, match=r"12 example ids|1 example ids .*'Debian'"):
        plan_input(InputSpec("tfds", RecordFields("article", "", "publisher"), name=spec.name, split="test",
                             data_dir=str(tmp_path)), Cut(5))  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"data_dir": "/nowhere"}, ["wmt14_translate/de-en/1.0.0", "not prepared", "/nowhere", "nothing is downloaded"]),
        ({"name": "no_such_data_set"}, ["no_such_data_set"]),
        ({"split": "dev"}, ["no split 'dev'", "allowed: test"]),
        ({"split": "test[:12]+test[10:]"}, ["'test[:12]+test[10:]' has records of 'test' twice", "slices that share none"]),
        ({"fields": RecordFields("fr")}, ["input.input_field is 'fr'", "fields there: de, en"]),
    ],
)
def test_tfds_that_is_not_there(data_dir, changes, parts):
    settings = {"fields": PAIRS, "name": WMT, "split": "test", "data_dir": str(data_dir), **changes}
    with pytest.raises(InputError) as caught:
        plan_input(InputSpec("tfds", **settings), Cut(5))
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("format", ["tfds", "seqio"])
def test_without_tensorflow(monkeypatch, format):
    from transforms.inputs import tfds

    tfds.builder.cache_clear()
    _find_tasks.cache_clear()
    monkeypatch.setitem(sys.modules, {"tfds": "tensorflow", "seqio": "seqio"}[format], None)
    with pytest.raises(InputError, match=r"install the extra 'tasks'"):
        plan_input(InputSpec(format, PAIRS, name="lm1b", split="test"), Cut(5))
    tfds.builder.cache_clear()


# SeqIO.

TEXTS = RecordFields("inputs_pretokenized", "targets_pretokenized")


@pytest.mark.slow
def test_paper_tasks(data_dir, spiece, tmp_path):
    """Text with T5's prefix; tokens by the model's own vocabulary are the ones that its tokeniser yields for the text."""
    import sentencepiece

    spec = InputSpec("seqio", TEXTS, name="specbeam_wmt14_ende", split="test", data_dir=str(data_dir), tokenizer=str(spiece))
    examples, errors = read_all(spec, 6)
    assert not errors
    pairs = sorted(("translate English to German: " + r["en"], r["de"]) for r in datasets.translations())
    assert sorted((e.inputs, e.targets) for e in examples) == pairs
    assert examples[0].example_id == "specbeam_wmt14_ende/wmt14_translate-test.tfrecord-00000-of-00003__0"
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(spiece))
    tokens = InputSpec(**{**vars(spec), "fields": RecordFields("inputs", "targets")})
    for text, ids in zip(examples, read_all(tokens, 20)[0]):
        assert (text.example_id, text.inputs, text.targets) == (ids.example_id, ids.inputs, ids.targets)
        np.testing.assert_array_equal(ids.tokens, [*pieces.encode(text.inputs), 1])
    cut = read_all(tokens, 20, limit=4)[0][0]
    assert cut.truncated and cut.tokens.tolist() == [*pieces.encode(examples[0].inputs)[:3], 1]


@pytest.mark.slow
def test_summaries_and_continuations(tmp_path):
    datasets.prepare(tmp_path, "cnn_dailymail:3.4.0", datasets.articles())
    datasets.prepare(tmp_path, "lm1b:1.1.0", datasets.sentences())
    spec = InputSpec("seqio", TEXTS, name="specbeam_cnn_dm", split="test", data_dir=str(tmp_path))
    expected = sorted(("summarize: " + row["article"], row["highlights"]) for row in datasets.articles())
    assert sorted((e.inputs, e.targets) for e in read_all(spec, 5)[0]) == expected
    spec = InputSpec("seqio", TEXTS, name="specbeam_lm1b_prompted", split="test[:10]", data_dir=str(tmp_path))
    examples, _ = read_all(spec, 4)
    assert len(examples) == 10
    assert {len(e.inputs.split()) for e in examples} == {tasks.PROMPT_WORDS}
    whole = {" ".join(row["text"].split()) for row in datasets.sentences()}
    assert {f"{e.inputs} {e.targets}" for e in examples} <= whole


OWN_TASKS = '''
import seqio, tensorflow as tf

def drop_and_double(dataset):
    dataset = dataset.filter(lambda row: row["inputs"] != "drop")
    return dataset.flat_map(lambda row: tf.data.Dataset.from_tensors(row).repeat(
        tf.where(row["inputs"] == "double", tf.constant(2, tf.int64), tf.constant(1, tf.int64))))

def fail(dataset):
    def check(row):
        with tf.control_dependencies([tf.debugging.assert_none_equal(row["inputs"], "fail", message="will not do")]):
            return {"inputs_pretokenized": tf.identity(row["inputs"])}
    return dataset.map(check)

def texts(names):
    def read(split, shuffle_files):
        return tf.data.Dataset.from_tensor_slices({"inputs": list(names)})
    return read

for name, values in {"own_a": ["one", "drop", "double", "fail", "last"], "own_b": ["b one", "b two"]}.items():
    if name not in seqio.TaskRegistry.names():
        seqio.TaskRegistry.add(name, source=seqio.FunctionDataSource(texts(values), splits=["test"]),
                               preprocessors=[drop_and_double, fail], output_features={}, metric_fns=[])
if "own_both" not in seqio.MixtureRegistry.names():
    seqio.MixtureRegistry.add("own_both", ["own_a", "own_b"], default_rate=1.0)
'''


@pytest.mark.parametrize("size", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_own_mixture(tmp_path, monkeypatch, size):
    """Every record of every task, once; what preprocessors drop, double or refuse is known by its record."""
    (tmp_path / "own_tasks.py").write_text(OWN_TASKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = InputSpec("seqio", RecordFields("inputs_pretokenized"), name="own_both", split="test", module="own_tasks")
    examples, errors = read_all(spec, size)
    assert [(e.example_id, e.inputs, e.index) for e in examples] == [
        ("own_a/test:1", "one", 0),
        ("own_a/test:3#0", "double", 2),
        ("own_a/test:3#1", "double", 2),
        ("own_a/test:5", "last", 4),
        ("own_b/test:1", "b one", 5),
        ("own_b/test:2", "b two", 6),
    ]
    assert [(e.place, e.error_type, e.record) for e in errors] == [
        ("own_a/test:2", "Dropped", '{"inputs": "drop"}'),
        ("own_a/test:4", "InvalidArgumentError", '{"inputs": "fail"}'),
    ]


def test_slices_are_for_tfds(tmp_path, monkeypatch):
    (tmp_path / "own_tasks.py").write_text(OWN_TASKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = InputSpec("seqio", RecordFields("inputs_pretokenized"), name="own_a", split="test[:2]", module="own_tasks")
    with pytest.raises(InputError, match=r"'own_a' has no split 'test\[:2\]'"):
        plan_input(spec, Cut(5))


def test_task_over_text_files(tmp_path):
    """A source whose records are no dictionaries, in files that nobody has counted."""
    import seqio

    for name, text in (("a.txt", "one\ntwo\n"), ("b.txt", "three\n")):
        (tmp_path / name).write_text(text)

    def name_it(dataset):
        return dataset.filter(lambda line: line != "two").map(lambda line: {"inputs_pretokenized": line})

    source = seqio.TextLineDataSource({"test": str(tmp_path / "*.txt")})
    seqio.TaskRegistry.add("own_lines", source=source, preprocessors=[name_it], output_features={}, metric_fns=[])
    spec = InputSpec("seqio", RecordFields("inputs_pretokenized"), name="own_lines", split="test")
    digest = plan_input(spec, Cut(2)).files[0].digest
    examples, errors = read_all(spec, 2)
    assert {e.inputs for e in examples} == {"one", "three"}
    assert [(e.error_type, e.record) for e in errors] == [("Dropped", '{"text": "two"}')]
    (tmp_path / "b.txt").write_text("thrice\n")
    assert plan_input(spec, Cut(2)).files[0].digest != digest


def test_preprocessors_that_fit_no_record():
    import seqio

    def break_(dataset):
        return dataset.map(lambda row: {"inputs_pretokenized": row["nothing"]})

    source = seqio.FunctionDataSource(
        lambda split, shuffle_files: seqio.preprocessors.tf.data.Dataset.from_tensor_slices({"inputs": ["a"]}), ["test"]
    )
    seqio.TaskRegistry.add("own_broken", source=source, preprocessors=[break_], output_features={}, metric_fns=[])
    with pytest.raises(InputError, match=r"(?s)preprocessors of the task 'own_broken' cannot be applied.*'nothing'"):
        plan_input(InputSpec("seqio", TEXTS, name="own_broken", split="test"), Cut(5))


def test_tasks_that_are_not_there(data_dir):
    with pytest.raises(InputError, match=r"no SeqIO task 'nothing'.*input.module.*specbeam_wmt14_ende"):
        plan_input(InputSpec("seqio", TEXTS, name="nothing", split="test"), Cut(5))
    with pytest.raises(InputError, match=r"no SeqIO task 'nothing'.*no_such_module"):
        plan_input(InputSpec("seqio", TEXTS, name="nothing", split="test", module="no_such_module"), Cut(5))
    with pytest.raises(InputError, match=r"has no split 'dev'"):
        plan_input(
            InputSpec("seqio", TEXTS, name="specbeam_wmt14_ende", split="dev", data_dir=str(data_dir)), Cut(5)
        )
    with pytest.raises(InputError, match=r"cnn_dailymail/3.4.0.*not prepared"):
        plan_input(InputSpec("seqio", TEXTS, name="specbeam_cnn_dm", split="test", data_dir=str(data_dir)), Cut(5))


@pytest.fixture(scope="module")
def spiece(tmp_path_factory):
    """A sentencepiece model of its own."""
    import sentencepiece

    path = tmp_path_factory.mktemp("pieces") / "spiece.model"
    texts = [row["en"] for row in datasets.translations(60)]
    with path.open("wb") as stream:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=stream, vocab_size=400, byte_fallback=True,
            pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
    return path
