"""The command `specbeam`: its jobs, as `python -m pipeline.<job>` runs them, and `show`."""

import ast
import difflib
import importlib.util
import runpy
import sys
from collections.abc import Sequence

from pipeline.settings import version_text

JOBS = (
    "generate", "score", "distill", "analyze", "benchmark", "plan", "fit_ngram", "fit_index", "convert", "export_tfds",
    "inspect", "on_slice", "quickstart",
)  # fmt: skip
SHOW = "show"


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line `args`, by default this process's, without the program's name. Returns the exit status."""
    name, *rest = [*(sys.argv[1:] if args is None else args)] or ["--help"]
    if name in ("--help", "-h", "help"):
        print(help_text())
        return 0
    if name == "--version":
        print(version_text())
        return 0
    if name == SHOW:
        from specbeam import show

        return show.main(rest)
    if name not in JOBS:
        close = difflib.get_close_matches(name, (*JOBS, SHOW), 1)
        hint = f"; did you mean {close[0]!r}?" if close else ";"
        print(f"error: {name!r} is not a job of specbeam{hint} allowed: {', '.join((*JOBS, SHOW))}", file=sys.stderr)
        return 2
    sys.argv = [f"specbeam {name}", *rest]
    try:
        runpy.run_module(f"pipeline.{name}", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        raise
    return 0


def help_text() -> str:
    """What `specbeam --help` says; no job is imported for it."""
    width = max(map(len, JOBS))
    lines = [f"  {name:{width}}  {about(f'pipeline.{name}')}" for name in JOBS]
    lines.append(f"  {SHOW:{width}}  {about('specbeam.show')}")
    return "\n".join(
        [
            "Exact speculative decoding for large batch-generation jobs.",
            "",
            "    specbeam JOB [--config=FILE] [--output=DIR] [options]",
            "    specbeam JOB --help",
            "    specbeam --version",
            "",
            "Jobs:",
            *lines,
        ]
    )


def about(module: str) -> str:
    """The first line of a module's docstring."""
    source = importlib.util.find_spec(module).loader.get_source(module)
    return ast.get_docstring(ast.parse(source)).partition("\n")[0]
