"""The α data set opens with TFDS, pandas and SeqIO, and holds what the Parquet parts hold."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from pipeline import export_tfds, score
from tests.pipeline.conftest import write_config, write_sentences
from tests.pipeline.helpers import files, run
from tests.pipeline.score_fakes import fake, scores


@pytest.fixture(scope="module")
def folders(tmp_path_factory, models):
    """Two score folders of the same drafts over two samplings of 30 examples, 4 parts each; and the generations."""
    root, found = tmp_path_factory.mktemp("folders"), {}
    config = write_config(root / "config.py", models, write_sentences(root / "input.jsonl"))
    drafts = ("--config.score.drafts.small=uniform", "--config.score.drafts.copy=prompt_lookup")
    for temperature in ("1.0", "0.5"):
        generated, found[temperature] = root / f"generated{temperature}", root / f"scores{temperature}"
        args = [f"--config={config}", f"--config.decoding.temperature={temperature}"]
        run([*args, f"--output={generated}"])
        scored = [*args, f"--config.score.generations={generated}", *drafts, f"--output={found[temperature]}"]
        assert score.main(scored, fake()) == 0
    return found | {"generations": root / "generated1.0"}


def test_the_data_set(folders, tmp_path, capsys):
    args = [f"--inputs={folders['1.0']},{folders['0.5']}", "--splits=sampled,cooler", f"--output={tmp_path / 'tfds'}"]
    assert export_tfds.main(args) == 0
    folder = tmp_path / "tfds" / "alpha" / "1.0.0"
    names = [f"alpha-{split}.tfrecord-{i:05d}-of-00004" for split in ("cooler", "sampled") for i in range(4)]
    assert files(folder) == [*names, "dataset_info.json", "features.json", "metadata.json"]
    assert export_tfds.main(args) == 0 and "nothing to do" in capsys.readouterr().out

    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(folder))
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {"sampled": 30, "cooler": 30}
    assert all(feature.doc.desc for feature in builder.info.features.values())
    assert "sum of min(p, q)" in builder.info.features["beta_small"].doc.desc
    assert builder.info.features["lenient_beta_copy"].shape == (None, 3)
    for split, name in (("sampled", "1.0"), ("cooler", "0.5")):
        expected = scores(folders[name])
        found = list(tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False)))
        assert len(found) == len(expected)
        for row, (_, original) in zip(found, expected.iterrows()):
            assert row["example_id"].decode() == original["example_id"] and set(row) == {*expected.columns, "shard"}
            for column in expected.columns.drop("example_id"):
                np.testing.assert_array_equal(row[column], original[column], err_msg=column)
                assert np.asarray(row[column]).dtype == np.asarray(original[column]).dtype or np.isscalar(original[column])

    manifest = json.loads((folders["1.0"] / "manifest.json").read_text())
    provenance = builder.info.metadata["splits"]["sampled"]
    assert provenance["fingerprint"] == manifest["fingerprint"] and provenance["identity"] == manifest["identity"]
    assert provenance["text"]["sampling"]["temperature"] == 1.0 and provenance["versions"]["jax"]

    import seqio

    source = seqio.TfdsDataSource("alpha:1.0.0", tfds_data_dir=str(tmp_path / "tfds"), splits=["sampled"])
    seqio.TaskRegistry.remove("alpha_of_this_test")
    task = seqio.TaskRegistry.add(
        "alpha_of_this_test", source=source, preprocessors=[],
        output_features={
            "tokens": seqio.Feature(seqio.PassThroughVocabulary(384), add_eos=False),
            "beta_small": seqio.Feature(seqio.PassThroughVocabulary(0), add_eos=False, dtype="float32"),
        },
    )  # fmt: skip
    rows = list(task.get_dataset(None, split="sampled", shuffle=False).as_numpy_iterator())
    assert len(rows) == 30
    np.testing.assert_array_equal(rows[7]["tokens"], scores(folders["1.0"])["tokens"][7])
    np.testing.assert_array_equal(rows[7]["beta_small"], scores(folders["1.0"])["beta_small"][7])


def test_generations_too(folders, tmp_path):
    assert export_tfds.main([f"--inputs={folders['generations']}", f"--output={tmp_path}", "--name=texts"]) == 0

    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(tmp_path / "texts" / "1.0.0"))
    frame = tfds.as_dataframe(builder.as_dataset(split="train"))
    parts = pd.concat(pd.read_parquet(path) for path in sorted((folders["generations"] / "generations").iterdir()))
    assert [one.decode() for one in frame["prediction"]] == parts["prediction"].tolist()
    for column in ("source", "gammas", "beta", "output_tokens"):
        for a, b in zip(frame[column], parts[column]):
            np.testing.assert_array_equal(a, b, err_msg=column)


def test_what_is_refused(folders, tmp_path, capsys):
    def refused(*args):
        assert export_tfds.main(list(args)) == 2
        return capsys.readouterr().err

    out, one = f"--output={tmp_path / 'tfds'}", f"--inputs={folders['1.0']}"
    assert "--inputs and --output are needed" in refused(one)
    assert "as many distinct names as there are --inputs, 1" in refused(one, out, "--splits=a,b")
    # Two of the same name would write the same files.
    twice = refused(f"{one},{folders['0.5']}", out, "--splits=a,a,b")
    assert "as many distinct names as there are --inputs, 2" in twice
    assert "--name is 'A-b'" in refused(one, out, "--name=A-b") and "--version is '1'" in refused(one, out, "--version=1")
    assert "'--nmae' is neither" in refused(one, out, "--nmae=x")
    mixed = refused(f"--inputs={folders['1.0']},{folders['generations']}", out, "--splits=a,b")
    assert "splits with the same columns" in mixed
    unfinished = shutil.copytree(folders["1.0"], tmp_path / "unfinished")
    (unfinished / "_SUCCESS").unlink()
    assert "its end, _SUCCESS, is missing" in refused(f"--inputs={unfinished}", out)
    assert not (tmp_path / "tfds").exists()
