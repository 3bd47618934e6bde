"""How fast a loaded model is on this machine: `pocketvlm bench` in Python.

from pocketvlm import VLM, bench

with VLM.load() as vlm:
    report = bench.run(vlm, [bench.photo(640, 480)])
"""

from pocketvlm.bench.measure import Case, Report, Spread, Subject, photo, run

__all__ = ["Case", "Report", "Spread", "Subject", "photo", "run"]
