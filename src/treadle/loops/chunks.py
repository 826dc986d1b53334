"""How a run is cut into calls of a compiled loop."""

from __future__ import annotations


class Chunks:
    """How many updates go into one call of a compiled loop: about a fiftieth of the run.

    Chunks are alike as far as possible, because each length is compiled on its own. The plan
    depends on the whole run only, so that a resumed run goes through the same programs.
    """

    def __init__(self, total_timesteps: int, per_update: int, largest: int):
        """`largest`: environment steps of one call at most, but for one update."""
        updates = -(-total_timesteps // per_update)
        self.per_update, self.total_steps = per_update, updates * per_update
        wanted = max(1, min(updates // 50, largest // per_update))
        divisors = [d for d in range(wanted, max(1, wanted // 2) - 1, -1) if updates % d == 0]
        self.size = divisors[0] if divisors else wanted

    def next(self, step: int) -> int:
        """Updates in the chunk that begins at `step`."""
        left = (self.total_steps - step) // self.per_update
        return min(self.size, left)
