"""Which systems are compared, how llama.cpp is called, and a whole comparison of two systems that do next to nothing."""
import importlib.machinery
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from benchmarks import peers, systems, workloads

EOS, LIMIT = 2, 5


def workload(inputs: list[list[int]]) -> workloads.Workload:
    return workloads.Workload("counting", Path("model.gguf"), None, None, inputs, LIMIT, {1: len(inputs)}, EOS)


class Llama:
    """As llama_cpp's: keeps what it has computed until it is reset. After a prompt that ends with n it counts down from n."""

    def __init__(self, path: str, **settings):
        self.path, self.settings, self.prompts, self.computed = path, settings, [], 0

    def reset(self) -> None:
        self.computed = 0

    def generate(self, tokens: Sequence[int], *, temp: float) -> Iterator[int]:
        assert temp == 0.0 and self.computed == 0
        self.prompts.append(tokens)
        self.computed = len(tokens)
        token = tokens[-1]
        while True:
            self.computed += 1
            assert self.computed <= self.settings["n_ctx"]
            token -= 1
            yield token


class Lookup:
    def __init__(self, *, max_ngram_size: int, num_pred_tokens: int):
        self.sizes = max_ngram_size, num_pred_tokens


@pytest.fixture
def models(monkeypatch) -> list[Llama]:
    """A stand-in for llama-cpp-python is installed; the models that are made with it."""
    made: list[Llama] = []

    def make(path: str, **settings) -> Llama:
        made.append(Llama(path, **settings))
        return made[-1]

    for name, contents in {"llama_cpp": {"Llama": make},
                           "llama_cpp.llama_speculative": {"LlamaPromptLookupDecoding": Lookup}}.items():
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    return made


@pytest.mark.parametrize("lookup", [None, 3])
def test_llama_cpp_gets_the_ids_afresh_and_stops_at_eos_or_the_limit(models, lookup):
    inputs = [[7, 5], [7, 9], [7, 9]]
    rows = systems.llama_cpp(workload(inputs), 2, lookup=lookup)(inputs, 1)
    assert rows == [[4, 3, 2], [8, 7, 6, 5, 4], [8, 7, 6, 5, 4]]
    (model,) = models
    settings = dict(model.settings)
    draft = settings.pop("draft_model", None)
    assert model.path == "model.gguf" and model.prompts == inputs
    assert (draft and draft.sizes) == (lookup and (3, 3))
    assert settings.pop("logits_all", False) is bool(lookup)
    assert settings == {"n_ctx": 2 + LIMIT + (lookup or 0), "n_threads": 2, "n_threads_batch": 2, "verbose": False}


def test_where_llama_cpp_is_installed_it_is_compared(models, capsys):
    chosen = peers.choose(systems.of_gguf([3]), None)
    assert list(chosen) == ["openvino", "openvino-lookup", "llama", "llama-lookup", "plain", "gamma-3"]
    assert capsys.readouterr().err == ""


def test_where_it_is_not_it_is_left_out_and_a_line_says_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    assert list(peers.choose(systems.of_gguf([3]), None)) == ["openvino", "openvino-lookup", "plain", "gamma-3"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Left out: llama, llama-lookup; llama_cpp is not installed")
    assert list(peers.choose(systems.of_gguf([3]), ["plain", "gamma-3"])) == ["plain", "gamma-3"]
    assert capsys.readouterr().err == ""
    with pytest.raises(SystemExit, match="--workloads=smollm2: no system is left to run"):
        peers.main(["--workloads=smollm2", "--systems=llama"])


def echo(chosen: workloads.Workload, threads: int) -> systems.Decode:
    return lambda inputs, batch: [row[:-1] for row in inputs]


def eos_alone(chosen: workloads.Workload, threads: int) -> systems.Decode:
    return lambda inputs, batch: [[chosen.eos] for _ in inputs]


def test_a_comparison_counts_tokens_and_compares_outputs_with_the_plain_system():
    arguments = peers.parse_arguments(["--batches=1,8", "--repeats=2"])
    chosen = {"eos": systems.System("one token", eos_alone), "plain": systems.System("a copy", echo)}
    result = peers.compare(workload([[5, 6, EOS], [EOS, 7]]), chosen, arguments)
    assert [(row["system"], row["batch"], row["tokens"]) for row in result["summary"]] == [("eos", 1, 2), ("plain", 1, 3)]
    assert [row["agreement"]["equal_sequences"] for row in result["summary"]] == [1, 2]
    assert len(result["runs"]) == 2 * 3 and result["summary"][1]["times_base"]["repeats"] == 2
    lines = peers.table(result).splitlines()
    assert "times one token (95%) | outputs equal to those of a copy" in lines[2]
    assert lines[4].startswith("| 1 | one token |") and lines[4].endswith("| 1 of 2 |")
    assert lines[5].startswith("| 1 | a copy |") and lines[5].endswith("| 2 of 2 |")
