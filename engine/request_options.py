"""What preprocessing tells the engine about a request besides its prompt, as one JSON text.

Knows the text's layout. Does not know tensors, request parameters or what the options mean.

Invariant: `from_json(options.to_json()) == options`.
"""

import json
from dataclasses import dataclass
from typing import Any

from engine.errors import InvalidRequest
from engine.sampling_params import SamplingParams
from engine.scheduling_params import SchedulingParams
from engine.task_params import DEFAULT_TASK, TaskParams

LAYOUT = '{"sampling": {...}, "scheduling": {...}, "task": {...}, "stream": true or false}'


@dataclass(slots=True, frozen=True)
class RequestOptions:
    """A request's options, checked."""

    sampling: SamplingParams
    scheduling: SchedulingParams
    stream: bool
    task: TaskParams = DEFAULT_TASK

    def to_json(self) -> str:
        """Return the text that `from_json` takes back, defaults left out."""
        value: dict[str, Any] = {"sampling": json.loads(self.sampling.to_json()), "stream": self.stream}
        if scheduling := self.scheduling.to_mapping():
            value["scheduling"] = scheduling
        if task := self.task.to_mapping():
            value["task"] = task
        return json.dumps(value, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "RequestOptions":
        """Read the text; `scheduling` and `task` may be left out.

        Raises:
            InvalidRequest: it is laid out otherwise, or an option is out of its limits.
        """
        value = json_object("request_options", text)
        sampling: Any = value.get("sampling")
        stream: Any = value.get("stream")
        scheduling, task = value.get("scheduling", {}), value.get("task", {})
        are_objects = all(isinstance(part, dict) for part in (sampling, scheduling, task))
        is_complete = are_objects and isinstance(stream, bool)
        if not is_complete or value.keys() - {"sampling", "scheduling", "task", "stream"}:
            raise InvalidRequest(f"request_options must be {LAYOUT}")
        return cls(
            sampling=SamplingParams.from_mapping(sampling),
            scheduling=SchedulingParams.from_mapping(scheduling),
            stream=stream,
            task=TaskParams.from_mapping(task),
        )


def json_object(name: str, text: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InvalidRequest: the text is something else; `name` says what it was.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{name} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidRequest(f"{name} must be a JSON object")
    return value
