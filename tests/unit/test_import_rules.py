"""Rooms import only downwards, and pure files stay free of torch."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("kernels", "engine", "model_repository", "gateway", "scripts", "tests")
MAY_IMPORT = {
    "kernels": {"kernels"},
    "engine": {"engine", "kernels"},
    "model_repository": {"engine", "kernels"},
    "gateway": {"gateway"},
}
NEVER = {"gateway": {"torch", "transformers", "numba"}}
PURE = [
    *(f"engine/{name}.py" for name in (
        "config", "errors", "sampling_params", "outputs", "sequence", "block_pool", "prefix_cache", "kv_manager",
        "scheduler", "stopping", "messages", "request_check", "client", "responder", "eviction_order", "sliding_window",
        "response_budget",
        "scheduling_params", "step_plan", "ordered_sequences", "ageing", "tenant_shares", "capacity_policy",
        "waiting_queue", "deadlines", "request_options", "scheduling_inputs",
        "task_params", "pooling", "adapter_commands", "input_arrays", "request_inputs",
        "option_checks", "guided_options", "logit_rules", "token_counts", "random_numbers", "top_tokens",
        "reply_stream", "sequence_groups", "sequence_factory", "guides",
        "speculation", "ngram_lookup", "sequence_output", "sampling_inputs", "dummy_steps", "step_shapes",
    )),
    *(f"engine/lora/{name}.py" for name in ("adapter_config", "adapter_pool")),
    *(f"engine/parallel/{name}.py" for name in (
        "config", "shares", "placement", "gpu_seats", "links", "messages", "mesh", "exchange_rule",
    )),
    "engine/quantization/config.py",
    *(f"engine/models/{name}.py" for name in ("config", "dialects", "moe_config", "rope_config")),
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "engine" / "text").glob("*.py")),
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "scripts" / "planner").glob("*.py")),
]  # fmt: skip


def imported_modules(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


def files_of(room: str) -> list[Path]:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files, f"{room} holds no Python files"
    return files


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_lies_below_it(room: str) -> None:
    forbidden = set(ROOMS) - MAY_IMPORT[room] | NEVER.get(room, set())
    for path in files_of(room):
        tops = {name.split(".")[0] for name in imported_modules(path)}
        assert not tops & forbidden, f"{path.relative_to(ROOT)} imports {sorted(tops & forbidden)}"


@pytest.mark.parametrize("name", PURE)
def test_a_pure_file_reaches_no_torch(name: str) -> None:
    seen: set[Path] = set()
    todo = [ROOT / name]
    while todo:
        path = todo.pop()
        seen.add(path)
        for module in imported_modules(path):
            assert module.split(".")[0] not in {"torch", "numba", "transformers"}, (
                f"{name} reaches {module} via {path.name}"
            )
            base = ROOT / Path(*module.split("."))
            todo += [p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file() and p not in seen]


def test_kernels_is_not_mistaken_for_the_package_of_that_name() -> None:
    tree = ast.parse((ROOT / "kernels" / "__init__.py").read_text(encoding="utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    import kernels

    major, minor = (int(part) for part in kernels.__version__.split(".")[:2])
    assert (major, minor) < (0, 9)
