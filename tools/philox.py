"""The random numbers of core/philox.h, for scripts that must see the same ones as the program."""
import numpy as np

MASK = np.uint64(0xFFFFFFFF)


def philox(c0, c1, c2, c3, key):
    """Philox4x32-10 on arrays of counters (SC 2011): four arrays of 32-bit words, held in 64-bit ones."""
    c = [np.asarray(x, np.uint64) for x in np.broadcast_arrays(c0, c1, c2, c3)]
    k0, k1 = key
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(p1 >> np.uint64(32)) ^ c[1] ^ np.uint64(k0), p1 & MASK,
             (p0 >> np.uint64(32)) ^ c[3] ^ np.uint64(k1), p0 & MASK]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c


def random_words(seed, step, stream, blocks):
    """(blocks, 4) words: random_block(seed, step, stream, block) of core/philox.h for block 0, 1, ..."""
    return np.stack(philox(np.arange(blocks, dtype=np.uint64), 0, stream, step, (seed, 0x53475631)), 1)


def uniforms(seed, step, stream, count):
    """The first `count` numbers of a stream, in [0,1): uniform_block of core/philox.h."""
    words = random_words(seed, step, stream, (count + 3) // 4)
    return (words.reshape(-1)[:count] >> np.uint64(8)).astype(np.float64) * 2.0**-24
