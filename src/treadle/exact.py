"""Exact solutions of small worlds, from their transition tables: what learned values are compared with.

Sutton and Barto (2018), chapter 4. `S` states, `A` actions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Transitions(NamedTuple):
    """A world with `Discrete` observations as a table.

    `probability[s, a, s2]` is that of going on in `s2`; what the sum over `s2` lacks to 1 is the probability that the
    episode terminates. `reward[s, a]` is the expected reward, `start[s]` the probability that an episode begins in
    `s`. Rows of states in which no action is ever taken (terminal ones) are zero.
    """

    probability: Float[np.ndarray, "S A S"]
    reward: Float[np.ndarray, "S A"]
    start: Float[np.ndarray, " S"]
