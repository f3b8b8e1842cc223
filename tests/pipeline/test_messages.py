"""What a command line says that is wrong outside of `--config.path.to.setting`, and what it does not have to say."""

import pathlib
import sys

import pytest
from apache_beam.options.pipeline_options import PipelineOptions, _BeamArgumentParser

from decoding.version import __version__
from pipeline import analyze, generate
from pipeline.settings import ConfigError, JobConfig, command_line, parse_command_line
from pipeline.settings.flags import JOB_FLAGS, refuse_near
from pipeline.settings.typed import documented
from tests.pipeline import fakes

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAMDA = ROOT / "configs" / "lamda_dialog.py"


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--gamma=4", "--config.decoding.gamma"),
        ("--gama=4", "--config.decoding.gamma"),
        ("--input_bucket=(32,)", "--config.decoding.input_buckets"),
        ("--examples_per_shard", "--config.shards.examples_per_shard"),
        ("--target=x", "--config.model.target"),
        ("--outptu=/x", "--output"),
        ("--confg=x.py", "--config"),
        ("--dryrun", "--dry_run"),
        ("--allow_code_changes", "--allow_code_change"),
    ],
)
def test_what_was_meant(command, flag, meant, capsys):
    assert generate.main(command(flag), fakes.factory()) == 2
    name = flag.partition("=")[0]
    assert capsys.readouterr().err == f"error: {name!r} is not an option of this job; did you mean {meant}?\n"


def test_of_a_job_without_a_config(capsys):
    assert analyze.main(["--input=a", "--output=b"]) == 2
    assert "did you mean --inputs?" in capsys.readouterr().err


