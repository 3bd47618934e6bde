"""What /metrics shows, in a registry of this server's own."""

from __future__ import annotations

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, Info, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from pocketvlm.chat.vlm import VLM
from pocketvlm.pictures.handles import PictureHandles
from pocketvlm.server.admission import Admission
from pocketvlm.server.request_record import RequestRecord
from pocketvlm.system.machine import process_memory

_SHORT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_LONG = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class _Now(Collector):
    """What is read when it is asked for."""

    def __init__(self, admission: Admission, vlm: VLM, handles: PictureHandles) -> None:
        self._admission = admission
        self._handles = handles
        self._vlm = vlm

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily("pocketvlm_requests_running", "Requests that run.", self._admission.running)
        yield GaugeMetricFamily("pocketvlm_requests_waiting", "Requests in the queue.", self._admission.waiting)
        pictures, held = self._handles.held()
        yield GaugeMetricFamily("pocketvlm_image_handles", "Pictures that clients sent to be named later.", pictures)
        yield GaugeMetricFamily("pocketvlm_image_handles_bytes", "Their files together.", held)
        engine = self._vlm.statistics()
        yield GaugeMetricFamily("pocketvlm_engine_up", "1 while the engine takes requests.", engine.state == "ok")
        yield GaugeMetricFamily("pocketvlm_engine_running", "Requests that the engine works on.", engine.running)
        yield GaugeMetricFamily("pocketvlm_engine_encoding", "Requests with pictures to encode.", engine.encoding)
        cancelled = "Generations that the engine gave up because nobody wanted them any more."
        yield CounterMetricFamily("pocketvlm_engine_cancelled", cancelled, engine.cancelled)
        tiles = CounterMetricFamily(
            "pocketvlm_tiles", "Tiles of pictures, by where embeddings came from.", labels=["cache"]
        )
        for cache, count in (
            ("none", engine.tiles_encoded),
            ("disk", engine.tiles_from_disk),
            ("memory", engine.tiles_from_memory),
        ):
            tiles.add_metric([cache], count)
        yield tiles
        evicted = "Embeddings of tiles that made room for others in memory."
        yield CounterMetricFamily("pocketvlm_picture_cache_evictions", evicted, engine.picture_evictions)
        taken = "Memory that embeddings of pictures take."
        yield GaugeMetricFamily("pocketvlm_picture_cache_bytes", taken, engine.picture_bytes)
        restarts = "Times that the engine was started again after native code died."
        yield CounterMetricFamily("pocketvlm_engine_restarts", restarts, engine.restarts)
        drafted = "Tokens that answers were guessed to go on with."
        yield CounterMetricFamily("pocketvlm_drafted_tokens", drafted, engine.drafted_tokens)
        accepted = "Of these, tokens that were right."
        yield CounterMetricFamily("pocketvlm_accepted_tokens", accepted, engine.accepted_tokens)
        if engine.child is not None and (size := process_memory(engine.child)) is not None:
            yield GaugeMetricFamily(
                "pocketvlm_engine_resident_memory_bytes", "Memory of the engine's process.", size.resident
            )


class Metrics:
    def __init__(self, admission: Admission, vlm: VLM, handles: PictureHandles, version: str) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, CPU time, open files; Linux only
        PlatformCollector(registry=registry)
        registry.register(_Now(admission, vlm, handles))
        info = vlm.info
        about = {"version": version, "model": info.name, "vision": info.vision or "", "fingerprint": info.fingerprint}
        Info("pocketvlm", "What is served.", registry=registry).info(about)

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"pocketvlm_{name}", what, labels, registry=registry)

        def histogram(name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"pocketvlm_{name}_seconds", what, buckets=buckets, registry=registry)

        self._requests = counter("requests", "Requests that ended.", "method", "status")
        self._left = counter("disconnects", "Clients that went away before the end of their answer.")
        self._prompt = counter("prompt_tokens", "Tokens of prompts, of answers that ended.")
        self._cached = counter("cached_tokens", "Tokens of prompts that were in a cache.")
        self._image_tokens = counter("image_tokens", "Tokens of prompts that stand for pictures.")
        self._completion = counter("completion_tokens", "Tokens generated, of answers that ended.")
        self._images = counter("images", "Pictures, by the cache that their embeddings came from.", "cache")
        self._request = histogram("request", "A request, from its head to the end of its answer.", _LONG)
        self._first = histogram("time_to_first_token", "From a request's head to the first token.", _LONG)
        self._queue = histogram("queue", "Waiting for a place.", _SHORT)
        self._encode = histogram("encode", "Encoding one picture that was in no cache.", _SHORT)
        self._prefill = histogram("prefill", "Evaluating a prompt, its pictures' encoding included.", _LONG)
        self._decode = histogram("decode", "Generating an answer.", _LONG)

    def request_ended(self, method: str, account: RequestRecord) -> None:
        self._requests.labels(method, str(account.status or "none")).inc()
        if account.left:
            self._left.inc()
        if account.stream is None:
            return
        self._request.observe(time.perf_counter() - account.began)
        if account.first_token is not None:
            self._first.observe(account.first_token)
        if (usage := account.usage) is not None:
            self._prompt.inc(usage.prompt_tokens)
            self._cached.inc(usage.prompt_tokens_details.cached_tokens)
            self._image_tokens.inc(usage.prompt_tokens_details.image_tokens)
            self._completion.inc(usage.completion_tokens)
        if (timings := account.timings) is not None:
            self._queue.observe(timings.queue_ms / 1000)
            self._prefill.observe(timings.prefill_ms / 1000)
            self._decode.observe(timings.decode_ms / 1000)
            for image in timings.images:
                self._images.labels(image.cache).inc()
                if image.cache == "none":
                    self._encode.observe(image.encode_ms / 1000)

    def exposition(self) -> tuple[bytes, str]:
        """The text, and its media type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST
