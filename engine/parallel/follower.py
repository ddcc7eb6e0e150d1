"""Computing the steps that rank 0 tells, with its adapters.

Knows a runner and the adapters' folder, which lies at the same path on all machines. Does not know links. Rank 0
decides which adapters there are; one that is new here is loaded within the step that first needs it, for which all
ranks wait.

Invariant: beyond those of the step, the adapters here stay within the number and the bytes that the configuration says;
the least recently used go first.
"""

from collections import OrderedDict

from engine.config import EngineConfig
from engine.errors import RanksFailed
from engine.lora.adapter_file import inspect_adapter, load_adapter
from engine.lora.lora_linear import LoadedAdapter
from engine.model_runner import ModelRunner
from engine.parallel.step_message import AdapterName, decode_message


class Follower:
    """A rank other than rank 0, once it has loaded."""

    def __init__(self, config: EngineConfig, runner: ModelRunner) -> None:
        """Start without adapters."""
        self._config, self._runner = config, runner
        self._adapters: OrderedDict[AdapterName, LoadedAdapter] = OrderedDict()  # least recently used first

    def take(self, message: bytes) -> None:
        """Compute the step, or load the adapters, of which rank 0 tells.

        Raises:
            RanksFailed: this rank cannot, and now it is out of step.
            ModelError: an adapter cannot be loaded.
        """
        told = decode_message(message)
        if isinstance(told, list):
            for each in told:
                self._find(each)
            self._runner.meet_ranks()
            return
        adapters = [None if each is None else self._find(each) for each in told.adapters]
        self._drop(keep=len({each for each in told.adapters if each is not None}))
        self._runner.adapter_rows.assign(adapters, told.batch, self._runner.link)
        self._runner.compute(told.batch, told.graph_shape)

    @property
    def num_adapters(self) -> int:
        """Adapters in memory."""
        return len(self._adapters)

    def _find(self, wanted: AdapterName) -> LoadedAdapter:
        if wanted not in self._adapters:
            self._adapters[wanted] = self._load(wanted)
        self._adapters.move_to_end(wanted)
        return self._adapters[wanted]

    def _load(self, wanted: AdapterName) -> LoadedAdapter:
        assert self._config.adapters is not None
        path, targets = self._config.adapters / wanted.name, self._runner.adapter_targets
        loaded = load_adapter(
            inspect_adapter(wanted.name, path, targets, self._config.max_lora_rank), self._runner.placement
        )
        if loaded.digest != wanted.digest:
            raise RanksFailed(f"{path} is not what rank 0 has loaded; has it been changed?")
        return loaded

    def _drop(self, keep: int) -> None:
        """Drop what is too much, but for the last `keep`."""
        budget = int(self._config.adapter_gib * 2**30)
        while len(self._adapters) > keep and (
            len(self._adapters) > self._config.max_adapters
            or sum(each.num_bytes for each in self._adapters.values()) > budget
        ):
            self._adapters.popitem(last=False)
