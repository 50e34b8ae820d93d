"""Two hundred hostile bodies of allowed sizes, for a service that may use 2 GiB: it lives, and answers its probes."""

import base64
import hashlib
import http.client
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from service_process import ServiceProcess

from evalsvc.api.middleware.bodies import MAX_BODY, MAX_IMPORT

GIBIBYTE = 1 << 30

BODIES, SENDERS = 200, 8

JSON, YAML = "application/json", "application/yaml"
PART, FORM = "application/offset+octet-stream", "application/x-www-form-urlencoded"
FORMS = ("/sign-in", "/sign-out", "/evaluations/1/x")


@dataclass(frozen=True)
class Attack:
    name: str
    method: str
    path: str
    body: bytes
    kind: str = JSON
    headers: dict[str, str] = field(default_factory=dict)


def values(one: bytes, size: int) -> bytes:
    """A JSON list of one value, again and again, of about `size` bytes."""
    return b"[" + b",".join([one] * (size // (len(one) + 1))) + b"]"


def pairs(value: bytes, size: int) -> bytes:
    number = size // (len(value) + 10)
    return b"{" + b",".join(b'"%06d":%s' % (index, value) for index in range(number)) + b"}"


def jsons(size: int) -> dict[str, bytes]:
    """What is dear to parse, check or name, as JSON of about `size` bytes."""
    return {
        "lists": values(b"[]", size),
        "lists below the number": values(b"[]", 140_000),
        "objects": values(b"{}", size),
        "numbers": values(b"0", size),
        "numbers below the number": values(b"0.123456789", min(size, 1_000_000)),
        "texts": values(b'"a"', size),
        "pairs": pairs(b"[]", size),
        "pairs below the number": pairs(b"0", 700_000),
        "depth": b"[" * min(size // 2, 90_000),
        "one text": b'"' + b"a" * (size - 2) + b'"',
        "escapes": b'"' + b"\\u0041" * (size // 6 - 1) + b'"',
        "surrogates": b'"' + b"\\ud800" * (size // 6 - 1) + b'"',
        "digits": b"9" * (size - 10),
        "spaces": b" " * size,
        "no end": b'{"a": ' * (size // 6),
    }


def fields(path: str, method: str, fits: bytes, *names: str) -> Iterator[Attack]:
    """Each field of a body, with each of the values."""
    for name in names:
        for what, value in jsons(MAX_BODY - 200).items():
            yield Attack(f"{name}: {what}", method, path, b'{%s"%s":%s}' % (fits, name.encode(), value))


def imports() -> Iterator[Attack]:
    path, size = "/v1/runs/r/metrics", MAX_IMPORT - 200
    head = b'{"source":"x","series":[{"metric":"a","step":[1],"value":[1],'
    for what, value in jsons(size).items():
        yield Attack(f"import: {what}", "POST", path, value)
        yield Attack(f"import of series: {what}", "POST", path, b'{"source":"x","series":%s}' % value)
        yield Attack(f"import of fields: {what}", "POST", path, head + b'"unknown":%s}]}' % value)
        for column in (b"value", b"step", b"n", b"stderr", b"protocol"):
            body = b'{"source":"x","series":[{"metric":"a","step":[1],"value":[1],"%s":%s}]}' % (column, value)
            yield Attack(f"import of {column.decode()}: {what}", "POST", path, body)
    steps = json.dumps(list(range(240_000))).encode()
    body = b'{"source":"x","series":[{"metric":"a","step":%s,"value":%s}]}' % (steps, values(b"0.5", 960_000))
    for run in "abc":
        yield Attack("a large import", "POST", f"/v1/runs/{run}/metrics", body)


def suites() -> Iterator[Attack]:
    marks = ("[", "{", "[{", "- ", "? ", "a: ", "&a ", "!a ", "'", "#\n", "---\n", "%TAG ! tag:a\n", "- a\n")
    texts = [mark * (130_000 // len(mark)) for mark in marks]
    texts.append("\n".join(f"a{at}: &a{at} [{', '.join([f'*a{at - 1}'] * 9) if at else 1}]" for at in range(40)))
    texts.append("a: &a {b: 1}\nc: {" + "<<: *a, " * 9_000 + "}")
    texts.append("\n".join(f"- &a{at} b" for at in range(10_000)))
    texts += ["a: '" + "\n" * 130_000 + "'", "a: " + "1_" * 65_000, "a: " + "1:" * 65_000 + "1"]
    texts.append('a: "' + "\\x41" * 32_000 + '"')
    for text in texts:
        yield Attack(f"suite of {text[:12]!r}", "PUT", "/v1/suites/s", text.encode(), YAML)
    for what, value in jsons(MAX_BODY - 200).items():
        for key in (b"tasks", b"headline"):
            body = b'{"tasks":[{"kind":"loss"}],"%s":%s}' % (key, value)
            yield Attack(f"suite {key.decode()}: {what}", "PUT", "/v1/suites/s", body)
        body = b'{"tasks":[{"kind":"completions","prompts":%s}]}' % value
        yield Attack(f"suite prompts: {what}", "PUT", "/v1/suites/s", body)


def uploads() -> Iterator[Attack]:
    def digest(content: bytes) -> str:
        return base64.b64encode(hashlib.sha256(content).hexdigest().encode()).decode()

    named = f"sha256 {digest(b'a name')},filename {base64.b64encode(b'a' * 2000).decode()}"
    keys = ",".join(f"k{index} YQ==" for index in range(600))
    for what, metadata in {"a name": named, "keys": keys, "too long": "a" * 30_000}.items():
        for length in ("1", "9007199254740991", "100000000"):
            headers = {"Upload-Length": length, "Upload-Metadata": metadata}
            yield Attack(f"upload of {what}", "POST", "/v1/uploads", b"", PART, headers)
    for number in range(16):
        headers = {"Upload-Length": "50000000", "Upload-Metadata": f"sha256 {digest(bytes(number))}"}
        yield Attack("an upload of nothing", "POST", "/v1/uploads", b"", PART, headers)
    for size in (1, 10_000_000, 50_000_000):
        for checksum in ({}, {"Upload-Checksum": f"sha1 {base64.b64encode(bytes(20)).decode()}"}):
            headers = {"Upload-Offset": "0", **checksum}
            yield Attack(f"a part of {size}", "PATCH", "/v1/uploads/{upload}", b"x" * size, PART, headers)


def attacks(weights: Path) -> list[Attack]:
    post = b'"run":"r","step":1,"uri":%s,' % json.dumps(str(weights)).encode()
    return [
        *imports(),
        *fields("/v1/checkpoints", "POST", post, "suites", "tags", "model", "layout", "variant", "zzz"),
        *fields("/v1/checkpoints", "POST", b"", "uri"),
        *fields("/v1/runs/r/plan", "PUT", b"", "suites", "when_behind"),
        *fields("/v1/runs/r/retention", "PUT", b"", "keep"),
        *fields("/v1/runs/r/base", "PUT", b'"step":1,', "run"),
        *fields("/v1/runs/r", "PATCH", b"", "name"),
        *fields("/v1/evaluations", "POST", b'"suite":"loss",', "checkpoint"),
        *fields("/v1/prune", "POST", b"", "run"),
        *suites(),
        *uploads(),
        *(Attack("a form", "POST", path, b"a=b&" * 250_000, FORM) for path in FORMS),
    ]


@pytest.mark.usefixtures("child_process")
def test_two_hundred_hostile_bodies(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 MB of empty lists took 8.5 GB, and 1 MB of them stopped the probes for 2.4 s.

    The limit is that of the addresses of the process (RLIMIT_AS), which is stricter than one of its resident memory: a
    service beyond the limit gets no more memory, and answers 500 or dies.
    """
    monkeypatch.setenv("EVALSVC_UPLOAD_BYTES", "100000000")
    service = ServiceProcess(tmp_path / "data", "--scheduler", "tls://127.0.0.1:1").start()
    try:
        assert service.process is not None
        process = psutil.Process(service.process.pid)
        process.rlimit(psutil.RLIMIT_AS, (2 * GIBIBYTE, 2 * GIBIBYTE))
        every = attacks(weights)
        chosen = random.Random(0).sample(every, BODIES)
        headers = next(item.headers for item in every if "nothing" in item.name)
        created = service.ask("POST", "/v1/uploads", headers=headers)
        statuses, slowest = send_all(service.url, chosen, created.headers["location"].rpartition("/")[2])
        peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())[1]) * 1024
        assert service.process.poll() is None, service.log.read_text()[-2000:]
        assert service.ask("GET", "/healthz").status_code == 200
        assert {status for status in statuses if status >= 500} <= {507}, service.log.read_text()[-2000:]
        assert slowest < 1
        assert peak < 2 * GIBIBYTE
    finally:
        service.stop()


def send_all(url: str, chosen: list[Attack], upload: str) -> tuple[Counter[int], float]:
    """Send the attacks from several connections at the same time; return the statuses, and the slowest probe."""
    place, ended, delays = str(urlsplit(url).netloc), threading.Event(), [0.0]

    def probe() -> None:
        while not ended.wait(0.02):
            begun = time.perf_counter()
            with closing(http.client.HTTPConnection(place, timeout=60)) as connection:
                connection.request("GET", "/healthz")
                assert connection.getresponse().status == 200
            delays.append(time.perf_counter() - begun)

    def send(attack: Attack) -> int:
        while (status := send_once(attack)) == 429:  # until the service has taken each of them
            time.sleep(0.2)
        return status

    def send_once(attack: Attack) -> int:
        headers = {"Content-Type": attack.kind, **attack.headers}
        connection = http.client.HTTPConnection(place, timeout=60)
        with closing(connection), suppress(BrokenPipeError, ConnectionResetError):
            connection.request(attack.method, attack.path.format(upload=upload), attack.body, headers)
            return connection.getresponse().status
        return 0  # the service answers before it has read all, and closes the connection

    with ThreadPoolExecutor(SENDERS + 1) as pool:
        prober = pool.submit(probe)
        try:
            statuses = Counter(pool.map(send, chosen))
        finally:
            ended.set()
    prober.result()
    return statuses, max(delays)
