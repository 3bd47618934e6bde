"""`make fuzz`: damage files and requests, and sort what pocketvlm makes of them.

Exit code 1 where a case ended in a traceback, an unclear message, an abort, a hang or too much memory. The smallest
case of each is kept in the folder; the next run tries it again first.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # its threads would not survive the forks
os.environ["GGML_NO_BACKTRACE"] = "1"

from fuzz import sound
from fuzz.cases import Case, Original
from fuzz.folder import Folder, Found, Progress
from fuzz.kinds import Kind, kinds
from fuzz.outcomes import ANSWERED, Verdict
from fuzz.reduce import reduced
from fuzz.report import Lines, listing, table
from fuzz.runner import Limits, Runner
from store import ROOT

FAMILIES = sorted(path.stem for path in Path(__file__).parents[1].glob("tiny/[a-z]*.py")) if find_spec("torch") else []


def main() -> int:
    options = parse(sys.argv[1:])
    folder = Folder(options.folder)
    isolate(folder)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # children are ended, progress is saved
    every = kinds()
    if options.case:
        return again(options, folder, every)
    chosen = {name: every[name] for name in options.kinds or every}
    session = Session(folder, chosen, options)
    found = session.run_sound() if options.sound else session.run()
    print(table(session.progress))
    if found:
        print(f"\nnot clean:\n{listing(found)}")
    return 1 if found else 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    names = sorted(kinds())
    parser = argparse.ArgumentParser("make fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "kinds", nargs="*", metavar="KIND", choices=[*names, []], help=f"all, or some of {', '.join(names)}"
    )
    parser.add_argument("--cases", type=int, default=100, help="cases of each kind (100)")
    parser.add_argument("--minutes", type=float, help="instead: time for all kinds together")
    parser.add_argument("--seed", type=int, default=0, help="other seeds give other cases (0)")
    parser.add_argument("--families", default=",".join(FAMILIES), help="tiny models to damage besides iota (all)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="cases at the same time (the cores)")
    parser.add_argument("--seconds", type=float, default=20.0, help="processor time of a case (20)")
    parser.add_argument("--memory", type=int, default=2048, help="memory of a case in MB (2048)")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "fuzz", help="what is kept (build/fuzz)")
    parser.add_argument("--sound", action="store_true", help="only run the files that are not damaged")
    parser.add_argument("--fresh", action="store_true", help="begin with the first case again, not with the next one")
    parser.add_argument("--case", help="only run this kept case (a file) or number of KIND, and print what happens")
    parser.add_argument("--write", type=Path, help="with --case: write the damaged file here, and do not run it")
    options = parser.parse_args(arguments)
    if options.case and options.case.isdigit() and len(options.kinds) != 1:
        parser.error("the number of a case needs one KIND")
    return options


def isolate(folder: Folder) -> None:
    """Keep what is measured and cached apart from the user's, and the network away."""
    import runpy

    offline = Path(__file__).parents[1] / "offline"
    runpy.run_path(str(offline / "sitecustomize.py"))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(offline), *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ.update(XDG_CACHE_HOME=str(folder.work / "cache"), XDG_DATA_HOME=str(folder.work / "data"))
    os.environ.setdefault("POCKETVLM_NATIVE", "llama-cpp-python")


