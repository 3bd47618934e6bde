"""The metrics of /metrics, in a registry of this server's own."""

from __future__ import annotations

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, Info, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from pocketvlm.chat.vlm import VLM
from pocketvlm.pictures.handles import PictureHandles
from pocketvlm.server.models import Models
from pocketvlm.server.request_record import RequestRecord
from pocketvlm.system.machine import process_memory

_SHORT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_LONG_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class _Gauges(Collector):
    """Values that are read when /metrics is requested."""

    def __init__(self, models: Models, vlm: VLM, handles: PictureHandles) -> None:
        self._models = models
        self._handles = handles
        self._vlm = vlm

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily("pocketvlm_requests_running", "Running requests.", self._models.running)
        yield GaugeMetricFamily("pocketvlm_requests_waiting", "Requests in the queue.", self._models.waiting)
        pictures, held = self._handles.held()
        yield GaugeMetricFamily("pocketvlm_image_handles", "Uploaded pictures that are kept.", pictures)
        yield GaugeMetricFamily("pocketvlm_image_handles_bytes", "Total size of the uploaded files.", held)
        engine = self._vlm.statistics()
        yield GaugeMetricFamily("pocketvlm_engine_up", "1 while the engine accepts requests.", engine.state == "ok")
        yield GaugeMetricFamily("pocketvlm_engine_running", "Requests that the engine works on.", engine.running)
        yield GaugeMetricFamily("pocketvlm_engine_encoding", "Requests with pictures to encode.", engine.encoding)
        cancelled = "Generations that were cancelled because their client left."
        yield CounterMetricFamily("pocketvlm_engine_cancelled", cancelled, engine.cancelled)
        tiles = CounterMetricFamily(
            "pocketvlm_tiles", "Tiles of pictures, by the cache that their embeddings came from.", labels=["cache"]
        )
        for cache, count in (
            ("none", engine.tiles_encoded),
            ("disk", engine.tiles_from_disk),
            ("memory", engine.tiles_from_memory),
        ):
            tiles.add_metric([cache], count)
        yield tiles
        evicted = "Embeddings evicted from the cache in memory."
        yield CounterMetricFamily("pocketvlm_picture_cache_evictions", evicted, engine.picture_evictions)
        taken = "Memory used by embeddings of pictures."
        yield GaugeMetricFamily("pocketvlm_picture_cache_bytes", taken, engine.picture_bytes)
        restarts = "Restarts of the engine after a crash in native code."
        yield CounterMetricFamily("pocketvlm_engine_restarts", restarts, engine.restarts)
        drafted = "Drafted tokens."
        yield CounterMetricFamily("pocketvlm_drafted_tokens", drafted, engine.drafted_tokens)
        accepted = "Drafted tokens that were accepted."
        yield CounterMetricFamily("pocketvlm_accepted_tokens", accepted, engine.accepted_tokens)
        if engine.child is not None and (size := process_memory(engine.child)) is not None:
            yield GaugeMetricFamily(
                "pocketvlm_engine_resident_memory_bytes", "Memory of the engine's process.", size.resident
            )


class Metrics:
    def __init__(self, models: Models, vlm: VLM, handles: PictureHandles, version: str) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, CPU time, open files; Linux only
        PlatformCollector(registry=registry)
        registry.register(_Gauges(models, vlm, handles))
        info = vlm.info
        about = {"version": version, "model": info.name, "vision": info.vision or "", "fingerprint": info.fingerprint}
        Info("pocketvlm", "What is served.", registry=registry).info(about)

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"pocketvlm_{name}", what, labels, registry=registry)

        def histogram(name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"pocketvlm_{name}_seconds", what, buckets=buckets, registry=registry)

        self._requests = counter("requests", "Requests that ended.", "method", "status")
        self._left = counter("disconnects", "Clients that left before the end of their answer.")
        self._prompt = counter("prompt_tokens", "Prompt tokens of finished answers.")
        self._cached = counter("cached_tokens", "Prompt tokens that were cached.")
        self._image_tokens = counter("image_tokens", "Prompt tokens of pictures.")
        self._completion = counter("completion_tokens", "Generated tokens of finished answers.")
        self._images = counter("images", "Pictures, by the cache that their embeddings came from.", "cache")
        self._request = histogram("request", "A request, from its head to the end of its answer.", _LONG_BUCKETS)
        self._first = histogram("time_to_first_token", "From a request's head to the first token.", _LONG_BUCKETS)
        self._queue = histogram("queue", "Waiting in the queue.", _SHORT_BUCKETS)
        self._encode = histogram("encode", "Encoding one picture that was in no cache.", _SHORT_BUCKETS)
        self._prefill = histogram("prefill", "Evaluating a prompt and encoding its pictures.", _LONG_BUCKETS)
        self._decode = histogram("decode", "Generating an answer.", _LONG_BUCKETS)

    def request_ended(self, method: str, record: RequestRecord) -> None:
        self._requests.labels(method, str(record.status or "none")).inc()
        if record.left:
            self._left.inc()
        if record.stream is None:
            return
        self._request.observe(time.perf_counter() - record.began)
        if record.first_token is not None:
            self._first.observe(record.first_token)
        if (usage := record.usage) is not None:
            self._prompt.inc(usage.prompt_tokens)
            self._cached.inc(usage.prompt_tokens_details.cached_tokens)
            self._image_tokens.inc(usage.prompt_tokens_details.image_tokens)
            self._completion.inc(usage.completion_tokens)
        if (timings := record.timings) is not None:
            self._queue.observe(timings.queue_ms / 1000)
            self._prefill.observe(timings.prefill_ms / 1000)
            self._decode.observe(timings.decode_ms / 1000)
            for image in timings.images:
                self._images.labels(image.cache).inc()
                if image.cache == "none":
                    self._encode.observe(image.encode_ms / 1000)

    def exposition(self) -> tuple[bytes, str]:
        """Return the metrics and their media type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST
