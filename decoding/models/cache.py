"""Entries of a cache [B, H, T, D], written and read where each row stands, without a copy of the cache."""

import functools

import jax
import jax.numpy as jnp

# Width of a TPU's vectors.
_TPU_LANES = 128


def write_cache(cache: jax.Array, new: jax.Array, positions: jax.Array) -> jax.Array:
    """Writes `new` [B, H, S, D] into `cache` [B, H, T, D] at time `positions[b]` of each row.

    Positions must satisfy `positions + S <= T`: the caller allocates enough room.
    """

    def write(cache, new, positions, axis=2):
        def into(array, update, at, axis):
            return jax.lax.dynamic_update_slice_in_dim(array, update, at, axis)

        if cache.shape[0] == 1:
            # A scatter of one row is rewritten by XLA into a bounds-checked select that copies the cache.
            return into(cache, new, positions[0], axis)
        return jax.vmap(functools.partial(into, axis=axis - 1))(cache, new, positions)

    def write_tpu(cache, new, positions):
        # A TPU keeps time innermost where heads of 64 would leave lanes empty. A scatter into the array as it is would have
        # the whole cache laid out anew before and after it; into the transposed one, which is the same memory, it has not.
        # Heads that fill the lanes are innermost themselves, and there it is the other way round.
        if cache.shape[3] % _TPU_LANES == 0:
            return write(cache, new, positions)
        return write(cache.swapaxes(2, 3), new.swapaxes(2, 3), positions, axis=3).swapaxes(2, 3)

    return jax.lax.platform_dependent(cache, new, positions, tpu=write_tpu, default=write)


def gather_cache(cache: jax.Array, positions: jax.Array, order: jax.Array, size: int) -> jax.Array:
    """Reads entries positions[b] + order[b, i], below positions[b] + size, of `cache` [B, H, T, D]: [B, H, M, D]."""

    def window(cache, positions, axis):
        part = functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=size)
        if cache.shape[0] == 1:  # as in `write_cache`
            return part(cache, positions[0], axis=axis)
        return jax.vmap(functools.partial(part, axis=axis - 1))(cache, positions)

    def gather(cache, positions, order):
        return jnp.take_along_axis(window(cache, positions, 2), order[:, None, :, None], axis=2)

    def gather_tpu(cache, positions, order):
        # Where time is innermost, a gather along it would have the whole cache laid out anew; a product with zeros and ones,
        # which is exact, takes it as it lies.
        if cache.shape[3] % _TPU_LANES == 0:
            return gather(cache, positions, order)
        block, ones = window(cache.swapaxes(2, 3), positions, 3), jax.nn.one_hot(order, size, dtype=cache.dtype)
        return jnp.einsum("bhdt,bmt->bhmd", block, ones, precision=jax.lax.Precision.HIGHEST)

    return jax.lax.platform_dependent(cache, positions, order, tpu=gather_tpu, default=gather)
