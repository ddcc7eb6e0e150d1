"""What can go wrong before and while the system starts.

Knows a problem and its cure, in words. Does not know how either was found.
"""

from dataclasses import dataclass

EXIT_CANNOT_START = 2


@dataclass(eq=False)
class LaunchError(Exception):
    """Something that keeps the system from starting, with what to do about it.

    Attributes:
        problem: what is wrong, with the value that is wrong.
        cure: what the reader can do, as a command or an option where there is one.
    """

    problem: str
    cure: str

    def __str__(self) -> str:
        return f"{self.problem}. Cure: {self.cure}"
