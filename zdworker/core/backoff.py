"""How long a slot waits before it is filled again.

Rules: the first death costs no wait, since most crashes are single ones. From the second on the wait doubles up to a
cap. Jitter takes up to half of it away, so that the slots of a crashing fleet do not boot in step.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """Exponential backoff.

    :param base: seconds before the second attempt.
    :param cap: seconds that no wait exceeds.
    """

    base: float = 0.5
    cap: float = 30.0

    def delay(self, failures: int, jitter: float) -> float:
        """Return the seconds to wait after ``failures`` deaths in a row.

        :param jitter: a random number from 0 to 1; the caller draws it, so that this function stays pure.
        """
        if failures <= 1:
            return 0.0
        # The exponent is bounded, too: 2.0 ** 1100 is an OverflowError, and a crash loop may well get there.
        whole = min(self.cap, self.base * 2.0 ** min(failures - 2, 64))
        return whole * (1.0 - jitter / 2.0)
