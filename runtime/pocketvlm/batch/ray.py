"""Answer a batch on several machines: Ray Data hands the requests to actors with one engine each.

https://docs.ray.io/en/latest/data/batch_inference.html
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from pocketvlm.batch.lines import error_line
from pocketvlm.batch.requests import BatchInput
from pocketvlm.batch.run import Answerer, Answers
from pocketvlm.chat.load_options import LoadOptions
from pocketvlm.errors import PocketVLMError, RequestError
from pocketvlm.system.extras import install_extra

_TASK_ROUNDS = 4  # a task has this many times the parallel requests; a killed actor can lose them


def run_on_ray(
    target: str | None,
    options: LoadOptions,
    batch: BatchInput,
    results: Answers,
    *,
    actors: int,
    progress: Callable[[], None] = lambda: None,
) -> None:
    """Answer the requests that are not done with `actors` engines, each with the cores for the threads of `options`.

    Joins the cluster that RAY_ADDRESS names, or starts one here. Every machine must find models, and pictures named by
    a path, under the same name.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing reaches the network unless the user asks
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise PocketVLMError(f"this needs ray ({error}): {install_extra('ray')}") from None
    rows = []
    for item in batch.items:
        if item.custom_id in results.done:
            continue
        try:
            body = json.dumps(batch.body(item))
        except RequestError as error:
            results.add(error_line(item.custom_id, error))
            progress()
            continue
        rows.append({"custom_id": item.custom_id, "body": body})
    if not rows:
        return
    ray.init(ignore_reinit_error=True, include_dashboard=False, log_to_driver=False)
    size = options.parallel * _TASK_ROUNDS
    answers = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // size)).map_batches(
        _Actor,
        fn_constructor_kwargs={"target": target, "options": options},
        batch_size=size,
        concurrency=actors,
        num_cpus=options.threads,
    )
    for row in answers.iter_rows():
        results.add(row["line"])
        progress()


class _Actor:
    def __init__(self, target: str | None, options: LoadOptions) -> None:
        from pocketvlm.chat.vlm import VLM

        self._answerer = Answerer(VLM.load(target, options))
        self._parallel = options.parallel

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        bodies = [partial(json.loads, str(body)) for body in batch["body"]]
        with ThreadPoolExecutor(self._parallel) as pool:
            lines = list(pool.map(self._answerer.line, map(str, batch["custom_id"]), bodies))
        return {"line": [line for line in lines if line is not None]}
