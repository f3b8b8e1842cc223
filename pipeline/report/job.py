"""The Beam job of `pipeline.analyze`: from parts to analysis.json."""

import datetime
import json
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from decoding.version import __version__
from pipeline.report import comparison, costs, estimates, reading
from pipeline.report.estimates import Series
from pipeline.report.names import identify
from pipeline.report.operations import describe_models
from pipeline.report.source import BENCHMARK, GENERATIONS, SCORES, Source
from transforms.parts import PartError, open_part, read_footer_json
from transforms.statistics import analysis
from transforms.statistics.combine import CombineStatistics, CombineTokenCounts
from transforms.statistics.sums import Sums
from transforms.storage import OutputFolder

ANALYSIS = "analysis.json"
GAMMAS = (1, 2, 3, 4, 5, 7, 10)
"""γ that target calls are predicted for, besides those that inputs used."""
_PARTS_TO_SHOW = 4  # per folder, that texts are taken from


def build_pipeline(root: beam.Pipeline, *, sources: Sequence[Source], notes: Sequence[str], output: str) -> None:
    """Adds the analysis to `root`; at its end analysis.json is in the output folder.

    Args:
      root: an empty pipeline.
      sources: what is analysed.
      notes: what a reader has to know about them.
      output: folder of the report.
    """
    gammas = _gammas(sources)
    parts = [
        (number, path, shown < _PARTS_TO_SHOW)
        for number, source in enumerate(sources)
        for shown, path in enumerate(source.parts)
    ]
    spread = root | "Parts" >> beam.Create(parts, reshuffle=False) | "Spread" >> beam.Reshuffle()
    ranks = (
        spread
        | "CountTokens" >> beam.Map(_count_tokens, sources)
        | "AddCounts" >> beam.CombinePerKey(CombineTokenCounts())
        | "Rank" >> beam.MapTuple(lambda number, counts: (number, analysis.rank_buckets(counts)))
    )
    measure = beam.FlatMap(_measure, sources=sources, gammas=gammas, ranks=beam.pvalue.AsDict(ranks))
    measured = spread | "Measure" >> measure.with_outputs("timing", "text", "problem", main="sums")
    found = (
        measured.sums
        | "AddSums" >> beam.CombinePerKey(CombineStatistics(Sums))
        | beam.Map(lambda pair: ("sums", pair)),
        measured.timing | beam.Map(lambda timing: ("timings", timing)),
        measured.text
        | "BestTexts" >> beam.combiners.Top.SmallestPerKey(reading.SHOWN_TEXTS, key=lambda text: text[0])
        | beam.Map(lambda texts: ("texts", texts)),
        measured.problem | beam.Map(lambda problem: ("problems", problem)),
        root | "Start" >> beam.Create([("start", None)]),
    )
    _ = (
        found
        | "Together" >> beam.Flatten()
        | "OneKey" >> beam.Map(lambda item: (None, item))
        | "Gather" >> beam.GroupByKey()
        | "WriteAnalysis" >> beam.Map(_write_analysis, sources, gammas, list(notes), output)
    )


def _gammas(sources: Sequence[Source]) -> list[int]:
    used = {comparison.fixed_gamma(source) for source in sources if source.kind == GENERATIONS}
    rows = (row["gamma"] for source in sources if source.kind == BENCHMARK for row in source.results["rows"])
    return sorted({*GAMMAS, *(gamma for gamma in (*used, *rows) if isinstance(gamma, int) and gamma > 0)})


def _count_tokens(part: tuple, sources: Sequence[Source]) -> tuple[int, np.ndarray]:
    number, path, _ = part
    column = "tokens" if sources[number].kind == SCORES else "output_tokens"
    try:
        return number, analysis.count_tokens(reading.read_tokens(path, column))
    except PartError:  # which `_measure` tells
        return number, analysis.count_tokens(np.zeros(0, np.int64))


