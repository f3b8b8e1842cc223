"""What XLA is told in XLA_FLAGS, for every program of this process and of its children, whoever compiles it.

On processors XLA fuses operations into YNNPACK's kernels. In jaxlib 0.10.2 such fusions yield wrong sums and crash
(jax-ml/jax#39103, #39257, #40412), in 0.11 some still do, and later ones have had no time to be trusted: there shall be
none. XLA reads the variable once, when a backend is made, so that `import decoding` sets it, which takes no JAX;
`decoding.compilation` says the same at every compilation of ours, for processes that had a backend before.
"""

import os

import jaxlib.version

# Which operations are fused; "" is none.
FUSIONS = "xla_cpu_experimental_ynn_fusion_type"
# Versions, from and below, that were seen to know it: a jaxlib that does not know a flag ends the process.
_JAXLIBS = ((0, 10, 2), (0, 13))


def safe_flags(flags: str, jaxlib_version: tuple[int, ...]) -> str:
    """XLA_FLAGS under which none of these fusions is made.

    Args:
      flags: as they are; what they say of these fusions already is left as it is, and so is everything else.
      jaxlib_version: of the jaxlib that will read them.
    """
    first, beyond = _JAXLIBS
    if not first <= jaxlib_version < beyond or FUSIONS in flags:
        return flags
    return f"{flags} --{FUSIONS}=".strip()


def without_fusions(flags: str) -> bool:
    """Whether these flags forbid them all."""
    return f"--{FUSIONS}=" in flags.split()


def set_flags() -> None:
    """Sets XLA_FLAGS for this process."""
    flags = os.environ.get("XLA_FLAGS", "")
    if (safe := safe_flags(flags, jaxlib.version.__version_info__)) != flags:
        os.environ["XLA_FLAGS"] = safe
