"""`--help` of every command: what it does, its flags, and for jobs every setting."""

import importlib

import pytest

COMMANDS = (
    "analyze", "benchmark", "convert", "distill", "export_tfds", "fit_index", "fit_ngram", "generate", "inspect", "on_slice",
    "plan", "quickstart", "score",
)  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name, capsys):
    main = importlib.import_module(f"pipeline.{name}").main
    try:
        status = main(["--help"])
    except SystemExit as ended:
        status = ended.code
    shown = capsys.readouterr().out
    assert not status and f"python -m pipeline.{name}" in shown and "--" in shown.replace("--help", "")
    if name in ("generate", "score", "on_slice"):
        assert "--config.decoding.gamma  a whole number or text; default 5\n" in shown
        assert "--config.model.target  text; required\n" in shown and "--allow_failed_shards" in shown
