"""`pocketvlm serve` with several models: names, budget, crashes, and answers while models come and go."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from pocketvlm import LoadOptions, RequestError
from pocketvlm.cli.served_models import served_models
from pocketvlm.errors import BundleError, ModelError
from pocketvlm.files.locate import MODELS, locate
from pocketvlm.plan.budget import share
from server.conftest import COMMAND, Server, Start, data_uri, look, refused, start, stop
from server.test_operations import HI, Running, children_of
from store import Store
from waiting import wait_until

TWO = ("--model", "a=iota", "--model", "b=iota", "--parallel", "2")
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/task").is_dir(), reason="child processes are found by Linux's /proc"
)


def engines_of(server: Server) -> set[int]:
    return {
        pid
        for pid in children_of(server.process.pid)
        if b"engine.process.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    }


def is_alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def of_models(server: Server, metric: str) -> dict[str, float]:
    return {
        sample.labels["model"]: sample.value
        for family in text_string_to_metric_families(server.get("/metrics").text)
        for sample in family.samples
        if sample.name == f"pocketvlm_model_{metric}"
    }


def ask(server: Server, model: str, **fields: Any) -> str:
    answer = server.ask("hi", model=model, **{"max_tokens": 4, **fields})
    assert answer["model"] == model
    text: str = answer["choices"][0]["message"]["content"]
    return text


@pytest.fixture(scope="module")
def two() -> Iterator[Server]:
    running = start(*TWO, "--memory", "2G")
    yield running
    assert stop(running) == 0


# ---- what clients see


def test_models_are_listed_before_they_are_loaded(two: Server) -> None:
    cards = {card["id"]: card for card in two.get("/v1/models").json()["data"]}
    assert list(cards) == ["a", "b"]
    assert cards["a"]["status"] == {"value": "loaded"}
    for card in cards.values():
        assert card["max_model_len"] == card["context_length"] == card["meta"]["n_ctx_train"] == 2048
        assert card["architecture"] == {"input_modalities": ["text", "image"], "output_modalities": ["text"]}
        assert card["capabilities"] == ["completion", "vision", "tools"]
        assert card["meta"]["n_params"] == 2_539_520
    assert two.get("/v1/models/b").json()["max_model_len"] == 2048
    refused(two.get("/v1/models/c"), 404, code="model_not_found")
    assert two.told.startswith("pocketvlm serves a, b at ")


def test_a_request_names_its_model(two: Server, sample_uri: str) -> None:
    assert two.ask("hi", max_tokens=1)["model"] == "a"
    requests.post(f"{two.url}/api/chat", json={"model": "b", "keep_alive": 0}, timeout=60)  # another test's
    wait_until(lambda: two.health()["models"] == {"ready": 1, "unloaded": 1})
    before = of_models(two, "loads_total")
    answer = two.ask(look({"url": sample_uri}, "What number is printed?"), model="b")
    assert answer["model"] == "b"
    assert answer["timings"]["load_ms"] > 0
    assert two.ask("hi", model="b", max_tokens=1)["timings"]["load_ms"] == 0
    message = refused(two.post({"messages": HI, "model": "c"}), 404, "model", "model_not_found")
    assert "a or b" in message
    assert two.health()["models"] == {"ready": 2}
    assert of_models(two, "loaded") == {"a": 1, "b": 1}
    assert of_models(two, "loads_total") == {"a": 0, "b": before["b"] + 1}


def test_pictures_are_shared(two: Server, sample_png: Path) -> None:
    handle = requests.post(f"{two.base}/images", data=sample_png.read_bytes(), timeout=60).json()["id"]
    answers = {two.ask(look({"url": handle}), model=name)["choices"][0]["message"]["content"] for name in "ab"}
    assert len(answers) == 1


# ---- what goes wrong


@needs_proc
def test_a_crash_leaves_the_other_models(serve: Start) -> None:
    own = serve(*TWO, "--memory", "2G")
    first = engines_of(own)
    ask(own, "b")
    [second] = engines_of(own) - first
    body = {"messages": HI, "model": "a", "stream": True, "ignore_eos": True, "max_tokens": 1500}
    with closing(Running(own, body)) as running:
        os.kill(second, signal.SIGKILL)
        # A request that comes before the death is noticed gets it as an error.
        wait_until(lambda: own.post({"messages": HI, "model": "b", "max_tokens": 1}).status_code == 200)
        assert ask(own, "b") == ask(own, "a")
        assert running.last() == b"data: [DONE]"
    wait_until(lambda: own.health() == {"status": "ok", "running": 0, "waiting": 0, "models": {"ready": 2}})
    assert second not in engines_of(own)
    assert first <= engines_of(own)


def test_a_model_that_has_gone_can_be_tried_again(serve: Start, tmp_path: Path) -> None:
    path = tmp_path / "b.gguf"
    path.symlink_to(locate(None, model=None, mmproj=None, verify=False).model)
    own = serve("--model", "iota", "--model", str(path), "--memory", "2G", "--idle-unload", "0")
    gone = tmp_path / "gone"
    path.rename(gone)
    message = refused(own.post({"messages": HI, "model": "b"}), 500, code="model_error")
    assert str(tmp_path) not in message
    card = own.get("/v1/models/b").json()
    assert card["status"] == {"value": "unloaded", "failed": True, "message": "no such file"}
    assert card["architecture"]["input_modalities"] == ["text"]
    assert own.ask("hi", max_tokens=1)["model"] == "iota"
    gone.rename(path)
    wait_until(lambda: own.post({"messages": HI, "model": "b", "max_tokens": 1}).status_code == 200)


def test_the_first_model_is_unloaded_though_no_request_ever_came(serve: Start) -> None:
    own = serve("--idle-unload", "0.2")
    wait_until(lambda: own.health()["models"] == {"unloaded": 1})


@needs_proc
def test_the_end_of_the_server_ends_all_engines(serve: Start) -> None:
    """One that is being loaded, too."""
    own = serve(*TWO, "--memory", "2G", "--grace", "0.1")
    asking = threading.Thread(target=lambda: own.post({"messages": HI, "model": "b"}))
    asking.start()
    wait_until(lambda: len(engines_of(own)) == 2)
    engines = engines_of(own)
    assert stop(own) == 0
    asking.join(60)
    wait_until(lambda: not any(map(is_alive, engines)))


def test_a_model_that_never_fits_is_refused_at_the_start() -> None:
    command = [*COMMAND, "--port", "0", *TWO, "--memory", "60M"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    assert "--memory: 63 MB is too little: iota needs at least" in ended.stderr


# ---- the command line


@pytest.mark.parametrize(
    ("models", "options", "param"),
    [
        (["iota", "iota"], {}, "--model"),
        (["a=iota", "a=iota"], {}, "--model"),
        (["a=iota", "b=iota"], {"name": "c"}, "--alias"),
        (["a=iota"], {"name": "c"}, "--alias"),
        (["a=iota", "b=iota"], {"mmproj": "c.gguf"}, "--mmproj"),
        (["a=iota", "b=iota"], {"calibration": "c.json"}, "--calibration"),
    ],
)
def test_names_that_contradict_each_other(models: list[str], options: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as wrong:
        served_models(models, False, LoadOptions(**options), "2G")
    assert wrong.value.param == param


def test_a_missing_model_is_refused_at_the_start() -> None:
    with pytest.raises(ModelError, match="no such bundle"):
        served_models(["iota", "b=no-such-model"], False, LoadOptions(), "2G")


def test_one_model_is_as_before() -> None:
    served = served_models([], False, LoadOptions(), None)
    assert (served.sources[0].facts.name, served.memory, served.max_pixels) == ("iota", None, LoadOptions().max_pixels)
    assert served_models(["mine=iota"], False, LoadOptions(), None).sources[0].facts.name == "mine"


def test_a_pair_in_one_word(iota_bundle: Path) -> None:
    files = locate(iota_bundle, model=None, mmproj=None, verify=False)
    pair = f"{files.model}+{files.mmproj}"
    served = served_models([f"a={files.model}", f"b={pair}"], False, LoadOptions(supervised=True), "2G")
    assert [source.facts.vision for source in served.sources] == [False, True]
    assert served_models([pair], False, LoadOptions(), None).sources[0].facts.vision


def test_every_pulled_model(iota_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with pytest.raises(RequestError, match="no model was pulled"):
        served_models([], True, LoadOptions(), None)
    pulled = tmp_path / "pocketvlm" / MODELS
    (pulled / "owner").mkdir(parents=True)
    (pulled / "owner" / "small").symlink_to(iota_bundle)
    assert [source.facts.name for source in served_models([], True, LoadOptions(), None).sources] == ["iota"]
    given = served_models(["first=iota"], True, LoadOptions(supervised=True), "2G")
    assert [source.facts.name for source in given.sources] == ["first", "iota"]


def test_hashes_are_compared_when_files_have_changed(iota_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(iota_bundle, bundle)
    [source] = served_models([str(bundle)], False, LoadOptions(vision="gguf"), None).sources
    source.load().close()
    model = next(bundle.glob("model-*.gguf"))
    data, times = model.read_bytes(), (model.stat().st_atime_ns, model.stat().st_mtime_ns)
    model.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BundleError):
        source.load()
    os.utime(model, ns=times)  # as if it had not changed since
    source.load().close()


def test_shares_stay_within_the_budget() -> None:
    """The process of the server and the reading of pictures are counted once, and each engine with its cache."""
    options = LoadOptions(supervised=True, parallel=4)
    budget = 1 << 30
    shares, engines = share([(None, options)] * 3, budget)
    assert 0 < engines < budget
    assert len({one.engine for one in shares}) == 1
    assert shares[0].options.picture_cache_size
    larger, _ = share([(None, options)] * 3, 4 * budget)
    assert shares[0].options.max_pixels < larger[0].options.max_pixels <= options.max_pixels


# ---- under load


def memory_of(pids: set[int]) -> int:
    """Proportional memory (proc_pid_smaps_rollup(5)) of processes and of what they have started, in bytes."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
            total += memory_of({*children_of(pid)})
    return total


