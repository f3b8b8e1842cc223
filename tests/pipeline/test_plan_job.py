"""`pipeline.plan`: what it refuses, what it predicts, what it reads from compiled programs, and libtpu's own word."""

import dataclasses
import json
import pathlib
import re
import types

import jax
import jax.numpy as jnp
import pytest

from decoding import sharding, theory
from decoding.checkpoints import architecture
from pipeline import plan
from pipeline.planning import chips, hlo, jobs, memory, roofline
from pipeline.settings import ConfigError, ModelConfig

CONFIG = f"--config={pathlib.Path(__file__).resolve().parent.parent.parent / 'configs' / 'quickstart.py'}"
SMALL = ["--target=t5-v1.1-small", "--draft=t5-v1.1-small", "--config.model.dtype=bfloat16"]
NEEDS_LIBTPU = pytest.mark.skipif(not chips.has_compiler(), reason="libtpu is not installed (extra tpu)")


def run(*args: str, tmp_path) -> tuple[int, dict]:
    """Exit status and results."""
    file = tmp_path / "plan.json"
    status = plan.main([CONFIG, *args, f"--json={file}"])
    return status, json.loads(file.read_text())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--topology=v9:2x2"], r"--topology is 'v9:2x2'; allowed: one of v4, v5e, v5p, v6e, a colon"),
        (["--topology=v4"], r"--topology is 'v4'; allowed"),
        (["--topology=v4:2x2x1", "--chips=5"], "--chips is 5; allowed: 1 to 4, which v4:2x2x1 has"),
        (["--topology=v4:2x2x1", "--mesh=data:2,model:4"], "--mesh is 'data:2,model:4'; allowed: .* D x M = 4"),
        (["--topology=v4:2x2x1", "--config.model.mesh=model:8"], "model.mesh is 'model:8'; allowed: .* D x M = 4"),
        (["--topology=v4:2x2x1", "--mesh=rows:4"], "--mesh is 'rows:4'; allowed"),
        (["--topology=v4:2x2x1", "--mesh=data:4", "--num_slots=6"], "--num_slots is 6; allowed: multiples of 4"),
        (["--num_slots=many"], "--num_slots is 'many'; allowed"),
        (["--mesh=data:1,model:4"], "--mesh, --chips and --num_slots=max are about a slice; allowed: with --topology"),
        (["--alpha=1.5"], "--alpha is 1.5; allowed: 0 to 1"),
        (["--json=/no/such/folder/plan.json"], "--json is '/no/such/folder/plan.json'; allowed: a file in a folder that is"),
        (["--target=t5-huge"], "--target is 't5-huge'; allowed: t5-v1.1-small"),
        (["--toplogy=v4:2x2x1"], "'--toplogy' is not an option of this job; did you mean --topology\\?"),
    ],
)
def test_what_is_wrong_with_the_command_is_said(args, message, capsys):
    assert plan.main([CONFIG, *args]) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.slow  # which alone install libtpu
@NEEDS_LIBTPU
def test_a_slice_that_libtpu_does_not_know_is_an_error(capsys):
    assert plan.main([CONFIG, *SMALL, "--topology=v4:3x3x3"]) == 2
    assert "--topology is 'v4:3x3x3', which libtpu refuses" in capsys.readouterr().err


def test_without_libtpu_there_is_an_estimate_and_it_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(chips, "has_compiler", lambda: False)
    status, found = run(*SMALL, "--topology=v4:2x2x1", "--chips=2", tmp_path=tmp_path)
    shown = " ".join(capsys.readouterr().out.split())
    assert "libtpu, in the extra 'tpu', is not installed: this is an estimate" in shown
    assert "nothing was compiled" in shown
    assert status == 0
    assert found["memory"]["compiled"] is False and found["programs"] == {} and found["mesh"] == {"data": 1, "model": 2}


