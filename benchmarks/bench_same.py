"""How much answers differ with a prefix cache, compared with how much they differ without one.

Log probabilities of the 64 likeliest tokens at each token of an answer, up to the first token that differs, over the
random conversations of the tests: messages of 1 to 12 words, and of 40 to 120. Defaults, that is flash attention and
an f16 cache, whose kernels add up in another order for fewer than 64 rows, for one row with 512 cells or more, and
where cells lie in another order.

"Nothing known": prompts whole and by 1, 16 and 128 rows, each alone; and together with others, twice: three requests on
four lanes, so what goes into a step is a matter of time. Of each figure the largest that any two of these show.
"Remembers": the cached part of a prompt is reused; compared with whole prompts, alone and with nothing known.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import files
from itertools import combinations, starmap
from pathlib import Path

import numpy as np

from pocketvlm import VLM
from pocketvlm.system.machine import processor
from pocketvlm_converters.convert import convert

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests"))

from conversations import SHORT, Difference, differ, hold, replay, replay_together  # noqa: E402

LONG = (40, 120)
ROWS = (1, 16, 128)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("bundle", nargs="*", type=Path, help="none: iota, as it is and in f32")
    options.add_argument("--conversations", type=int, default=12)
    options.add_argument("--threads", type=int, default=2)
    arguments = options.parse_args()
    print(f"{processor()}, {arguments.threads} threads\n")
    print("| model | words | | answers | of other tokens | largest | 95 % | mean | cached |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for bundle in arguments.bundle or _iota(Path(folder)):
            load = partial(VLM.load, bundle, context_size=1536, vision="gguf", threads=arguments.threads)
            for words in (SHORT, LONG):
                _compare(bundle.name, load, range(arguments.conversations), words)


def _iota(folder: Path) -> list[Path]:
    float_bundle = convert(ROOT / "models/iota/checkpoint", folder / "iota-F32", quantize="F32", mmproj="f32").path
    return [Path(str(files("pocketvlm_models") / "iota")), float_bundle]


def _compare(name: str, load: Callable[..., VLM], seeds: range, words: tuple[int, int]) -> None:
    show = partial(_show, name, words)
    warm = hold(load, seeds, words=words)
    whole = replay(load, warm)
    cold = [whole, *(replay(load, warm, rows=rows) for rows in ROWS)]
    show("nothing known, alone", list(starmap(differ, combinations(cold, 2))))
    cold += [replay_together(load, warm), replay_together(load, warm)]
    show("nothing known, also together", list(starmap(differ, combinations(cold, 2))))
    show("remembers, together", [differ(warm, whole)])
    alone = hold(load, seeds, lanes=1, together=1, words=words)
    show("remembers, alone", [differ(alone, replay(load, alone))])


def _show(name: str, words: tuple[int, int], kind: str, differences: Sequence[Difference]) -> None:
    """Each figure of that pair where it is largest."""
    largest = max(one.largest for one in differences)
    most = max(np.quantile(one.each, 0.95) for one in differences)
    mean = max(np.mean(one.each) for one in differences)
    print(
        f"| {name} | {words[0]} to {words[1]} | {kind} | {len(differences[0].each)} "
        f"| {max(one.other for one in differences)} | "
        f"{largest:.2g} | {most:.2g} | {mean:.2g} | {differences[0].cached / differences[0].prompt:.0%} |",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
