"""Which images a trial evaluates."""

import numpy as np
import numpy.typing as npt

# Keeps the choice of images apart from the choice of faults under the same seed.
_STREAM = 0x1A6E5

Indices = npt.NDArray[np.int64]


def choose_images(
    total: int, count: int, seed: int, trial: int, strata: Indices | None = None
) -> Indices:
    """Draw a trial's images without replacement: the same for every model and fault model.

    Every image has the same chance, ``count / total``. With strata the images are put in order of
    their stratum, at random within it, and every ``total / count``-th is taken from a random start
    (systematic sampling), so that every stratum is drawn in proportion to its size, rounded up or
    down. A network that faults reduced to a single class is right on the images of that class; in
    proportion, they tell its accuracy with little noise.

    Args:
        total: Images there are.
        count: Images to draw; 0, or more than there are, takes all.
        seed: Seed of the campaign.
        trial: Number of the trial; trials draw independently of each other.
        strata: What to draw in proportion, such as the labels, ``[total]``.

    Returns:
        Indices in ascending order.
    """
    if not 0 < count < total:
        return np.arange(total)
    rng = np.random.default_rng((seed, _STREAM, trial))
    if strata is None:
        return np.sort(rng.choice(total, count, replace=False))
    order = np.argsort(strata + rng.random(total))
    # In integers, so that the chances are equal and not merely nearly so.
    places = (rng.integers(total) + np.arange(count) * total) // count
    return np.sort(order[places])
