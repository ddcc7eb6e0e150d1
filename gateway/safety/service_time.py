"""How long requests take from admission to their end: a mean in which the latest ones weigh most.

Knows seconds. Does not know whose requests they are.
"""

from dataclasses import dataclass

FIRST_GUESS = 1.0  # seconds, until one has ended
SMOOTHING = 0.1  # weight of the latest one


@dataclass(slots=True)
class ServiceTime:
    """The mean so far."""

    seconds: float = FIRST_GUESS
    is_guess: bool = True

    def take(self, seconds: float) -> None:
        """Take the time of one that has ended."""
        self.seconds += (1.0 if self.is_guess else SMOOTHING) * (seconds - self.seconds)
        self.is_guess = False
