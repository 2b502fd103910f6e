"""What the recorded second moments were made from, shared by the recording and the tests."""

import numpy as np

N_CTX, N_CHUNKS = 256, 17  # chunks 7 and 15 are held out
N_PROBES = 3


def probes(n_in: int) -> np.ndarray:
    """Return random directions (n_in, N_PROBES): ‖(H − G) P‖ / ‖G P‖ estimates the relative Frobenius distance."""
    return np.random.default_rng(n_in).standard_normal((n_in, N_PROBES))
