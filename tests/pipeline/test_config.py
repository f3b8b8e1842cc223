"""Settings: what is wrong is named, with what is allowed."""

import pytest

from pipeline.settings import ConfigError, JobConfig, build, parse_command_line

VALID = {"input": {"pattern": "/a.jsonl", "input_field": "en"}, "model": {"target": "/t", "draft": "/d"}}


def test_defaults_and_overrides(command):
    parsed = parse_command_line(
        command("--config.decoding.gamma=7", "--config.decoding.top_k=5", "--runner=Some", "--flag", "value")
    )
    assert parsed.config.decoding.gamma == 7
    assert parsed.config.decoding.top_k == 5  # a setting that the config file leaves out
    assert parsed.config.decoding.num_slots == 4
    assert parsed.config.input.target_field == "de"
    assert parsed.beam_args == ("--runner=Some", "--flag", "value")


@pytest.mark.parametrize(
    ("text", "gamma"), [("auto", "auto"), ("'auto'", "auto"), ("0", 0), ("5", 5)]
)
def test_settings_of_several_types(command, text, gamma):
    assert parse_command_line(command(f"--config.decoding.gamma={text}")).config.decoding.gamma == gamma


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("/a/*.jsonl", "/a/*.jsonl"),
        ("['/a.jsonl','/b.json']", ("/a.jsonl", "/b.json")),
        ("('/a.jsonl',)", ("/a.jsonl",)),
    ],
)
def test_one_pattern_or_several(command, text, pattern):
    assert parse_command_line(command(f"--config.input.pattern={text}")).config.input.pattern == pattern


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("--config.decoding.gama=3", ["'decoding.gama'", "did you mean 'gamma'", "num_slots"]),
        ("--config.modle.target=x", ["'modle'", "did you mean 'model'"]),
        ("--config.model.dtype.x=1", ["'model.dtype.x'", "one value"]),
        ("--config.decoding.gamma=-1", ["decoding.gamma", "-1", "0 to 64"]),
        ("--config.decoding.temperature=-0.5", ["decoding.temperature", "-0.5", "at least 0"]),
        ("--config.decoding.temperature=warm", ["decoding.temperature", "'warm'", "a number"]),
        ("--config.decoding.num_slots=1.5", ["decoding.num_slots", "1.5", "a whole number"]),
        ("--config.decoding.seed=True", ["decoding.seed", "True", "a whole number"]),
        ("--config.model.dtype=float16", ["model.dtype", "'float16'", "bfloat16"]),
        ("--config.shards.examples_per_shard=0", ["shards.examples_per_shard", "0", "at least 1"]),
        ("--config.input.format=xml", ["input.format", "'xml'", "jsonl", "seqio"]),
        ("--config.input.pattern=", ["input.pattern", "''"]),
        ("--config.decoding=4", ["decoding", "4"]),
        ("--config.input.input_field", ["input_field"]),
        ("--allow_failed_shards=some", ["allow_failed_shards", "some"]),
    ],
)
def test_bad_override(command, override, parts):
    with pytest.raises(ConfigError) as caught:
        parse_command_line(command(override))
    for part in parts:
        assert part in str(caught.value)


def test_overrides_may_come_first(command):
    parsed = parse_command_line(["--config.decoding.num_slots=6", *command()])
    assert parsed.config.decoding.num_slots == 6


def test_missing_config_and_output():
    with pytest.raises(ConfigError, match="--config is missing"):
        parse_command_line(["--output=/x"])
    with pytest.raises(ConfigError, match=r"nowhere\.py"):
        parse_command_line(["--config=nowhere.py", "--output=/x"])


def test_output_is_needed(command):
    with pytest.raises(ConfigError, match="--output is missing"):
        parse_command_line([arg for arg in command() if not arg.startswith("--output")])


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({**VALID, "extra": 1}, "'extra'"),
        ({"model": VALID["model"]}, "'input' is missing"),
        ({**VALID, "input": {"pattern": "/a.jsonl"}}, "input.input_field is ''"),
        ({**VALID, "input": {"input_field": "en"}}, "input.pattern is ''"),
        ({**VALID, "input": {"pattern": "/a", "input_field": "en"}}, "input.format is ''; allowed: \"jsonl\""),
        ({**VALID, "input": {"pattern": ["/a.csv", "/b.jsonl"], "input_field": "en"}}, "input.format"),
        ({**VALID, "input": {"pattern": "/a.txt", "input_field": "en"}}, "each line is an input"),
        ({**VALID, "input": {"pattern": "/a.csv", "input_field": "en", "split": "test"}}, "input.split is 'test'"),
        ({**VALID, "input": {"format": "tfds", "name": "x", "input_field": "en"}}, "input.split is ''"),
        ({**VALID, "input": {"format": "tfds", "split": "test", "input_field": "en"}}, "input.name is ''"),
        ({**VALID, "input": {"format": "seqio", "name": "x", "split": "test", "prefix": "a"}}, "input.prefix is 'a'"),
        ({**VALID, "shards": {"bytes_per_shard": 10}}, "shards.bytes_per_shard is 10"),
        ({**VALID, "input": {**VALID["input"], "id_field": "k"}, "shards": {"bytes_per_shard": 4096}}, "input.id_field"),
        ({**VALID, "input": {"pattern": ["/a.jsonl", 3], "input_field": "en"}}, "input.pattern"),
        ({**VALID, "input": "x"}, "input is 'x'"),
        ({**VALID, "decoding": {"input_buckets": "32"}}, "a list, each a whole number"),
    ],
)
def test_bad_file(values, part):
    with pytest.raises(ConfigError) as caught:
        build(JobConfig, values)
    assert part in str(caught.value)


def test_relative_paths_become_absolute(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    parsed = parse_command_line(command("--config.input.pattern=some/*.jsonl", "--config.model.draft=gs://b/m"))
    assert parsed.config.input.pattern == str(tmp_path / "some" / "*.jsonl")
    assert parsed.config.model.draft == "gs://b/m"
    assert parsed.config.model.tokenizer == ""


def test_quickstart_preset_is_valid():
    parsed = parse_command_line(["--config=configs/quickstart.py", "--output=/x", "--config.decoding.gamma=auto"])
    assert parsed.config.decoding.gamma == "auto"
    assert parsed.config.input.input_field == "en"