class Session:
    """One run over some kinds."""

    def __init__(self, folder: Folder, chosen: dict[str, Kind], options: argparse.Namespace) -> None:
        self._folder = folder
        self._kinds = chosen
        self._options = options
        self._originals = sound_files(chosen, options.families)
        limits = Limits(options.seconds, options.memory << 20)
        self._runner = Runner(chosen, self._originals, folder.work, limits, options.jobs)
        known = {} if options.fresh or options.sound else folder.progress(options.seed)
        self.progress = {name: known.get(name, Progress()) for name in chosen}
        self._found: dict[Path, Found] = {}  # by its file, which has a name for each distinct end
        self._new: list[Found] = []

    def run(self) -> list[Found]:
        """Run kept cases, then new ones; return what is not clean, as small as it gets."""
        self._try_kept()
        lines, options = Lines(), self._options
        goals = {kind: of.next + options.cases for kind, of in self.progress.items()}
        try:
            for result in self._runner.run(self._batches(goals)):
                if result is not None:
                    self._add(*result)
                lines.show(self.progress)
        finally:  # Ctrl-C too
            self._folder.save_progress(options.seed, self.progress)
        self._reduce_new()
        return [*self._found.values()]

    def _batches(self, goals: dict[str, int]) -> Iterator[list[Case]]:
        """Yield batches of the kinds in turn, until all have come to their goals or the time is over."""
        until = time.monotonic() + (self._options.minutes or 0) * 60
        following = {kind: of.next for kind, of in self.progress.items()}
        while self._options.minutes is None or time.monotonic() < until:
            behind = [kind for kind in following if self._options.minutes or following[kind] < goals[kind]]
            if not behind:
                return
            for kind in behind:
                start = following[kind]
                count = self._kinds[kind].BATCH
                stop = start + count if self._options.minutes else min(start + count, goals[kind])
                following[kind] = stop
                originals = self._originals[kind]
                yield [Case.random(kind, originals, self._options.seed, number) for number in range(start, stop)]

    def _add(self, case: Case, verdict: Verdict) -> None:
        self.progress[case.kind].add(case, verdict)
        path = self._folder.place(case, verdict)
        if not verdict.clean and path not in self._found:
            self._found[path] = Found(case, verdict, path)
            self._keep(case, verdict)
            self._new.append(self._found[path])
            print(f"{verdict.outcome} in {case.kind}: {verdict.where}", flush=True)

    def _keep(self, case: Case, verdict: Verdict) -> None:
        self._folder.keep(case, verdict, self._originals[case.kind][case.original].shown(case.mutations))

    def run_sound(self) -> list[Found]:
        """Run what is not damaged, and return what is not answered."""
        batches = ([Case(kind, name, []) for name in files] for kind, files in self._originals.items())
        for result in self._runner.run(batches):
            if result is not None:
                case, verdict = result
                self.progress[case.kind].add(case, verdict)
                if verdict.outcome != ANSWERED:
                    name = Path(case.kind, case.original)
                    self._found[name] = Found(case, replace(verdict, where=verdict.where or verdict.detail), name)
        return [*self._found.values()]

    def _try_kept(self) -> None:
        """Run what earlier runs have kept, and forget what is clean now."""
        kept = {
            id(one.case): one
            for one in self._folder.kept()
            if one.case.kind in self._kinds and one.case.original in self._originals[one.case.kind]
        }
        for result in self._runner.run([one.case] for one in kept.values()):
            if result is None:
                continue
            one, verdict = kept[id(result[0])], result[1]
            if verdict.clean:
                print(f"now clean: {one.path.name}")
                one.path.unlink()
            else:
                self._found[one.path] = replace(one, verdict=verdict)

    def _reduce_new(self) -> None:
        for one in self._new:
            if smaller := reduced(one.case, one.verdict, self._runner.alone):
                self._keep(smaller, one.verdict)


def sound_files(chosen: dict[str, Kind], names: str) -> dict[str, dict[str, Original]]:
    """Return the originals of kinds, taken apart, so that children need not do it."""
    families = [name for name in names.split(",") if name]
    if families:
        sound.prepare(families)
    originals = {name: kind.originals() for name, kind in chosen.items()}
    for files in originals.values():
        for original in files.values():
            original.document  # noqa: B018 - it is cached
    return originals


def again(options: argparse.Namespace, folder: Folder, every: dict[str, Kind]) -> int:
    """Run a case, or write its file."""
    numbered = options.case.isdigit()
    kept = None if numbered else Case.load(Path(options.case).read_text())
    kind = kept.kind if kept else options.kinds[0]
    chosen = {kind: every[kind]}
    originals = sound_files(chosen, options.families)
    case = kept or Case.random(kind, originals[kind], options.seed, int(options.case))
    print("\n".join(originals[kind][case.original].shown(case.mutations)))
    if options.write:
        options.write.write_bytes(originals[kind][case.original].damaged(case.mutations))
        return 0
    limits = Limits(options.seconds, options.memory << 20)
    verdict = Runner(chosen, originals, folder.work, limits, jobs=1).alone(case)
    print(f"{verdict.outcome}: {verdict.where}\n{verdict.detail}")
    return 0 if verdict.clean else 1


if __name__ == "__main__":
    sys.exit(main())