def test_no_option_of_beam_looks_like_one_of_ours():
    parser = _BeamArgumentParser(allow_abbrev=False)
    for cls in {cls.__name__: cls for cls in PipelineOptions.__subclasses__()}.values():
        cls._add_argparse_args(parser)
    options = [flag for flag in parser._option_string_actions if flag not in ("--help", "-h")]
    assert "--direct_num_workers" in options
    command_line._refuse_strays(options)
    others = ("inputs", "output", "allow_unfinished", "splits", "name", "text_field", "generations", "order", "min_count",
              "held_out", "coordinator", "hosts", "host")  # fmt: skip
    refuse_near(options, {name: name for name in (*others, *JOB_FLAGS)})


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("nowhere.py", ["'nowhere.py'", "does not exist", "configs/quickstart.py"]),
        ("configs/quikstart.py", ["did you mean configs/quickstart.py?"]),
        ("configs", ["'configs'", "is a directory"]),
        ("", ["--config has no value"]),
        ("README.md", ["'README.md', which cannot be read", "line"]),
        ("configs/smollm2.py:x", ["the task of configs/smollm2.py is 'x'; allowed: summarize, correct, continue"]),
        ("configs/quickstart.py:x", ["'configs/quickstart.py:x', which cannot be read", "argument"]),
        ("configs/lamda_dialog.py", ["model.target has no value; allowed: text, as --config.model.target=..."]),
    ],
)
def test_a_config_that_is_none(value, parts, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert generate.main([f"--config={value}", "--output=/x"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1 and "Traceback" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import nowhere", "No module named 'nowhere'"),
        ("raise SystemExit('enough')", "enough"),
        ("x = 1", "it has no attribute 'get_config'"),
        ("def get_config():\n    raise KeyError('a')", "'a'"),
        ("def get_config():\n    return 3", "'int' object has no attribute 'to_dict'"),
    ],
)
def test_a_config_file_that_fails(source, told, tmp_path, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # ml_collections loads each into the one before
    (tmp_path / "config.py").write_text(source)
    assert generate.main([f"--config={tmp_path / 'config.py'}", "--output=/x"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    assert f"{tmp_path / 'config.py'}' which cannot be read" in message.replace(",", "") and told in message


def test_presets_are_found_from_elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    parsed = parse_command_line(["--config=configs/quickstart.py", "--output=/x"])
    assert parsed.config.input.input_field == "en"
    (tmp_path / "configs").mkdir()
    own = (ROOT / "configs" / "quickstart.py").read_text().replace('"en"', '"other"')
    (tmp_path / "configs" / "quickstart.py").write_text(own)
    assert parse_command_line(["--config=configs/quickstart.py", "--output=/x"]).config.input.input_field == "other"


def test_examples_that_an_installed_package_lacks(monkeypatch, tmp_path):
    monkeypatch.setattr(command_line, "_EXAMPLES", tmp_path / "examples")
    config = tmp_path / "config.py"
    config.write_text((ROOT / "configs" / "quickstart.py").read_text().replace(
        "pathlib.Path(__file__).resolve().parent.parent", f"pathlib.Path({str(tmp_path)!r})"))  # fmt: skip
    args = [f"--config={config}", "--output=/x"]
    for setting, value in (("input.pattern", "/a.jsonl"), ("model.target", "/t"), ("model.draft", "/d")):
        with pytest.raises(ConfigError, match=f"{setting} is 'examples/.*repository and not with the installed package"):
            parse_command_line(args)
        args.append(f"--config.{setting}={value}")
    assert parse_command_line(args).config.model.draft == "/d"


def test_a_flag_and_its_value_may_be_two_words(command):
    config, output, *_ = command()
    words = ["--config", config.partition("=")[2], "--output", output.partition("=")[2], "--config.decoding.top_k=3"]
    assert parse_command_line(words) == parse_command_line([config, output, "--config.decoding.top_k=3"])


def test_version(capsys):
    assert generate.main(["--version"]) == 0
    assert capsys.readouterr().out == f"specbeam {__version__}\n"
    with pytest.raises(SystemExit, match="0"):
        analyze.main(["--version"])
    assert capsys.readouterr().out == f"specbeam {__version__}\n"


def test_field_names_of_a_preset_do_not_apply_to_text(command):
    text = "--config.input.pattern=/texts/*.txt"
    fields = parse_command_line(command(text)).config.input.fields
    assert (fields.inputs, fields.targets, fields.example_id) == ("text", "", "")
    assert parse_command_line(command("--config.input.format=text")).config.input.fields == fields
    for given in ("--config.input.input_field=en", "--config.input.target_field=de"):
        with pytest.raises(ConfigError, match="each line is an input"):
            parse_command_line(command(text, given))
    # Of other formats they are the preset's.
    assert parse_command_line(command("--config.input.pattern=/texts/*.csv")).config.input.target_field == "de"


def test_without_a_draft_decoding_is_plain(command):
    nothing = "--config.model.draft="
    assert parse_command_line(command(nothing)).config.decoding.gamma == 0
    with pytest.raises(ConfigError, match="decoding.gamma is 2; allowed: 0 where model.draft is empty"):
        parse_command_line(command(nothing, "--config.decoding.gamma=2"))


@pytest.mark.parametrize(("gamma", "expected"), [("", 0), ("gamma=0", 0), ("gamma=4", None)])
def test_without_a_draft_in_the_file(tmp_path, gamma, expected):
    config = tmp_path / "config.py"
    config.write_text(
        "from ml_collections import config_dict\n"
        "def get_config():\n"
        "    return config_dict.ConfigDict(dict(input=dict(pattern='/a.txt'), model=dict(target='/t'), "
        f"decoding=dict({gamma})))\n"
    )
    args = [f"--config={config}", "--output=/x"]
    if expected is None:
        with pytest.raises(ConfigError, match="decoding.gamma is 4"):
            parse_command_line(args)
    else:
        assert parse_command_line(args).config.decoding.gamma == expected
    assert parse_command_line([*args, "--config.model.draft=/d", "--config.decoding.gamma=2"]).config.decoding.gamma == 2


def test_help_says_what_every_setting_means():
    paths = list(command_line._paths(JobConfig))
    assert {"input.pattern", "model.mesh", "decoding.gamma", "shards.baseline_fraction", "score.lenience"} <= {*paths}
    shown = command_line.help_text("A job.")
    lines = shown.splitlines()
    for path in paths:
        (i,) = [i for i, line in enumerate(lines) if line.startswith(f"  --config.{path}  ")]
        assert lines[i + 1].startswith("      ") and lines[i + 1].strip(), path
    assert '"auto" chooses per chunk from `gamma_choices`' in " ".join(shown.split())


def test_documented():
    class Both:
        """Something.

        Attributes:
          a, b: two things,
            of which more: here.
          c: one.

        Raises:
          ValueError: never.
        """

    assert documented(Both) == {"a": "two things, of which more: here.", "b": "two things, of which more: here.", "c": "one."}
