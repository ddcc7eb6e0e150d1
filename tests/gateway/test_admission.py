"""Keys, buckets and admission on their own, with a clock of the test's."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gateway.call import parse_call
from gateway.safety.admission import Admission, Ticket
from gateway.safety.bucket import Bucket
from gateway.safety.config import SafetyConfig, TenantConfig
from gateway.safety.estimate import estimate_tokens
from gateway.safety.guard import Denied, Guard
from gateway.safety.keys import find_tenant, parse_keys, tenants_by_digest
from gateway.safety.tenant import Tenant, make_tenant
from gateway.status import Code
from tests.gateway.protos import pb
from tests.gateway.wires import REQUEST

KEYS = "# comment\n\n" + "".join(f"{n} sha256:{hashlib.sha256(b'key of ' + n.encode()).hexdigest()}\n" for n in "ab")


def tenant(name: str = "a", **fields: object) -> Tenant:
    return make_tenant(TenantConfig.model_validate({"name": name} | fields), 0.0)


def limit(what: str, amount: int, per_s: float = 1.0, **more: object) -> dict[str, object]:
    return {"what": what, "amount": amount, "per_s": per_s} | more


def test_a_bucket_is_full_at_first_and_refills_at_its_rate() -> None:
    bucket = Bucket(capacity=10, rate=2, at=0.0)
    bucket.take(10, 0.0)
    assert bucket.wait(4, 0.0) == 2.0
    assert bucket.wait(4, 1.5) == 0.5
    assert bucket.wait(4, 2.0) == 0.0
    assert bucket.wait(10, 100.0) == 0.0
    assert bucket.wait(11, 100.0) == float("inf")


def test_a_debt_is_paid_before_anything_passes() -> None:
    bucket = Bucket(capacity=10, rate=1, at=0.0)
    bucket.take(25, 0.0)
    assert bucket.wait(1, 0.0) == 16.0
    bucket.take(-20, 0.0)
    assert bucket.wait(1, 0.0) == 0.0


def test_a_key_belongs_to_its_tenant_and_an_unknown_one_to_nobody() -> None:
    keys = tenants_by_digest(parse_keys(KEYS))
    assert [find_tenant(keys, key) for key in (b"key of a", b"key of b", b"key of c", b"")] == ["a", "b", None, None]


def test_a_key_of_two_tenants_is_refused() -> None:
    digest = "0" * 64
    with pytest.raises(ValueError, match="a and b have the same key"):
        tenants_by_digest(parse_keys(f"a sha256:{digest}\na sha256:{digest}\nb sha256:{digest}"))


@pytest.mark.parametrize("line", ["a", "a sha256:12", "a key", "a b sha256:" + "0" * 64, "a sha256:" + "A" * 64])
def test_a_malformed_line_of_keys_is_refused_by_number(line: str) -> None:
    with pytest.raises(ValueError, match="line 2"):
        parse_keys("# keys\n" + line)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"tenants": [{"name": "a"}]}, "nobody could ask"),
        ({"tenants": [{"name": "a"}, {"name": "a"}], "anonymous_tenant": "a"}, "same name"),
        ({"anonymous_tenant": "z"}, "no tenant z"),
        ({"keys_file": "/nonexistent"}, "cannot be read"),
        ({"keys_env": "SCALELLM_NO_SUCH_VARIABLE"}, "the environment has no SCALELLM_NO_SUCH_VARIABLE"),
        ({"max_in_flight": 3}, "needs tenants"),
        ({"tenants": [{"name": "a b"}]}, "pattern"),
        ({"tenants": [{"name": "a", "limits": [{"what": "bytes", "amount": 1}]}]}, "requests"),
    ],
)
def test_what_does_not_fit_together_is_refused(fields: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        SafetyConfig.model_validate(fields)


def make_guard(tmp_path: Path, **fields: object) -> Guard:
    file = tmp_path / "keys"
    file.write_text(KEYS)
    tenants = [{"name": "a", "max_request_bytes": 7}, {"name": "b"}]
    return Guard(SafetyConfig.model_validate({"tenants": tenants, "keys_file": file} | fields), 0.0)


def headers(method: str, *more: tuple[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
    path = b"/inference.GRPCInferenceService/" + method.encode()
    return (*((name, path if name == b":path" else value) for name, value in REQUEST), *more)


def test_a_key_names_the_tenant_and_goes_no_further(tmp_path: Path) -> None:
    guard = make_guard(tmp_path)
    for header in (
        (b"authorization", b"Bearer key of a"),
        (b"authorization", b"bearer  key of a"),
        (b"x-api-key", b"key of a"),
    ):
        call = guard.open(parse_call(headers("ModelStreamInfer", header, (b"x-other", b"1"))))
        assert call.tenant is guard.tenants["a"]
        assert call.headers[-1] == (b"x-other", b"1")
        assert b"key of a" not in b"".join(value for _, value in call.headers)
        assert (call.max_request_bytes(100), call.max_request_bytes(5)) == (7, 5)


def test_without_a_known_key_only_health_is_told(tmp_path: Path) -> None:
    guard = make_guard(tmp_path)
    for more in ((), ((b"authorization", b"Bearer no"),), ((b"authorization", b"Basic key of a"),)):
        with pytest.raises(Denied, match="key") as denied:
            guard.open(parse_call(headers("ModelMetadata", *more)))
        assert denied.value.failure.code is Code.UNAUTHENTICATED
    assert guard.open(parse_call(headers("ServerReady"))).tenant is None


def test_an_anonymous_tenant_is_who_gives_no_key_but_not_who_gives_a_wrong_one(tmp_path: Path) -> None:
    guard = make_guard(tmp_path, anonymous_tenant="b")
    assert guard.open(parse_call(headers("ModelMetadata"))).tenant is guard.tenants["b"]
    with pytest.raises(Denied, match="not known"):
        guard.open(parse_call(headers("ModelMetadata", (b"x-api-key", b"wrong"))))


@pytest.mark.parametrize("method", ["RepositoryModelLoad", "LogSettings", "CudaSharedMemoryStatus", "Invented"])
def test_management_is_closed_unless_allowed(method: str) -> None:
    with pytest.raises(Denied, match=method) as denied:
        Guard(SafetyConfig(), 0.0).open(parse_call(headers(method)))
    assert denied.value.failure.code is Code.PERMISSION_DENIED
    Guard(SafetyConfig(allow_management=True), 0.0).open(parse_call(headers(method)))


def test_tokens_are_estimated_from_what_a_request_says() -> None:
    def estimate(**tensors: bytes) -> int:
        request = pb.ModelInferRequest(model_name="llm")
        for name, raw in tensors.items():
            request.inputs.add(name=name, datatype="BYTES", shape=[1])
            request.raw_input_contents.append(raw)
        return estimate_tokens(request.SerializeToString(), 100)

    assert estimate(text_input=b"\x08\0\0\0abcdefgh") == 3 + 100
    assert estimate(input_ids=bytes(4 * 9), max_tokens=b"\x05\0\0\0") == 9 + 5
    options = b'{"max_tokens": 7, "n": 2}'
    assert estimate(sampling_parameters=len(options).to_bytes(4, "little") + options) == 14
    assert estimate(sampling_parameters=b"nonsense") == 100
    assert estimate_tokens(b"\xff", 100) == 100


def test_tokens_of_typed_contents_count_as_raw_ones_do() -> None:
    request = pb.ModelInferRequest(model_name="llm")
    text = request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    text.contents.bytes_contents.append(b"12345678")
    limit_tensor = request.inputs.add(name="max_tokens", datatype="INT32", shape=[1])
    limit_tensor.contents.int_contents.append(300)
    assert estimate_tokens(request.SerializeToString(), 100) == 3 + 300


def enter(admission: Admission, who: Tenant, now: float, tokens: int = 0) -> Ticket:
    ticket = Ticket(who, tokens, now)
    assert admission.enter(ticket, now) is None
    return ticket


def test_who_exceeds_a_rate_is_told_when_to_come_back() -> None:
    admission = Admission(None, queue_size=10, max_wait=0.1)
    who = tenant(limits=[limit("requests", 2, per_s=10)])
    assert [enter(admission, who, 0.0).admitted_at for _ in range(2)] == [0.0, 0.0]
    refusal = admission.enter(Ticket(who, 0, 1.0), 1.0)
    assert refusal is not None
    assert refusal.retry_after == pytest.approx(4.0)
    assert "2 requests in 10 s" in refusal.message
    assert admission.enter(Ticket(who, 0, 5.0), 5.0) is None


def test_a_short_wait_for_a_rate_is_waited_out() -> None:
    admission = Admission(None, queue_size=10, max_wait=1.0)
    who = tenant(limits=[limit("requests", 1, per_s=0.5)])
    enter(admission, who, 0.0)
    waiting = enter(admission, who, 0.1)
    assert waiting.admitted_at is None
    assert admission.next_at(0.1) == pytest.approx(0.5)
    assert admission.pump(0.2) == []
    assert admission.pump(0.5) == [(waiting, None)]


def test_tokens_are_charged_by_estimate_and_settled_by_use() -> None:
    admission = Admission(None, queue_size=10, max_wait=0.0)
    who = tenant(limits=[limit("tokens", 100, per_s=100)])
    first = enter(admission, who, 0.0, tokens=80)
    assert admission.enter(Ticket(who, 80, 0.0), 0.0) is not None
    admission.leave(first, 10, 0.0)
    second = enter(admission, who, 0.0, tokens=80)
    admission.leave(second, 190, 0.0)
    refusal = admission.enter(Ticket(who, 1, 0.0), 0.0)
    assert refusal is not None
    assert refusal.retry_after == pytest.approx(101.0)


def test_a_request_beyond_the_limit_itself_is_never_let_in() -> None:
    refusal = Admission(None, 10, 1.0).enter(Ticket(tenant(limits=[limit("tokens", 100)]), 101, 0.0), 0.0)
    assert refusal is not None
    assert refusal.retry_after is None
    assert "101 tokens" in refusal.message


def test_a_free_slot_goes_to_the_lower_class_then_to_who_came_first() -> None:
    admission = Admission(1, queue_size=10, max_wait=9.0)
    low, high = tenant("low", priority_class=2), tenant("high", priority_class=1)
    running = enter(admission, low, 0.0)
    first, second, urgent = enter(admission, low, 0.1), enter(admission, low, 0.2), enter(admission, high, 0.3)
    order = []
    for now in (1.0, 2.0, 3.0):
        admission.leave(running, 0, now)
        ((running, refusal),) = admission.pump(now)
        assert refusal is None
        order.append(running)
    assert order == [urgent, first, second]


def test_one_tenants_full_slots_do_not_hold_up_another() -> None:
    admission = Admission(None, queue_size=10, max_wait=9.0)
    narrow, wide = tenant("narrow", max_concurrent=1), tenant("wide")
    enter(admission, narrow, 0.0)
    assert enter(admission, narrow, 0.0).admitted_at is None
    assert enter(admission, wide, 0.0).admitted_at == 0.0


def test_who_finds_its_tenants_slots_taken_is_told_by_how_long_that_tenants_requests_take() -> None:
    admission = Admission(None, queue_size=0, max_wait=9.0)
    slow, fast = tenant("slow", max_concurrent=2), tenant("fast", max_concurrent=2)
    for who, seconds in ((slow, 8.0), (fast, 0.1)):
        admission.leave(enter(admission, who, 0.0), 0, seconds)
    told = []
    for who in (slow, fast):
        for _ in range(2):
            enter(admission, who, 9.0)
        refusal = admission.enter(Ticket(who, 0, 9.0), 9.0)
        assert refusal is not None
        told.append(refusal.retry_after)
    assert told == pytest.approx([4.0, 0.05])


def test_a_full_queue_refuses_and_a_long_wait_ends() -> None:
    admission = Admission(1, queue_size=1, max_wait=2.0)
    who = tenant()
    enter(admission, who, 0.0)
    waiting = enter(admission, who, 1.0)
    refusal = admission.enter(Ticket(who, 0, 1.5), 1.5)
    assert refusal is not None
    assert refusal.retry_after is not None
    assert admission.next_at(1.5) == 3.0
    ((late, late_refusal),) = admission.pump(3.0)
    assert late is waiting
    assert late_refusal is not None


class AdmissionMachine(RuleBasedStateMachine):
    """Any order of arrivals, ends and waiting keeps the invariants and leaves nobody behind."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.admission = Admission(3, queue_size=4, max_wait=2.0)
        self.tenants = [
            tenant("a", max_concurrent=2, limits=[limit("requests", 5), limit("tokens", 50)]),
            tenant("b", priority_class=1, limits=[limit("tokens", 20, burst=40)]),
            tenant("c"),
        ]
        self.open: list[Ticket] = []

    @rule(which=st.integers(0, 2), tokens=st.integers(0, 60))
    def arrive(self, which: int, tokens: int) -> None:
        ticket = Ticket(self.tenants[which], tokens, self.now)
        if self.admission.enter(ticket, self.now) is None:
            self.open.append(ticket)

    @rule(index=st.integers(0, 10), used=st.integers(0, 100))
    def leave(self, index: int, used: int) -> None:
        if self.open:
            self.admission.leave(self.open.pop(index % len(self.open)), used, self.now)

    @rule(seconds=st.floats(0, 3))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for ticket, refusal in self.admission.pump(self.now):
            assert ticket in self.open
            assert (ticket.admitted_at is None) == (refusal is not None)
            if refusal is not None:
                self.open.remove(ticket)
        assert all(self.now < ticket.arrived_at + 2.0 for ticket in self.admission.waiting)

    @invariant()
    def holds(self) -> None:
        self.admission.check()
        admitted = [ticket for ticket in self.open if ticket.admitted_at is not None]
        assert self.admission.num_in_flight == len(admitted)
        assert {id(t) for t in self.open} - {id(t) for t in admitted} == {id(t) for t in self.admission.waiting}
        for who in self.tenants:
            assert who.num_in_flight == sum(ticket.tenant is who for ticket in admitted)
            assert who.config.max_concurrent is None or who.num_in_flight <= who.config.max_concurrent
        if self.admission.waiting:
            assert self.admission.next_at(self.now) is not None


AdmissionMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAdmissionMachine = AdmissionMachine.TestCase
