#!/bin/sh
# What a Flink task manager, or a worker pool, starts for a job: Beam's Python worker. See pipeline/clusters/worker.py.
# Its own output goes to stderr: Beam's worker pool never reads stdout.
SPECBEAM_PARENT=$PPID exec "${SPECBEAM_PYTHON:-python3}" -m pipeline.runners.worker "$@" >&2
