"""Settings, errors and their codes."""

from pathlib import Path

import pytest

import engine.errors
from engine.capacity_policy import POLICIES
from engine.config import SCHEDULER_POLICIES, EngineConfig
from engine.errors import GRPC_CODES, EngineError, InvalidRequest, ModelError, PromptTooLong, QueueFull, grpc_code
from engine.wire_errors import triton_error


def test_the_environment_overrides_defaults() -> None:
    env = {"SCALELLM_MODEL": "/some/model", "SCALELLM_MAX_NUM_SEQS": "7", "SCALELLM_ENABLE_PREFIX_CACHING": "false"}
    config = EngineConfig.from_env(env, max_num_seqs=9, kv_cache_gib=0.5)
    assert (config.model, config.max_num_seqs, config.kv_cache_gib) == (Path("/some/model"), 7, 0.5)
    assert not config.enable_prefix_caching


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"SCALELLM_MAX_NUM_SEQS": "many"}, "SCALELLM_MAX_NUM_SEQS must be a int, got 'many'"),
        ({"SCALELLM_ENABLE_PREFIX_CACHING": "maybe"}, "SCALELLM_ENABLE_PREFIX_CACHING must be a bool"),
        ({"SCALELLM_BLOCK_SIZE": "0"}, "block_size must be a finite number of at least 1, got 0"),
        ({"SCALELLM_AGEING_SECONDS": "inf"}, "ageing_seconds must be a finite number of at least 0, got inf"),
        ({"SCALELLM_SCHEDULER_POLICY": "fifo"}, "must be one of max_utilization, guaranteed_no_evict, got 'fifo'"),
        ({"SCALELLM_ADAPTERS": "/no/such/folder"}, "adapters must be a folder, got /no/such/folder"),
        ({"SCALELLM_MAX_ADAPTERS": "0"}, "max_adapters must be a finite number of at least 1, got 0"),
        ({"SCALELLM_TENSOR_PARALLEL": "0"}, "tensor_parallel must be at least 1, got 0"),
        ({"SCALELLM_EXPERT_PARALLEL": "-2"}, "expert_parallel must be at least 1, got -2"),
        ({"SCALELLM_RANK_EXECUTOR": "slurm"}, "rank_executor must be one of .*, got 'slurm'"),
        (
            {"SCALELLM_RANK_EXECUTOR": "external", "SCALELLM_RANK_ADDRESS": "here"},
            "needs a rank_address host:port, got 'here'",
        ),
        ({"SCALELLM_RANK_EXECUTOR": "external", "SCALELLM_RANK_ADDRESS": "here:1"}, "needs a rank_key"),
        ({"SCALELLM_RANK_KEY": "secret"}, "rank_key must be 64 hexadecimal digits"),
        ({"SCALELLM_SPECULATION": "fast"}, "speculation must be one of off, ngram, draft, got 'fast'"),
        ({"SCALELLM_SPECULATION": "draft"}, "speculation 'draft' needs a draft_model"),
        ({"SCALELLM_NUM_DRAFT_TOKENS": "17"}, "num_draft_tokens must be between 1 and 16, got 17"),
        ({"SCALELLM_MAX_NUM_BATCHED_TOKENS": "5"}, r"max_num_batched_tokens \(5\) must be at least max_num_seqs"),
    ],
)
def test_a_bad_setting_is_named(env: dict[str, str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        EngineConfig.from_env(env)


def test_every_error_has_one_grpc_code_of_its_own() -> None:
    kinds = [k for k in vars(engine.errors).values() if isinstance(k, type) and issubclass(k, EngineError)]
    assert set(kinds) == set(GRPC_CODES)
    assert grpc_code(PromptTooLong(6, 5)) == "INVALID_ARGUMENT"
    assert grpc_code(QueueFull("3 requests are waiting", 3)) == "RESOURCE_EXHAUSTED"


def test_an_error_that_is_no_unicode_is_said_with_escapes() -> None:
    assert triton_error(InvalidRequest("unknown role \ud800")) == ("INVALID_ARG", "unknown role \\ud800")


def test_a_relative_model_folder_means_the_same_to_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = EngineConfig.from_env({"SCALELLM_MODEL": "models/mine", "SCALELLM_DRAFT_MODEL": "small"})
    assert (config.model, config.draft_model) == (tmp_path / "models" / "mine", tmp_path / "small")


def test_each_policy_that_can_be_configured_exists() -> None:
    assert set(POLICIES) == set(SCHEDULER_POLICIES)
