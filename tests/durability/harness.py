"""Runs of every kind, killed, cut from power and damaged; prints one line of JSON per attempt.

    python tests/durability/harness.py kills --number 300 --out kills.jsonl
    python tests/durability/harness.py cuts --number 20 --out cuts.jsonl
    python tests/durability/harness.py damages --number 150 --out damages.jsonl

What is in the file already is not done again. Everything is drawn from --seed. The imports are
done once: each attempt is a fork of this process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

# ruff: noqa: E402, BLE001
from kinds import KINDS, prepare
from moments import Moments

from secateur.cli import app
from secateur.files import is_leftover

TIMES = {
    "seconds", "speeds", "environment", "layers", "latency", "checksum", "search_seconds",
    "speedup",     "proxy_seconds", "dense_seconds",
}  # fmt: skip
RECORDS = ("result.json", "comparison.json", "sensitivity.json", "tuning.json")
EXACT = ("config.yaml", "plan.json", "model.json", "model.safetensors")
PLACE = "attempt"
UNCOMPARED = ("stages", "locks", "study.db")
DEMO = {
    "train": {"epochs": 2, "lr": 0.003}, "finetune": {"epochs": 1}, "criteria": ["l2", "taylor"],
    "sparsities": [0.3, 0.8], "trial_epochs": 1,
    "speed": {"batches": [1], "repeats": 2, "seconds": 0.01},
}  # fmt: skip


def timeless(value: Any) -> Any:
    """Return plain data without what a clock says."""
    if isinstance(value, dict):
        return {key: timeless(one) for key, one in value.items() if key not in TIMES}
    if isinstance(value, list):
        return [timeless(one) for one in value]
    return value


def outcome(folder: Path) -> dict[str, Any]:
    """Return what a finished run left, comparable to another's."""
    found: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        if path.name in RECORDS:
            found[path.name] = timeless(json.loads(path.read_text()))
        elif path.name in EXACT:
            found[path.name] = path.read_bytes()
        elif path.name not in UNCOMPARED and not is_leftover(path):
            found[path.name] = path.stat().st_size > 0
    return found


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Name what is not the same."""
    return [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]


class Attempt:
    """One folder in which a run of a kind is carried out, stopped and resumed."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.folder = folder
        folder.mkdir()
        self.line = prepare(kind, folder)
        self.log = folder.with_suffix(".log")
        self.said = folder.with_suffix(".said")

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def go(self, line: list[str] | None = None, stop_at: int = 0, cut: str = "") -> int:
        """Carry out a command line in a fork; return its exit status, below zero for a signal.

        The number of moments is in ``log``, what was printed in ``said``.
        """
        if line is None:
            resumed = (self.run / "config.yaml").is_file()
            line = [*self.line, *(["--output", "run"] if self.line[0] != "demo" else [])]
            line += ["--resume"] if resumed else []
        self.log.write_text("")
        child = os.fork()
        if child == 0:
            self._child(line, stop_at, cut)
        _, status = os.waitpid(child, 0)
        after = self.folder.with_name(self.folder.name + ".cut")
        if after.exists():
            shutil.rmtree(self.folder)
            after.rename(self.folder)
        return os.waitstatus_to_exitcode(status)

    def _child(self, line: list[str], stop_at: int, cut: str) -> None:
        status = 70
        try:
            handle = os.open(self.said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            os.chdir(self.folder)
            sys.argv = ["secateur", *line]
            if self.line[0] == "demo":
                self._small_demo()
            moments = Moments(self.folder, stop_at, cut, self.log)
            moments.watch()
            try:
                app(line)
            except SystemExit as end:
                status = int(end.code or 0)
            moments.note(f"moments {moments.count}")
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _small_demo(self) -> None:
        from secateur.study import reading

        whole = reading.parse
        reading.parse = lambda kind, raw, where: whole(kind, {**DEMO, **raw}, where)

    def noted(self, word: str) -> list[str]:
        """Return the lines of the log that begin with a word."""
        return [line for line in self.log.read_text().splitlines() if line.startswith(word)]

    def told(self) -> str:
        """Return what the last command printed."""
        return self.said.read_text(errors="replace").strip()


class Undisturbed:
    """The outcome of every kind, run once each."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._done: dict[str, tuple[dict[str, Any], int, int]] = {}

    def __call__(self, kind: str) -> tuple[dict[str, Any], int, int]:
        """Return the outcome, the number of moments and that of epochs."""
        if kind not in self._done:
            # At the same path as all attempts: the module of a network's file is named by it.
            attempt = Attempt(kind, self.root / PLACE)
            status = attempt.go()
            assert status == 0, f"{kind}: {attempt.told()}"
            moments = int(attempt.noted("moments")[0].split()[1])
            epochs = len(attempt.noted("epoch"))
            self._done[kind] = outcome(attempt.run), moments, epochs
            attempt.folder.rename(self.folder(kind))
        return self._done[kind]

    def folder(self, kind: str) -> Path:
        """Return where the undisturbed run of a kind lies."""
        return self.root / kind.replace(" ", "-")


def judged(attempt: Attempt, undisturbed: Undisturbed) -> dict[str, Any]:
    """Resume until the end, and compare."""
    status = attempt.go()
    wrong: list[str] = []
    if status != 0:
        wrong = [f"exit status {status}: {attempt.told()[-300:]}"]
    else:
        wrong = differing(undisturbed(attempt.kind)[0], outcome(attempt.run))
    litter = [str(path) for path in attempt.run.rglob(".*") if is_leftover(path)]
    return {"wrong": wrong, "litter": litter, "resumed epochs": len(attempt.noted("epoch"))}


def kill(kind: str, moment: float, again: float, root: Path, undisturbed: Undisturbed) -> Any:
    """Kill at a share of all moments, and perhaps again while it is resumed."""
    _, moments, _ = undisturbed(kind)
    attempt = Attempt(kind, root / PLACE)
    status = attempt.go(stop_at=max(1, round(moment * moments)))
    where = [*attempt.noted("stopped"), *([] if status < 0 else ["not stopped"])]
    if again:
        attempt.go(stop_at=max(1, round(again * moments)))
        where += attempt.noted("stopped")
    return {"where": where, **judged(attempt, undisturbed)}


def cut(kind: str, moment: float, how: str, root: Path, undisturbed: Undisturbed) -> Any:
    """Cut the power at a share of all moments."""
    _, moments, epochs = undisturbed(kind)
    attempt = Attempt(kind, root / PLACE)
    attempt.go(stop_at=max(1, round(moment * moments)), cut=how)
    before, where = len(attempt.noted("epoch")), attempt.noted("stopped")
    found = judged(attempt, undisturbed)
    if found["resumed epochs"] > epochs - before:
        found["wrong"].append(f"{before} + {found['resumed epochs']} epochs for {epochs}")
    return {"where": where, **found}


def damaged(content: bytes, how: str, drawn: random.Random) -> bytes:
    """Hurt the content of a file."""
    half = len(content) // 2
    if how == "bit" and content:
        place = drawn.randrange(len(content))
        flipped = content[place] ^ (1 << drawn.randrange(8))
        return content[:place] + bytes([flipped]) + content[place + 1 :]
    return {
        "bit": b"\1", "half": content[:half], "zeros": bytes(len(content)), "empty": b"",
        "longer": content + content[-100:] + b"x",
    }[how]  # fmt: skip


def damage(
    kind: str, moment: float, how: str, seed: int, root: Path, undisturbed: Undisturbed
) -> Any:
    """Stop a run (1: let it end), hurt one of its files, and go on in every way there is."""
    drawn = random.Random(seed)
    _, moments, _ = undisturbed(kind)
    attempt = Attempt(kind, root / PLACE)
    attempt.go(stop_at=0 if moment == 1 else max(1, round(moment * moments)))
    files = sorted(
        path for path in attempt.run.rglob("*")
        if path.is_file() and path.suffix != ".lock" and path.name != "lock"
        and not any(is_leftover(one) for one in path.parents)
    )  # fmt: skip
    if not files:
        return {"where": "nothing was there", "wrong": []}
    path = drawn.choice(files)
    before = path.read_bytes()
    path.write_bytes(damaged(before, how, drawn))
    where = f"{path.relative_to(attempt.run)} {how}"
    wrong: list[str] = []
    tried = []
    for line in after_damage(attempt, moment == 1):
        status = attempt.go(line)
        text = attempt.told()
        tried.append(f"{line[0] if line else 'resume'}: {status}")
        if "Traceback" in text or status not in (0, 2):
            wrong.append(f"{line}: exit status {status}: {text[-500:]}")
        elif status == 2 and len(lines := text.splitlines()) and not lines[-1].startswith("error:"):
            wrong.append(f"{line}: many lines: {text[-500:]}")
        elif status == 0 and not line:
            found = outcome(attempt.run)
            # What this command does not read may stay damaged, if whoever reads it is told.
            # `report` writes tables that `tune` does not.
            calm = undisturbed(kind)[0]
            others = [n for n in differing(calm, found) if n != path.name and n in calm]
            wrong += [f"{line}: in silence: {name}" for name in others]
            if path.name in RECORDS and path.name in differing(undisturbed(kind)[0], found):
                wrong.append(f"{line}: in silence: {path.name}")
    wrong += silent_readers(attempt, undisturbed)
    return {"where": where, "tried": tried, "wrong": wrong}


def after_damage(attempt: Attempt, over: bool) -> Iterator[Any]:
    """Yield command lines; None goes on with the run."""
    if over:
        yield ["report", "run"]
    yield None


def silent_readers(attempt: Attempt, undisturbed: Undisturbed) -> list[str]:
    """Read network, plan and record as a user would; name what comes back wrong."""
    reader = os.fork()
    if reader == 0:
        status = 70
        try:
            status = _read(attempt, undisturbed)
        except BaseException:
            attempt.said.write_text(traceback.format_exc())
        finally:
            os._exit(status)
    _, state = os.waitpid(reader, 0)
    code = os.waitstatus_to_exitcode(state)
    return [] if code == 0 else [f"reading: {attempt.said.read_text()[-500:]}"]


def _read(attempt: Attempt, undisturbed: Undisturbed) -> int:
    """Return 0 where each file is refused or gives what it should."""
    import secateur
    from secateur.errors import SecateurError

    os.chdir(attempt.folder)
    calm = undisturbed.folder(attempt.kind) / "run"
    if not any((attempt.run / name).is_file() for name in RECORDS):
        return 0
    try:
        secateur.models.load_model("net.py:build", {})
        secateur.models.load_model("residual_net.py:build", {})
        network = secateur.load(attempt.run)
        wanted = secateur.load(calm)
        state, whole = network.state_dict(), wanted.state_dict()
        assert state.keys() == whole.keys()
        assert all(state[name].equal(whole[name]) for name in whole)
        assert str(network) == str(wanted)
    except SecateurError as error:
        if "\n" in str(error):
            raise
    if (calm / "plan.json").is_file():
        try:
            plan = secateur.Plan.from_json((attempt.run / "plan.json").read_text())
            assert plan == secateur.Plan.from_json((calm / "plan.json").read_text())
        except (SecateurError, UnicodeDecodeError):
            pass
    return 0


WARM = ("weights", "compare", "sensitivity", "tune early")


def warm(root: Path) -> None:
    """Do one run of each verb in this process: most of a small run is lazy imports."""
    here = Path.cwd()
    with (root / "warm.said").open("w") as said, contextlib.redirect_stdout(said):
        for kind in WARM:
            folder = root / "warm"
            folder.mkdir()
            os.chdir(folder)
            with contextlib.suppress(SystemExit):
                app(prepare(kind, folder))
            shutil.rmtree(folder)
    os.chdir(here)


def moments_of(number: int, seed: int) -> list[tuple[str, float]]:
    """Spread moments over all kinds, one in each part of a run, drawn within the part."""
    drawn = random.Random(seed)
    names = list(KINDS)
    each = -(-number // len(names))
    spread = [(kind, (place + drawn.random()) / each) for place in range(each) for kind in names]
    drawn.shuffle(spread)
    return spread[:number]


def attempts(what: str, number: int, seed: int, only: list[str]) -> Iterator[tuple[Any, ...]]:
    """Yield the arguments of every attempt."""
    drawn = random.Random(seed + 1)
    spread = [one for one in moments_of(number, seed) if not only or one[0] in only]
    for place, (kind, moment) in enumerate(spread):
        if what == "kills":
            yield kind, moment, drawn.random() if place % 5 == 0 else 0.0
        elif what == "cuts":
            yield kind, moment, ("names", "data")[place % 2]
        else:
            how = ("bit", "half", "zeros", "empty", "longer")[place % 5]
            yield kind, 1.0 if place % 3 == 0 else moment, how, seed + place


def main() -> None:
    """Carry out attempts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["kills", "cuts", "damages"])
    parser.add_argument("--number", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", default=[], choices=list(KINDS))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    lines = asked.out.read_text().splitlines() if asked.out and asked.out.exists() else []
    done = {json.dumps(json.loads(line)["asked"]) for line in lines}
    carry_out = {"kills": kill, "cuts": cut, "damages": damage}[asked.what]
    with tempfile.TemporaryDirectory(prefix="durability-") as root:
        warm(Path(root))
        undisturbed = Undisturbed(Path(root))
        for arguments in attempts(asked.what, asked.number, asked.seed, asked.only):
            if json.dumps(list(arguments)) in done:
                continue
            found = carry_out(*arguments, Path(root), undisturbed)
            shutil.rmtree(Path(root) / PLACE)
            line = json.dumps({"asked": list(arguments), **found})
            print(line, flush=True)
            if asked.out:
                with asked.out.open("a") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