def _measure(part: tuple, sources: Sequence[Source], gammas: Sequence[int], ranks: dict):
    """Yields a part's sums by series, its time, texts to show, or what is wrong with it."""
    number, path, shown = part
    source = sources[number]
    try:
        open_part(path, source.fingerprint)
    except PartError as error:
        yield beam.pvalue.TaggedOutput("problem", f"the input {source.folder!r} is not as its run left it: {error}")
        return
    footer = read_footer_json(path)
    if source.kind == SCORES:
        temperature, top_k, top_p, _ = source.sampling
        raw = temperature == 1 and top_k == 0 and top_p == 1
        lenience = tuple(source.identity["score"]["lenience"])
        try:
            read = reading.read_scores(path, dict.fromkeys(source.drafts, raw), lenience)
        except pa.ArrowInvalid as error:
            what = str(error).split(" in ")[0]
            missing = f"the input {source.folder!r}: {path!r} lacks what its manifest promises: {what}"
            yield beam.pvalue.TaggedOutput("problem", missing)
            return
        for name, texts in read.items():
            yield (number, name), analysis.sums_of_scores(texts, ranks[number], gammas)
        return
    statistics, baseline = footer["statistics"], footer.get("baseline", False)
    timing = {"baseline": baseline, "tokens": statistics["tokens"], "seconds": statistics["generate_seconds"]}
    yield beam.pvalue.TaggedOutput("timing", (number, timing))
    if source.drafts and not baseline:
        yield (number, ""), analysis.sums_of_generations(reading.read_generations(path), ranks[number])
        for key, row in reading.texts_to_show(path) if shown else ():
            yield beam.pvalue.TaggedOutput("text", (number, (key, row)))


def _write_analysis(
    gathered: tuple, sources: Sequence[Source], gammas: Sequence[int], notes: Sequence[str], output: str
) -> None:
    by_kind: dict[str, list] = {"sums": [], "timings": [], "texts": [], "problems": [], "start": []}
    for kind, item in gathered[1]:
        by_kind[kind].append(item)
    results = analysed(sources, gammas, notes, by_kind)
    OutputFolder(output).put(ANALYSIS, (json.dumps(results, indent=1, ensure_ascii=False) + "\n").encode())


def analysed(sources: Sequence[Source], gammas: Sequence[int], notes: Sequence[str], found: dict[str, list]) -> dict:
    """The content of analysis.json.

    Args:
      sources, gammas, notes: as in `build_pipeline`.
      found: "sums" ((number, draft), Sums), "timings" (number, timing), "texts" (number, [(key, row)]) and "problems".
    """
    series = {key: Series(sums) for key, sums in sorted(found["sums"], key=lambda pair: pair[0])}
    timings: dict[int, list[dict]] = {}
    for number, timing in found["timings"]:
        timings.setdefault(number, []).append(timing)
    in_job = {}
    for number in sorted(timings):
        ordered = sorted(timings[number], key=lambda one: (one["baseline"], one["seconds"], one["tokens"]))
        if compared := estimates.time_ratio(ordered):
            in_job[number] = compared
    described = {}
    for (number, name), one in series.items():
        source = sources[number]
        scores = source.kind == SCORES
        used = gammas if scores else [gamma for gamma in one.sums.buckets("calls") if gamma > 0]
        law = source.decoding.get("verification") == "token" and source.decoding.get("lenience", 1.0) == 1
        described[number, name] = {
            **identify(source, name),
            "of_target": source.text.get("of_target", True),
            **estimates.describe(one, scores=scores, gammas=used, law=law),
        }
    texts: list[dict[str, Any]] = [
        {**identify(sources[number], ""), "tokenizer": sources[number].tokenizer, "row": row}
        for number, rows in sorted(found["texts"], key=lambda item: item[0])
        for _, row in rows
    ]
    models, unknown = describe_models(sources)
    counted = {digest: model["operations"] for digest, model in models.items()}
    return {
        "specbeam": __version__,
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "problems": list(found["problems"]),
        "notes": [*notes, *comparison.unmatched(sources, series), *unknown],
        "interval": {
            "level": estimates.LEVEL,
            "method": "Poisson bootstrap over examples (speedups: over repeats, within a job over shards), Student's t",
        },
        "models": models,
        "sources": [source.describe() for source in sources],
        "machines": [
            {"run": s.called, "machine": s.results["machine"], "inputs": s.results["inputs"], "models": s.results["models"]}
            for s in sources
            if s.kind == BENCHMARK
        ],
        "series": list(described.values()),
        "best_drafts": comparison.best_drafts(sources, series, described),
        "two_definitions": comparison.two_definitions(sources, series),
        "tokens_per_call": comparison.tokens_per_call(sources, series),
        "speedups": comparison.measured_speedups(sources, series),
        "in_job": [
            {**identify(sources[number], ""), **compared} for number, compared in in_job.items() if sources[number].drafts
        ],
        "costs": costs.measured_costs(sources),
        "best_gammas": costs.best_gammas(sources, series, described),
        "operations": comparison.operations(sources, series, counted),
        "seeds": comparison.seeds(sources, series, in_job),
        "texts": texts,
    }
