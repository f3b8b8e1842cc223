"""Whether a job fits a TPU slice, how fast it can be there at most, and what it costs, before anyone pays for one.

    python -m pipeline.plan --config=configs/wmt_ende_t5_xxl.py --topology=v4:2x2x1 [--config.path.to.setting=value]
        [--chips=1] [--mesh=data:1,model:4] [--num_slots=8 | max] [--alpha=0.8] [--price=3.22] [--json=FILE]
        [--target=t5-v1.1-xxl] [--draft=t5-v1.1-small] [--split_draft] [--programs=all | loop | none]
        [--layer_overhead_us=0] [--prepare=DIRECTORY]

The job's programs are compiled for the described slice by libtpu (the extra `tpu`), with shapes in place of
weights: no TPU is needed and nothing is allocated. Without libtpu, or with --programs=none, needs are estimated from
shapes, and the report says so. --target and --draft replace the config's models by presets of published shapes, so that
no checkpoint is needed. Without --topology the passes of the config's models are measured on this machine instead.
--prepare keeps the compiled programs in a directory where the job's workers find them; without --topology that is all.
docs/tpu.md says what the numbers are and what they leave out.

Exit status: 0 when it fits (or was measured, or prepared), 1 when it does not fit, 2 when something is wrong with the command.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence

from pipeline.job.command import command
from pipeline.job.terminal import make_console
from pipeline.planning.command import parse
from pipeline.settings import ConfigError


@command
def main(argv: Sequence[str]) -> int:
    console = make_console()
    try:
        config, options = parse(argv)
        # Only now: what is wrong with the command itself is said without waiting for JAX.
        import decoding
        from pipeline.job.pinning import pin_models
        from pipeline.planning import chips
        from pipeline.planning.prepare import prepare_here
        from pipeline.planning.printed import measured_lines, report
        from pipeline.planning.slice import plan_slice
        from pipeline.planning.speed import measured

        config = pin_models(config)
        if options.prepare:
            options = dataclasses.replace(options, prepare=decoding.keep_programs(options.prepare))
        if options.topology is None and options.prepare:
            count = prepare_here(config)
            result = {"prepared": {"directory": options.prepare, "programs": count, "mesh": config.model.mesh}}
        elif options.topology is None:
            result = measured(config, options)
        else:
            if not chips.has_compiler() and options.programs != "none":
                console.print(
                    "libtpu, in the extra 'tpu', is not installed: this is an estimate from shapes; nothing is "
                    "compiled, so temporaries are guessed and the loop is not looked at.",
                    markup=False,
                )
            result = plan_slice(config, options)
    except ValueError as error:  # CheckpointError and ConfigError too
        raise ConfigError(str(error)) from error
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
    if said := result.get("prepared"):
        mesh = f" --config.model.mesh={said['mesh']}" if said["mesh"] else ""
        where = f"JAX_COMPILATION_CACHE_DIR={said['directory']} and the same settings{mesh}"
        print(f"{said['programs']} programs are kept; a job finds them with {where}")
        if options.topology is None:
            return 0
    if options.topology is None:
        print("\n".join(measured_lines(result)))
        return 0
    report(result, console)
    return 0 if result["memory"]["fits"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