@pytest.mark.slow
@needs_proc
def test_random_requests_with_room_for_two_of_three(store: Store, serve: Start, sample_png: Path) -> None:
    """Each answer is that of the model alone, and all processes together stay within the budget."""
    from pocketvlm import VLM

    bundles = {family: store.family_bundle(family) for family in ("qwen2_5_vl", "smolvlm", "gemma3")}
    options = LoadOptions(supervised=True, parallel=2, context_size=1024, exact=True, vision="gguf")
    sizes = [(str(bundle), options) for bundle in bundles.values()]
    for megabytes in range(300, 3000, 20):
        with suppress(RequestError):
            shares, engines = share(sizes, megabytes << 20)
            costs = sorted(one.engine for one in shares)
            if sum(costs[-2:]) <= engines < sum(costs):
                break
    uri = data_uri(sample_png.read_bytes())
    contents = ["one two three", "What is in the picture?", "red green", look({"url": uri}), look({"url": uri}, "red")]
    fields: dict[str, Any] = {"max_tokens": 8, "ignore_eos": True}
    expected: dict[tuple[str, int], str] = {}
    for (name, bundle), one in zip(bundles.items(), shares, strict=True):
        with VLM.load(str(bundle), one.options) as vlm:
            for number, content in enumerate(contents):
                answer = vlm.chat([{"role": "user", "content": content}], **fields)
                expected[name, number] = answer.text
    assert len(set(expected.values())) > 9

    models = [word for name, bundle in bundles.items() for word in ("--model", f"{name}={bundle}")]
    limits = ("--ctx-size", "1024", "--parallel", "2", "--vision", "gguf", "--memory", f"{megabytes}M")
    own = serve(*models, *limits, "--exact")
    over, most = threading.Event(), 0

    def watch() -> None:
        nonlocal most
        while not over.wait(0.05):
            most = max(most, memory_of({own.process.pid}))

    watcher = threading.Thread(target=watch)
    watcher.start()
    dice = random.Random(0)
    asked = [(dice.choice([*bundles]), dice.randrange(len(contents))) for _ in range(200)]
    switched: list[float] = []
    stayed: list[float] = []

    def client(question: tuple[str, int]) -> str:
        name, number = question
        began = time.monotonic()
        body = {"messages": [{"role": "user", "content": contents[number]}], "model": name, **fields}
        reply = own.post(body, timeout=300)
        assert reply.status_code == 200, reply.text
        answer = reply.json()
        taken = time.monotonic() - began - answer["timings"]["queue_ms"] / 1000
        (switched if answer["timings"]["load_ms"] else stayed).append(taken)
        text: str = answer["choices"][0]["message"]["content"]
        return text

    try:
        with ThreadPoolExecutor(6) as clients:
            answers = [*clients.map(client, asked)]
    finally:
        over.set()
        watcher.join()
    wrong = {question: answer for question, answer in zip(asked, answers, strict=True) if answer != expected[question]}
    assert not wrong
    loads = of_models(own, "loads_total")
    times = [sorted(seconds)[len(seconds) // 2] for seconds in (switched, stayed)]
    print(f"loads {loads}; memory {most / (megabytes << 20):.2f} of the budget; seconds after a switch and not {times}")
    assert most <= 1.05 * (megabytes << 20)
    assert min(loads.values()) > 2
    assert sum(of_models(own, "generations_total").values()) == 200
