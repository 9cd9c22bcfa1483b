"""Seeds that are a function of names, not of history.

A run that is stopped and resumed must draw the same random numbers as one that was not. Saving
generator states is fragile (workers, ranks, devices), so every consumer derives its seed from what
it works on instead: (run seed, rank, iteration), or (run seed, stream, draw).
"""

import numpy as np


def fold_seed(*parts: int) -> int:
    """Folds non-negative integers into one well-mixed 31-bit seed.

    Equal parts give equal seeds on every platform; neighbouring parts give unrelated ones (NumPy
    ``SeedSequence``).

    Raises: ValueError: no part was given, or one is negative.
    """
    if not parts or any(part < 0 for part in parts):
        raise ValueError(f"fold_seed expects one or more non-negative integers, got {parts}")
    # The count comes first because SeedSequence does not tell trailing zeros from their absence.
    return int(np.random.SeedSequence([len(parts), *parts]).generate_state(1)[0] >> 1)
