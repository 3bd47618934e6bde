"""The metrics of /metrics, in a registry of this server's own."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from pocketvlm.engine.interface import Statistics
from pocketvlm.pictures.handles import PictureHandles
from pocketvlm.server.models import Models
from pocketvlm.server.protocols.responses.stored import ResponseStore
from pocketvlm.server.request_record import RequestRecord
from pocketvlm.server.served_model import ServedModel
from pocketvlm.system.machine import process_memory

_SHORT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_LONG_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
# Name, what it is, and the field of Statistics.
_ENGINE_GAUGES = (
    ("engine_running", "Requests that the engine works on.", "running"),
    ("engine_encoding", "Requests with pictures to encode.", "encoding"),
    ("picture_cache_bytes", "Memory used by embeddings of pictures.", "picture_bytes"),
)
_ENGINE_COUNTERS = (
    ("engine_cancelled", "Generations that were cancelled because their client left.", "cancelled"),
    ("picture_cache_evictions", "Embeddings evicted from the cache in memory.", "picture_evictions"),
    ("engine_restarts", "Restarts of the engine after a crash in native code.", "restarts"),
    ("drafted_tokens", "Drafted tokens.", "drafted_tokens"),
    ("accepted_tokens", "Drafted tokens that were accepted.", "accepted_tokens"),
    ("steps", "Evaluations with tokens of answers.", "steps"),
    ("threads_of_steps", "The sum of their numbers of threads.", "threads_of_steps"),
)


class _Gauges(Collector):
    """Values that are read when /metrics is requested.

    Those without the label `model` are sums over all models. The label has the names of the served models only.
    """

    def __init__(self, models: Models, handles: PictureHandles, responses: ResponseStore, version: str) -> None:
        self._models = models
        self._handles = handles
        self._responses = responses
        self._version = version

    def collect(self) -> Iterable[Metric]:
        yield self._info()
        yield GaugeMetricFamily("pocketvlm_requests_running", "Running requests.", self._models.running)
        yield GaugeMetricFamily("pocketvlm_requests_waiting", "Requests in the queue.", self._models.waiting)
        pictures, held = self._handles.held()
        yield GaugeMetricFamily("pocketvlm_image_handles", "Uploaded files that are kept.", pictures)
        yield GaugeMetricFamily("pocketvlm_image_handles_bytes", "Total size of the uploaded files.", held)
        responses, held = self._responses.held()
        yield GaugeMetricFamily("pocketvlm_kept_responses", "Responses that are kept.", responses)
        yield GaugeMetricFamily("pocketvlm_kept_responses_bytes", "Memory of the kept responses.", held)
        statistics = self._models.statistics()
        engines = [engine for _, engine in statistics]
        up = all(engine.state == "ok" for engine in engines)
        yield GaugeMetricFamily("pocketvlm_engine_up", "1 while all loaded engines accept requests.", up)
        for name, what, field in _ENGINE_GAUGES:
            yield GaugeMetricFamily(f"pocketvlm_{name}", what, sum(getattr(engine, field) for engine in engines))
        for name, what, field in _ENGINE_COUNTERS:
            yield CounterMetricFamily(f"pocketvlm_{name}", what, sum(getattr(engine, field) for engine in engines))
        tiles = CounterMetricFamily(
            "pocketvlm_tiles", "Tiles of pictures, by the cache that their embeddings came from.", labels=["cache"]
        )
        for cache, field in (("none", "tiles_encoded"), ("disk", "tiles_from_disk"), ("memory", "tiles_from_memory")):
            tiles.add_metric([cache], sum(getattr(engine, field) for engine in engines))
        yield tiles
        yield from self._by_model(statistics)

    def _info(self) -> Metric:
        """Return what is served; the kind of vision encoder is known while the model is loaded."""
        family = InfoMetricFamily("pocketvlm", "What is served.", labels=["model"])
        for model in self._models:
            about = {"version": self._version, "vision": model.vision, "fingerprint": model.facts.fingerprint}
            family.add_metric([model.name], about)
        return family

    def _by_model(self, statistics: Sequence[tuple[ServedModel, Statistics]]) -> Iterable[Metric]:
        def gauge(name: str, what: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"pocketvlm_model_{name}", what, labels=["model"])

        def counter(name: str, what: str) -> CounterMetricFamily:
            return CounterMetricFamily(f"pocketvlm_model_{name}", what, labels=["model"])

        loaded = gauge("loaded", "1 while the model is loaded.")
        running = gauge("requests_running", "Running requests of the model.")
        waiting = gauge("requests_waiting", "Requests that wait for the model.")
        predicted = gauge("predicted_memory_bytes", "Memory that the model takes when it is loaded, as predicted.")
        load_time = gauge("load_seconds", "How long the model was loaded the last time.")
        loads = counter("loads", "How often the model was loaded after the start.")
        failures = counter("load_failures", "How often the model could not be loaded.")
        answers = counter("generations", "Generations that the model has finished.")
        tokens = counter("generated_tokens", "Tokens that the model has generated.")
        resident = 0
        for model, engine in statistics:
            label = [model.name]
            loaded.add_metric(label, model.state == "ready")
            running.add_metric(label, model.admission.running)
            waiting.add_metric(label, model.admission.waiting)
            if model.source.memory:
                predicted.add_metric(label, model.source.memory)
            if model.loads:
                load_time.add_metric(label, model.load_seconds)
            loads.add_metric(label, model.loads)
            failures.add_metric(label, model.load_failures)
            answers.add_metric(label, engine.finished)
            tokens.add_metric(label, engine.generated_tokens)
            if engine.child is not None and (size := process_memory(engine.child)) is not None:
                resident += size.resident
        yield from (loaded, running, waiting, predicted, load_time, loads, failures, answers, tokens)
        if resident:
            what = "Memory of the engines' processes."
            yield GaugeMetricFamily("pocketvlm_engine_resident_memory_bytes", what, resident)


class Metrics:
    def __init__(self, models: Models, handles: PictureHandles, responses: ResponseStore, version: str) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, CPU time, open files; Linux only
        PlatformCollector(registry=registry)
        registry.register(_Gauges(models, handles, responses, version))

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
