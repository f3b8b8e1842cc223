"""The systems compared, each behind one signature and in a process of its own.

A system is built from a workload in its own process (its thread pools and allocator are then its own), answers one run at
a time, and sleeps while the others run. All are greedy, batch by batch in the order of the inputs, and count the same
tokens: generated ones, EOS included. SpecBeam refills finished rows from the remaining inputs of the run, which is what
its users get; the others decode `batch` inputs at a time. With beams the best text alone counts, its log-probability divided
by its length, and each system ends a search as it does by default.
"""
from __future__ import annotations

import dataclasses
import functools
import importlib.util
import itertools
import multiprocessing
import multiprocessing.connection
import os
import traceback
from collections.abc import Callable, Iterator, Sequence

from benchmarks import measure, workloads

Tokens = list[list[int]]
Decode = Callable[[Sequence[Sequence[int]], int], Tokens]   # (inputs, batch) -> generated tokens per input
BEAMS, DRAFT_BEAMS = 4, 8
LOOKUP, MAX_NGRAM = 3, 3     # peers' prompt lookup: tokens guessed at a call; the n-gram's is SpecBeam's default


def _batches(inputs: Sequence[Sequence[int]], batch: int) -> Iterator[Sequence[Sequence[int]]]:
    for start in range(0, len(inputs), batch):
        yield inputs[start : start + batch]


def hugging_face(workload: workloads.Workload, threads: int, *, assisted: bool = False, beams: int = 1) -> Decode:
    """transformers' `generate` in float32; `assisted` adds the draft as assistant_model (batch 1 only)."""
    import torch
    from transformers import T5ForConditionalGeneration

    torch.set_num_threads(threads)
    model = T5ForConditionalGeneration.from_pretrained(workload.target, dtype=torch.float32).eval()
    options = {}
    if assisted:
        options["assistant_model"] = T5ForConditionalGeneration.from_pretrained(
            workload.draft, dtype=torch.float32).eval()

    def decode(inputs: Sequence[Sequence[int]], batch: int) -> Tokens:
        rows: Tokens = []
        for chunk in _batches(inputs, batch):
            width = max(map(len, chunk))
            ids = torch.tensor([[*row, *[workloads.PAD] * (width - len(row))] for row in chunk])
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in chunk])
            with torch.inference_mode():
                output = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, num_beams=beams,
                                        max_new_tokens=workload.max_new_tokens, **options)
            rows += [measure.until_eos(row[1:], workloads.EOS, workload.max_new_tokens) for row in output.tolist()]
        return rows

    return decode


def ctranslate2(workload: workloads.Workload, threads: int, *, compute_type: str, beams: int = 1) -> Decode:
    """CTranslate2's Translator with greedy or beam search; int8 quantises the same weights when loading.

    On some virtual machines its threads wait for each other longer than they work: at every batch size it gets the number
    of threads, up to `threads`, that took the least time in a first run.
    """
    for name in ("MKL_NUM_THREADS", "OMP_NUM_THREADS"):  # would overrule intra_threads
        os.environ.pop(name, None)
    import ctranslate2 as ct2

    translators = [ct2.Translator(str(workload.converted), device="cpu", compute_type=compute_type,
                                  inter_threads=1, intra_threads=count) for count in range(1, threads + 1)]

    chosen: dict[int, ct2.Translator] = {}

    def decode(inputs: Sequence[Sequence[int]], batch: int) -> Tokens:
        def seconds(translator: ct2.Translator) -> float:
            return min(measure.timed(lambda: run(translator, inputs, batch))[0] for _ in range(2))

        if batch not in chosen:
            chosen[batch] = min(translators, key=seconds)
        return run(chosen[batch], inputs, batch)

    def run(translator: ct2.Translator, inputs: Sequence[Sequence[int]], batch: int) -> Tokens:
        rows: Tokens = []
        for chunk in _batches(inputs, batch):
            results = translator.translate_batch(
                [list(map(str, row)) for row in chunk], beam_size=beams, max_batch_size=batch, return_end_token=True,
                max_decoding_length=workload.max_new_tokens, max_input_length=0)
            rows += [[int(token) for token in result.hypotheses[0]] for result in results]
        return rows

    return decode


def specbeam(
    workload: workloads.Workload, threads: int, *, gamma: int | str | None, weights: str = "float32", **settings
) -> Decode:
    """SpecBeam's Generator: plain (`gamma` None), or with the draft and a fixed or automatic γ; weights rounded as said, more
    settings of decoding."""
    import decoding

    target = decoding.load_model(str(workload.target), weights=weights)
    draft = None
    if gamma is not None:
        draft = decoding.load_model(str(workload.draft), weights=weights) if workload.draft else decoding.PromptLookupDraft()
    longest = max(map(len, workload.inputs))
    buckets = tuple(bucket for bucket in (32, 64, 128, 256, 512) if bucket < 2 * longest)
    generators = {
        batch: decoding.Generator(target, draft, decoding.DecodingConfig(
            gamma=0 if gamma is None else gamma, temperature=0.0, num_slots=batch,
            max_decode_tokens=workload.max_new_tokens, input_buckets=buckets, **settings))
        for batch in workload.examples
    }

    def decode(inputs: Sequence[Sequence[int]], batch: int) -> Tokens:
        results = generators[batch].generate(inputs, [str(i) for i in range(len(inputs))])
        return [result.tokens.tolist() for result in results]

    return decode


def openvino(workload: workloads.Workload, threads: int, *, lookup: int | None = None) -> Decode:
    """OpenVINO GenAI's LLMPipeline on a GGUF file, greedy, one text at a time; `lookup` guesses from the prompt per call."""
    import numpy as np
    import openvino
    import openvino_genai

    options = {"prompt_lookup": True} if lookup else {}
    pipeline = openvino_genai.LLMPipeline(str(workload.target), "CPU", INFERENCE_NUM_THREADS=threads, **options)
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.do_sample, config.eos_token_id = workload.max_new_tokens, False, workload.eos
    if lookup:
        config.num_assistant_tokens, config.max_ngram_size = lookup, MAX_NGRAM

    def decode(inputs: Sequence[Sequence[int]], batch: int) -> Tokens:
        rows: Tokens = []
        for row in inputs:
            ids, mask = np.array([row], np.int64), np.ones((1, len(row)), np.int64)
            tokenized = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(mask))
            (tokens,) = pipeline.generate(tokenized, config).tokens
            rows.append(measure.until_eos(tokens, workload.eos, workload.max_new_tokens))
        return rows

    return decode


def llama_cpp(workload: workloads.Workload, threads: int, *, lookup: int | None = None) -> Decode:
    """llama.cpp's Python package on a GGUF file, greedy, one text at a time; `lookup` guesses from the prompt per call.

    With a draft the package wants the logits of every position, prefill's too, and copies them, and its last guesses may go
    beyond the last token that is asked for.
    """
    import llama_cpp
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    options = {}
    if lookup:
        options["draft_model"] = LlamaPromptLookupDecoding(max_ngram_size=MAX_NGRAM, num_pred_tokens=lookup)
        options["logits_all"] = True     # a draft implies it, but alone makes room for `n_batch` positions, not `n_ctx`
    positions = max(map(len, workload.inputs)) + workload.max_new_tokens + (lookup or 0)
    model = llama_cpp.Llama(
        str(workload.target), n_ctx=positions, n_threads=threads, n_threads_batch=threads, verbose=False, **options)

    def decode(inputs: Sequence[Sequence[int]], batch: int) -> Tokens:
        rows: Tokens = []
        for row in inputs:
            model.reset()                # else what this prompt shares with the last one would not be computed
            rows.append([])
            for token in itertools.islice(model.generate(row, temp=0.0), workload.max_new_tokens):
                rows[-1].append(token)
                if token == workload.eos:
                    break
        return rows

    return decode


@dataclasses.dataclass(frozen=True)
class System:
    """How a system is called in tables, how it is built, the batch sizes it can run (None: any), the module it may lack."""

    title: str
    build: Callable[[workloads.Workload, int], Decode]
    only_batches: tuple[int, ...] | None = None
    module: str | None = None        # of a package that is not in the extra `bench`

    def runs(self, batch: int) -> bool:
        return self.only_batches is None or batch in self.only_batches

    def installed(self) -> bool:
        return self.module is None or importlib.util.find_spec(self.module) is not None


def of_gguf(gammas: Sequence[int | str]) -> dict[str, System]:
    """As `available`, for a GGUF file with prompt lookup at batch 1. Ratios are to the first."""
    systems = {
        "openvino": System("OpenVINO GenAI", openvino),
        "openvino-lookup": System(
            f"OpenVINO GenAI, prompt lookup of {LOOKUP}", functools.partial(openvino, lookup=LOOKUP)),
        "llama": System("llama.cpp", llama_cpp, module="llama_cpp"),
        "llama-lookup": System(
            f"llama.cpp, prompt lookup of {LOOKUP}", functools.partial(llama_cpp, lookup=LOOKUP), module="llama_cpp"),
        "plain": System("SpecBeam plain", functools.partial(specbeam, gamma=None, weights="file")),
    }
    for gamma in gammas:
        systems[f"gamma-{gamma}"] = System(
            f"SpecBeam, prompt lookup, γ = {gamma}", functools.partial(specbeam, gamma=gamma, weights="file")
        )
    return systems


def available(gammas: Sequence[int | str]) -> dict[str, System]:
    """Every system by its short name; `gammas` are the speculative settings of SpecBeam to include. Ratios are to the first."""
    systems = {
        "ct2": System("CTranslate2 float32", functools.partial(ctranslate2, compute_type="float32")),
        "ct2-int8": System("CTranslate2 int8", functools.partial(ctranslate2, compute_type="int8_float32")),
        "hf": System("Hugging Face", hugging_face),
        "hf-assisted": System("Hugging Face, assistant_model", functools.partial(hugging_face, assisted=True), (1,)),
        "plain": System("SpecBeam plain", functools.partial(specbeam, gamma=None)),
        "plain-int8": System("SpecBeam plain, int8", functools.partial(specbeam, gamma=None, weights="int8")),
    }
    for gamma in gammas:
        systems[f"gamma-{gamma}"] = System(f"SpecBeam γ = {gamma}", functools.partial(specbeam, gamma=gamma))
    return systems


def of_beams(gammas: Sequence[int | str]) -> dict[str, System]:
    """As `available`, with BEAMS beams; the draft's are DRAFT_BEAMS."""
    ours = functools.partial(specbeam, num_beams=BEAMS, draft_beams=DRAFT_BEAMS)
    systems = {
        "ct2": System("CTranslate2 float32", functools.partial(ctranslate2, compute_type="float32", beams=BEAMS)),
        "hf": System("Hugging Face", functools.partial(hugging_face, beams=BEAMS)),
        "plain": System("SpecBeam plain beams", functools.partial(ours, gamma=None)),
    }
    for gamma in gammas:
        systems[f"gamma-{gamma}"] = System(f"SpecBeam, u = {DRAFT_BEAMS}, γ = {gamma}", functools.partial(ours, gamma=gamma))
    return systems


class Remote:
    """A system living in a process of its own; `run` is answered by that process while every other one waits."""

    def __init__(self, system: System, workload: workloads.Workload, threads: int):
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, system.build, workload, threads), daemon=True)
        self._process.start()
        theirs.close()
        self._receive()   # built

    def run(self, batch: int) -> tuple[float, float, Tokens]:
        """Wall and processor seconds, and outputs, of one run over the workload's inputs for `batch`."""
        self._connection.send(batch)
        return self._receive()

    def close(self) -> None:
        self._connection.close()
        self._process.join()

    def _receive(self):
        try:
            kind, value = self._connection.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"a system's process ended with exit code {self._process.exitcode}") from None
        if kind == "error":
            raise RuntimeError(f"a system failed:\n{value}")
        return value


def _serve(
    connection: multiprocessing.connection.Connection,
    build: Callable[[workloads.Workload, int], Decode],
    workload: workloads.Workload,
    threads: int,
) -> None:
    """The body of a system's process: builds it, then times one run for every batch size received."""
    try:
        decode = build(workload, threads)
        connection.send(("built", None))
        while True:
            try:
                batch = connection.recv()
            except EOFError:
                return
            inputs = workload.batch_inputs(batch)
            connection.send(("run", measure.timed(functools.partial(decode, inputs, batch))))
    except Exception:
        connection.send(("error", traceback.format_exc()))
