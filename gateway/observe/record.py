"""What is written down of one request when it has ended.

Knows names and types of the facts. Does not know where they are kept.
"""

from dataclasses import dataclass

from gateway.observe.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the journal; times in ns, None where nobody watched closely enough to know."""

    key: str
    tenant: str
    method: str
    instance: str
    outcome: str
    attempts: int
    concurrent: int  # requests at instances when this one arrived, itself included
    messages: int | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    first_answer: int | None
    ledger: Ledger
    flags: str = ""  # what a content check has noted
    request_id: str = ""  # as the client called it