@pytest.mark.slow
def test_what_does_not_fit_says_how_much_is_missing_and_what_would(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(chips, "has_compiler", lambda: False)
    status, found = run(*SMALL, "--topology=v5e:2x2", "--chips=1", "--num_slots=2000", tmp_path=tmp_path)
    held = found["memory"]
    assert status == 1
    assert held["limit"] == int(15.75 * chips.GIB)
    assert held["short"] == held["total"] - held["limit"] > 0
    shown = " ".join(capsys.readouterr().out.split())
    fewer = int(shown.split("--num_slots=")[1].split(";")[0])
    assert "Does not fit:" in shown and "a slice of 4 or more chips" in shown
    status, _ = run(*SMALL, "--topology=v5e:2x2", "--chips=1", f"--num_slots={fewer}", tmp_path=tmp_path)
    assert status == 0


def test_the_most_slots_fit_and_more_do_not(monkeypatch, tmp_path):
    monkeypatch.setattr(chips, "has_compiler", lambda: False)
    args = [*SMALL, "--topology=v5e:2x2", "--chips=1"]
    status, found = run(*args, "--num_slots=max", tmp_path=tmp_path)
    assert status == 0 and found["num_slots"] > 100
    assert run(*args, f"--num_slots={found['num_slots'] + 64}", tmp_path=tmp_path)[0] == 1


def test_bisection_finds_the_last_that_fits():
    assert memory.largest(lambda slots: slots <= 100, 8) == 96
    assert memory.largest(lambda slots: slots <= 100, 1) == 100
    assert memory.largest(lambda slots: False, 8) == 0


def test_the_roofline_of_a_pass_is_the_bytes_that_it_reads():
    """T5 v1.1 small's decoder, by hand."""
    mesh = jax.sharding.AbstractMesh((1, 1), ("data", "model"))
    model = sharding.shard(architecture.abstract_model("t5-v1.1-small", jnp.bfloat16), mesh)
    options = {"slots": 1, "input_length": 64, "max_decode_tokens": 64, "max_positions": 100}
    work = roofline.step_work(model, mesh, positions=1, **options)
    inner, width, hidden = 6 * 64, 512, 1024
    matrices = 8 * (4 * width * inner + 2 * width * inner + 3 * width * hidden) + width * 32128
    vectors = 8 * 3 * width + width + 32 * 6  # norms, and the table of relative positions
    caches = 8 * 2 * 6 * 64 * (64 + 100)
    assert work.bytes == 2 * (matrices + vectors + caches + width) + 8 * 32128
    assert work.flops == 2 * (matrices + 32 * 6) + 8 * 4 * 6 * 64 * (64 + 100)
    assert work.seconds(chips.TPUS["v4"], 1) == work.bytes / 1228e9
    assert work.seconds(chips.TPUS["v4"], 1, overhead=1e-3) == pytest.approx(work.bytes / 1228e9 + 8e-3)
    # With more rows the same parameters do more: on a chip slow enough a pass is bound by arithmetic.
    many = roofline.step_work(model, mesh, positions=8, **options | {"slots": 64})
    slow = dataclasses.replace(chips.TPUS["v4"], flops=1e12)
    assert many.seconds(slow, 1) == many.flops / 1e12 > many.bytes / 1228e9


def test_split_over_four_chips_each_reads_a_quarter_and_sums_are_sent():
    one, four = (jax.sharding.AbstractMesh((1, ways), ("data", "model")) for ways in (1, 4))
    options = {"slots": 1, "positions": 1, "input_length": 64, "max_decode_tokens": 64, "max_positions": 100}
    whole, part = (
        roofline.step_work(
            sharding.shard(architecture.abstract_model("t5-v1.1-base", jnp.bfloat16), mesh), mesh, **options
        )
        for mesh in (one, four)
    )
    assert whole.sums == 0 and part.sums == (3 * 12 + 1) * 768 * 2
    assert part.bytes == pytest.approx(whole.bytes / 4, rel=1e-3)
    link = chips.TPUS["v4"].link
    assert part.seconds(chips.TPUS["v4"], 4) == pytest.approx(part.bytes / 1228e9 + 1.5 * part.sums / (2 * link))


@pytest.mark.parametrize(
    ("name", "parameters", "scales", "tolerance"),
    [  # of XXL the 11B parameters in bfloat16 leave a v4 chip hardly any room; logits are more of base's pass
        pytest.param("t5-v1.1-base", 247_577_856, 1.42e6, 0.04, marks=pytest.mark.slow),
        pytest.param("t5-v1.1-xxl", 11_135_332_352, 14.6e6, 0.02, marks=pytest.mark.slow),
    ],
)
def test_int8_weights_are_a_byte_each_in_memory_and_in_a_pass(name, parameters, scales, tolerance):
    mesh = jax.sharding.AbstractMesh((1, 1), ("data", "model"))
    options = {"slots": 1, "positions": 1, "input_length": 64, "max_decode_tokens": 64, "max_positions": 100}
    plain = sharding.shard(architecture.abstract_model(name, jnp.bfloat16), mesh)
    rounded = jobs.placed(architecture.abstract_model(name, jnp.bfloat16), mesh, "int8")
    held = [sum(map(roofline.whole_bytes, roofline.parameters(model).values())) for model in (plain, rounded)]
    assert held[0] == 2 * parameters and parameters < held[1] < parameters + scales
    both = [roofline.step_work(model, mesh, **options) for model in (plain, rounded)]
    assert both[1].bytes == pytest.approx(both[0].bytes / 2, rel=tolerance) and both[1].flops == both[0].flops


@pytest.mark.slow
@NEEDS_LIBTPU
def test_int8_weights_are_widened_as_they_are_read(tmp_path):
    """On one v4 chip the loop of T5 v1.1 small has no room for a wide copy of its weights."""
    found = run(*SMALL[:1], "--config.model.draft=", "--config.decoding.gamma=0", "--config.model.dtype=bfloat16",
                "--config.model.weights=int8", "--topology=v4:2x2x1", "--chips=1", "--programs=loop", tmp_path=tmp_path)[1]
    assert found["memory"]["temporary"] < found["memory"]["parameters"] / 2


def test_what_is_whole_on_every_chip_needs_no_sum():
    """T5-small's 6 heads over 4 chips: its 8 layers sum the feed-forward alone, and there is the embedding."""
    mesh = jax.sharding.AbstractMesh((1, 4), ("data", "model"))
    model = sharding.shard(architecture.abstract_model("t5-v1.1-small", jnp.bfloat16), mesh)
    work = roofline.step_work(
        model, mesh, slots=1, positions=1, input_length=64, max_decode_tokens=64, max_positions=100
    )
    assert work.sums == (8 + 1) * 512 * 2


def test_gpus_are_known_by_a_whole_word():
    assert chips.gpu("NVIDIA A100-SXM4-80GB").name == "A100"
    assert chips.gpu("NVIDIA L40S") is chips.gpu("cpu") is None


def test_predictions_follow_from_passes_and_alpha(monkeypatch, tmp_path):
    monkeypatch.setattr(chips, "has_compiler", lambda: False)
    args = [*SMALL, "--topology=v4:2x2x1", "--chips=1", "--config.decoding.gamma=3", "--alpha=0.75", "--price=2"]
    said = run(*args, tmp_path=tmp_path)[1]["predicted"]
    assert said["c"] == pytest.approx(1.0)
    cost = said["verify_seconds"] / said["target_seconds"]
    assert said["speedup"] == pytest.approx(theory.walltime_improvement_measured(0.75, 3, said["c"], cost))
    assert said["best_gamma"] == 0 and said["best_speedup"] == pytest.approx(1.0)
    assert said["plain_tokens_per_second"] == pytest.approx(1 / said["target_seconds"])
    assert said["cost_per_million_tokens"] == pytest.approx(2 * 1e6 / said["tokens_per_second"] / 3600)


HLO = """HloModule jit_chunk, is_scheduled=true

%fused_copy (param_0: bf16[2,8,256,64]) -> bf16[2,8,256,64] {
  %param_0 = bf16[2,8,256,64]{3,2,1,0} parameter(0)
  ROOT %copy.9 = bf16[2,8,256,64]{3,1,2,0} copy(%param_0)
}

%draft_body (p.1: (s32[], bf16[2,8,256,64])) -> (s32[], bf16[2,8,256,64]) {
  %p.1 = (s32[], bf16[2,8,256,64]{3,2,1,0}) parameter(0)
  %all-reduce.2 = f32[2,16]{1,0:T(2,128)} all-reduce(%x), to_apply=%add
  ROOT %tuple.1 = (s32[], bf16[2,8,256,64]{3,2,1,0}) tuple(%a, %b)
}

%body (p: (s32[], bf16[2,8,256,64])) -> (s32[], bf16[2,8,256,64]) {
  %p = (s32[], bf16[2,8,256,64]{3,2,1,0:T(8,128)(2,1)}) parameter(0)
  %cache = bf16[2,8,256,64]{3,2,1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %copy.1 = bf16[2,8,256,64]{3,2,0,1:T(8,128)(2,1)} copy(%cache)
  %copy-start.2 = (bf16[2,8,256,64]{3,2,1,0:T(8,128)(2,1)S(1)}, bf16[2,8,256,64]{3,2,1,0}, u32[]) copy-start(%cache)
  %copy.3 = bf16[2,8,1,64]{3,2,1,0} copy(%new)
  %fusion.4 = bf16[2,8,256,64]{3,1,2,0} fusion(%cache), kind=kLoop, calls=%fused_copy
  %while.5 = (s32[], bf16[2,8,256,64]{3,2,1,0}) while(%t), condition=%c, body=%draft_body, config={"known_trip_count":{"n":"6"}}
  %all-gather-start.6 = (bf16[4]{0}, bf16[16]{0}) all-gather-start(%y), dimensions={0}
  %collective-permute-start.9 = (bf16[8,2]{1,0}, bf16[8,2]{1,0}, u32[], u32[]) collective-permute-start(%z)
  %all-reduce-start.10 = (f32[4]{0}, f32[2]{0}) all-reduce-start(%v, %w), to_apply=%add
  ROOT %tuple.2 = (s32[], bf16[2,8,256,64]{3,2,1,0}) tuple(%i, %cache)
}

ENTRY %main (a: bf16[2,8,256,64]) -> bf16[2,8,256,64] {
  %a = bf16[2,8,256,64]{3,2,1,0} parameter(0)
  %copy.7 = bf16[2,8,256,64]{3,2,1,0} copy(%a)
  %while.8 = (s32[], bf16[2,8,256,64]{3,2,1,0}) while(%t0), condition=%cond, body=%body
  ROOT %out = bf16[2,8,256,64]{3,2,1,0} get-tuple-element(%while.8), index=1
}
"""


def test_copies_of_caches_are_found_in_the_loop_alone():
    """Not the copy before the loop, nor that of a single position; a read into on-chip memory is counted apart."""
    program = hlo.Program(HLO)
    assert program.loop_body() == "body"
    assert program.copies([("bf16", (2, 8, 256, 64))]) == (["copy.1", "fusion.4"], 1)
    assert program.copies([("bf16", (2, 8, 512, 64))]) == ([], 0)


def test_collectives_count_as_often_as_they_run():
    found = hlo.Program(HLO).collectives()
    assert found.counts == {"all-reduce": 7, "all-gather": 1, "collective-permute": 1}
    assert found.bytes == 6 * 2 * 16 * 4 + 16 * 2 + 8 * 2 * 2 + (4 + 2) * 4


def test_the_compilers_word_on_memory_is_read():
    said = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
    loop = RuntimeError(f"{said}Used 40.21G of 30.75G hbm. Exceeded hbm capacity by 9.46G.")
    assert memory.exhausted(loop) == (int(40.21 * chips.GIB), int(30.75 * chips.GIB))
    array = RuntimeError(
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (2.00T) exceeds "
        "available HBM (512.00M)."
    )
    assert memory.exhausted(array) == (2 << 40, 512 << 20)
    assert memory.exhausted(RuntimeError("RESOURCE_EXHAUSTED: out of memory")) == (0, 0)
    assert memory.exhausted(RuntimeError("INTERNAL: something else")) is None


def test_a_chip_has_what_programs_may_use_of_it(monkeypatch):
    """Not what its data sheet says: a program of 31 GiB is refused for a v4 of 32."""
    monkeypatch.setattr(chips, "has_compiler", lambda: False)
    found = {name: memory.usable(chips.parse_topology(f"{name}:2x2x1")) / chips.GIB for name in chips.TPUS}
    assert found == pytest.approx({"v4": 30.75, "v5e": 15.75, "v5p": 95.74, "v6e": 31.25})


@pytest.mark.slow  # which alone install libtpu
@NEEDS_LIBTPU
@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_the_compiler_itself_says_how_much_programs_may_use(name):
    """As recorded; and an argument of so much, but for a few MiB, it takes, and a little more it refuses."""
    topology = chips.parse_topology(name)
    limit = memory.usable(topology)
    assert limit == topology.chip.memory
    placed = jax.sharding.SingleDeviceSharding(chips.devices(topology)[0])

    def compile_sum(size):
        argument = jax.ShapeDtypeStruct((size >> 20, 1 << 18), jnp.int32, sharding=placed)
        return jax.jit(jnp.sum).trace(argument).lower(lowering_platforms=("tpu",)).compile()

    assert compile_sum(limit - (8 << 20)).memory_analysis().argument_size_in_bytes > limit - (10 << 20)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        compile_sum(limit + (8 << 20))


def test_programs_keep_their_code_and_take_turns_with_their_arrays():
    def program(arrays, code, new=0):
        said = types.SimpleNamespace(
            temp_size_in_bytes=arrays,
            generated_code_size_in_bytes=code,
            output_size_in_bytes=100 + new,
            alias_size_in_bytes=100,
        )
        return types.SimpleNamespace(memory_analysis=lambda: said)

    programs = {("chunk", 3): program(1000, 30, new=7), ("chunk", 0): program(500, 20), ("prefill", 64): program(1004, 5, 9)}
    found = memory.as_compiled(memory.Memory(1, 2, 3, 4), programs)
    assert found == memory.Memory(1, 2, 3, 1007 + 55, compiled=True)


@pytest.mark.slow
@NEEDS_LIBTPU
def test_a_job_compiles_for_four_v4_chips(tmp_path):
    """Every program of it, with the loop split over the chips, none of its caches copied."""
    args = ["--topology=v4:2x2x1", "--mesh=data:1,model:4", "--num_slots=8", "--config.decoding.input_buckets=(64,)"]
    target = ["--target=t5-v1.1-base", "--draft=t5-v1.1-small", "--config.model.dtype=bfloat16"]
    status, found = run(*args, *target, tmp_path=tmp_path)
    loop = found["programs"]["chunk 3"]
    assert status == 0 and found["memory"]["compiled"]
    both = {f"{what}{which} 64" for what in ("prefill", "insert") for which in ("", " draft")}
    assert set(found["programs"]) == {"chunk 3"} | both
    assert loop["cache_copies"] == []
    assert loop["collectives"]["all-reduce"] >= 3 * 12
    assert found["memory"]["total"] < 1 << 30


def test_without_a_topology_passes_are_measured_here(tmp_path, golden, capsys):
    models = [f"--config.model.{one}={golden / f't5_v1_1_{one}'}" for one in ("target", "draft")]
    status, found = run(*models, "--config.decoding.input_buckets=(8,)", "--num_slots=2", tmp_path=tmp_path)
    passes = {(one["model"], one["positions"]): one["seconds"] for one in found["passes"]}
    assert status == 0 and set(passes) == {("target", 1), ("target", 4), ("draft", 1)}
    assert found["c"] == passes["draft", 1] / passes["target", 1] > 0
    assert found["num_slots"] == 2
    lines = capsys.readouterr().out.splitlines()
    assert [re.sub(r"\d+\.\d+", "#", line) for line in lines if " over " in line] == [
        "target over 1 position: # ms", "target over 4 positions: # ms", "draft over 1 position: # ms",
    ]  # fmt: skip
    assert re.fullmatch(r"c = \d+\.\d{3}\. Speedup \d+\.\d\d with γ = 3, if α is 0\.8: assumed, not measured; .*", lines[-1])


def test_slices_of_published_kinds():
    assert chips.parse_topology("v4:4x4x4").chips == 64
    assert chips.parse_topology("v5e:2x4").chip.memory == int(15.75 * chips.GIB)
    assert chips.parse_topology("v4:2x2x1").chip.config == "megacore"


def test_a_jobs_mesh_is_checked_before_anything_is_loaded():
    assert ModelConfig("t", mesh="data:2,model:4").mesh == "data:2,model:4"
    with pytest.raises(ConfigError, match="model.mesh is 'model:0'; allowed: \"\", or numbers of at least 1"):
        ModelConfig("t", mesh="model:0")
