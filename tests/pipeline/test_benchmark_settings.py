"""What the benchmark compares: flags, settings, groups and inputs."""

import pytest

from pipeline import benchmark
from pipeline.benchmarking.inputs import read_inputs, used_buckets
from pipeline.benchmarking.results import open_folder
from pipeline.benchmarking.settings import BenchmarkOptions, Setting, group_settings, parse
from pipeline.job.preflight import check_models
from pipeline.settings import ConfigError


def settings(**changes) -> BenchmarkOptions:
    known = dict(gammas=(0, 2, "auto"), num_slots=(4,), verifications=("token", "block"), temperatures=(0.0, 1.0))
    return BenchmarkOptions(**(known | dict(draft_beams=(0,), repeats=2, examples=5, seed=0) | changes))


def test_groups():
    greedy, sampled = group_settings(settings())
    assert greedy.plain == Setting(4, 0.0, "token", 0)
    assert greedy.speculative == (Setting(4, 0.0, "token", 2), Setting(4, 0.0, "token", "auto"))
    assert sampled.plain == Setting(4, 1.0, "token", 0)
    assert [(one.gamma, one.verification) for one in sampled.speculative] == [
        (2, "token"), (2, "block"), ("auto", "token"), ("auto", "block"),
    ]  # fmt: skip


def test_beams_are_measured_by_their_drafts_width():
    (found,) = group_settings(settings(temperatures=(0.0,), draft_beams=(4, 8)))
    assert found.plain == Setting(4, 0.0, "token", 0)
    assert [(one.gamma, one.draft_beams) for one in found.speculative] == [(2, 4), (2, 8), ("auto", 4), ("auto", 8)]
    assert str(found.speculative[1]) == "4 slots, temperature 0, beams, u 8, γ 2"


def test_plain_is_measured_though_not_asked_for_and_coupled_has_its_own():
    found = group_settings(settings(gammas=(3,), verifications=("coupled", "block"), num_slots=(1, 2)))
    assert [group.settings for group in found if group.plain.num_slots == 2] == [
        (Setting(2, 0.0, "coupled", 0), Setting(2, 0.0, "coupled", 3)),
        (Setting(2, 1.0, "block", 0), Setting(2, 1.0, "block", 3)),
        (Setting(2, 1.0, "coupled", 0), Setting(2, 1.0, "coupled", 3)),
    ]
    assert [one.same_tokens for one in (found[1].plain, found[2].plain, found[0].plain)] == [False, True, True]
    assert len(found) == 6


def test_used_buckets():
    assert used_buckets((8, 16, 32, 64), [1, 8, 17, 32]) == (8, 32)
    assert used_buckets((8, 16), [9]) == (16,)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("--gammas=1,x", ["--gammas", "'1,x'", '"auto"']),
        ("--gammas=", ["--gammas", "''"]),
        ("--gammas=65", ["decoding.gamma", "65", "0 to 64"]),
        ("--num_slots=0", ["decoding.num_slots", "0", "at least 1"]),
        ("--num_slots=2.5", ["--num_slots", "'2.5'", "whole numbers"]),
        ("--verifications=token,blok", ["--verifications", "'token,blok'", "block"]),
        ("--temperatures=-1", ["decoding.temperature", "-1.0", "at least 0"]),
        ("--temperatures=nan", ["decoding.temperature", "nan"]),
        ("--draft_beams=4", ["--draft_beams", "'4'", "decoding.num_beams above 1"]),
        ("--repeats=1", ["--repeats", "'1'", "at least 2"]),
        ("--examples=0", ["--examples", "'0'", "at least 1"]),
        ("--seed=-1", ["--seed", "'-1'", "at least 0"]),
        ("--gamas=1", ["'--gamas'", "not an option", "did you mean --gammas?"]),
        ("--runner=DirectRunner", ["'--runner=DirectRunner'", "not an option"]),
        ("--config.decoding.gamma=3", ["--config.decoding.gamma=3", "--gammas=..."]),
        ("--config.decoding.num_slots=3", ["--config.decoding.num_slots=3", "--num_slots=..."]),
        ("--config.decoding.lenience=0.5", ["decoding.lenience", "0.5", "block"]),
        ("--config.model.draft=", ["--gammas", "model.draft is empty", "0"]),
        ("--config.input.input_field=fr", ["input.input_field", "'fr'"]),
        ("--config.input.pattern=/nowhere/*.jsonl", ["input.pattern", "/nowhere"]),
        ("--config.model.target=/nowhere", ["model.target", "/nowhere"]),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_done(command, tmp_path, capsys, override, parts):
    assert benchmark.main(command(override)) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and "Traceback" not in shown
    for part in parts:
        assert part in shown
    assert not (tmp_path / "out").exists()


def test_flags(command, tmp_path):
    config, output, found = parse(command("--gammas=auto, 3,0,3", "--num_slots=2", "--config.decoding.top_k=5"))
    assert found.gammas == ("auto", 3, 0) and found.num_slots == (2,)
    assert found.verifications == ("token", "block") and found.temperatures == (0.0, 1.0)
    assert config.decoding.top_k == 5
    assert output == str(tmp_path / "out")
    assert parse(command("--gammas=0", "--config.model.draft="))[2].gammas == (0,)
    assert parse(command("--gammas=2", "--verifications=token", "--config.decoding.lenience=0.5"))
    beams = command("--config.decoding.num_beams=4", "--verifications=token", "--gammas=0,2")
    assert parse(beams)[2].draft_beams == (4, 8) and parse(beams)[2].temperatures == (0.0,)
    assert parse([*beams, "--draft_beams=6"])[2].draft_beams == (6,)
    with pytest.raises(ConfigError, match="decoding.draft_beams is 2; allowed: 0, or at least 4"):
        parse([*beams, "--draft_beams=2"])
    with pytest.raises(ConfigError, match="--config is missing"):
        parse(["--output=x"])


def test_a_folder_with_results_is_refused(command, tmp_path, capsys):
    folder = tmp_path / "out"
    folder.mkdir()
    for content, word in (('{"rows": [{}, {}]}', "of 2 settings"), ("[]", "none of this job's"), ("no", "none of this job's")):
        (folder / "benchmark.json").write_text(content)
        assert benchmark.main(command("--gammas=1")) == 2
        assert word in capsys.readouterr().err
        assert (folder / "benchmark.json").read_text() == content
    # One that was interrupted before anything was measured is no obstacle.
    (folder / "benchmark.json").write_text('{"complete": false, "rows": []}')
    assert open_folder(str(folder)).root == str(folder)


def test_inputs_are_the_first_that_can_be_read(command, tmp_path, sentences, models):
    lines = sentences.read_text().splitlines(keepends=True)
    sentences.write_text("".join([*lines[:3], "{broken\n", *lines[3:]]))
    config, _, _ = parse(command("--config.input.prefix=x: ", "--config.decoding.input_buckets=(12,)"))
    checked = check_models(config)
    found = read_inputs(config, checked, 10)
    assert [example.index for example in found.examples] == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]
    assert found.failed == 1
    assert all(example.tokens[-1] == 1 and len(example.tokens) <= 12 for example in found.examples)
    told = found.to_json()
    assert told["truncated"] == sum(example.truncated for example in found.examples) > 0
    assert (told["examples"], told["longest"], told["first"]) == (10, 12, "input.jsonl:1")
    assert len(read_inputs(config, checked, 1000).examples) == 30
    sentences.write_text("[]\n")
    with pytest.raises(ConfigError, match="no record in"):
        read_inputs(config, checked, 10)
