"""Plain against speculative decoding on one's own inputs and machine: how much faster, at which γ and batch size.

    python -m pipeline.benchmark --config=configs/quickstart.py --output=DIR [--config.path.to.setting=value]
        [--gammas=0,1,2,4,7,auto] [--num_slots=1,8,32] [--verifications=token,block] [--temperatures=0,1]
        [--draft_beams=4,8] [--repeats=7] [--examples=64] [--seed=0]

Runs in this process, one batch size after the other. Prints tables and writes DIR/benchmark.json, after every repeat,
with every single timing.
docs/benchmarking.md says how to read both, and pipeline/benchmarking/paired.py and passes.py how it is measured.

Exit status: 0 when everything was measured, 2 when something is wrong with the command, its input or its folder and
nothing was done, 130 when interrupted.
"""

import sys
from collections.abc import Sequence

from pipeline.benchmarking.settings import parse
from pipeline.job.command import command
from pipeline.job.terminal import make_console
from pipeline.settings import ConfigError


@command
def main(args: Sequence[str]) -> int:
    """Runs the command line `args`, which excludes the program's name. Returns the exit status."""
    console = make_console()
    config, output, settings = parse(args)
    if config.model.mesh:
        raise ConfigError(f'model.mesh is {config.model.mesh!r}; allowed: "", since one device is measured')
    # Only now: what is wrong with the command itself is said without waiting for JAX.
    from decoding.faults import NonFiniteLogits
    from pipeline.benchmarking.inputs import read_inputs
    from pipeline.benchmarking.measure import measure
    from pipeline.benchmarking.results import RESULTS, open_folder
    from pipeline.benchmarking.tables import print_results
    from pipeline.job.pinning import pin_models
    from pipeline.job.preflight import check_models

    config = pin_models(config)
    models = check_models(config)
    inputs = read_inputs(config, models, settings.examples, output)
    folder = open_folder(output)
    try:
        results = measure(config, settings, models, inputs, folder, console)
    except KeyboardInterrupt:
        print(f"\ninterrupted; complete repeats are in {folder.path(RESULTS)}", file=sys.stderr)
        return 130
    except NonFiniteLogits as error:  # what such a model takes per token is of no use to anyone
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_results(console, results)
    console.print(f"Output: {folder.path(RESULTS)}", soft_wrap=True, highlight=False, markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
