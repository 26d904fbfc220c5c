"""What tests/test_saves.py tries once, here many times: runs killed, files spoilt.

    python benchmarks/soak.py kill --times 60      kill runs, resume them, compare the ends
    python benchmarks/soak.py fuzz --times 500     spoil a run folder's files, resume, compare
    python benchmarks/soak.py long --times 300000  so many steps: does speed fall, memory grow?
    python benchmarks/soak.py save --times 5       save a million HalfCheetah transitions

Each time has its own random numbers: `--first 17 --times 1` repeats number 17 alone, with the same
`--seed`. The exit code is 1 if anything failed; the summary goes to results/soak-WHAT.txt. Linux or
macOS, since it forks.
"""

import argparse
import collections
import contextlib
import functools
import io
import math
import os
import platform
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zlib
from importlib.metadata import version
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # CUDA does not survive a fork
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import numpy as np
import test_saves as saves

import sac

RESULTS = Path(__file__).parent / "results"
PATIENCE = 60  # seconds until a spoilt folder counts as a hang
SPOILT = {"checkpoint.pt": 4, "replay": 4, "config.json": 1, "progress.csv": 1, "picture": 1}


# Runs that are killed


def mark_saves():
    """Notes in marks.txt where a save begins and ends."""
    marks, save = os.open("marks.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), sac.Run.save

    def marked(*arguments, **named):
        os.write(marks, b"(")
        save(*arguments, **named)
        os.write(marks, b")")

    sac.Run.save = marked


def random_kill(draw, seconds):
    """How the next process dies: the arguments of saves.arm, and after how many seconds."""
    kind = draw.choice(["clock", "clock", "call", "save", "save"])
    if kind == "clock":
        return None, draw.uniform(0, 1.1 * seconds)
    if kind == "call":
        return saves.random_moment(draw.random()), math.inf
    at = draw.choice(["replace", "fsync", "np.save", "torch.save"])
    when = draw.choice(["before", "after", 10, 50, *(["half"] if "save" in at else [])])
    return {"at": at, "nth": draw.randint(1, 5), "when": when}, math.inf


def prepare(kill):
    mark_saves()
    if kill:
        saves.arm(**kill)


def where_it_died(place):
    """Which part of a run a kill has hit."""
    if not list(place.rglob("checkpoint.pt")):
        return "before the first save was whole"
    marks = place / "marks.txt"
    return "inside a later save" if marks.read_bytes().endswith(b"(") else "elsewhere"


def whole_runs(place):
    """For each environment: its contents, table, file names, and seconds when nothing happens."""
    saves.warm_up()
    whole = {}
    for env in saves.RUNS:
        (place / env).mkdir()
        start = time.monotonic()
        assert saves.live(saves.command(env), place / env, functools.partial(prepare, None)) == 0
        whole[env] = outcome(saves.run_folder(place / env)), time.monotonic() - start
    return whole


def outcome(folder):
    names = sorted(path.name for path in folder.iterdir())
    return saves.contents(saves.load(folder)), saves.table(folder), names


def kill_once(draw, place, whole, counts):
    """One run, killed up to three times and resumed each time by the same command."""
    env = draw.choice(list(whole))
    right, seconds = whole[env]
    for _ in range(draw.randint(1, 3)):
        kill, kill_after = random_kill(draw, seconds)
        preparation = functools.partial(prepare, kill)
        code = saves.live(saves.command(env), place, preparation, kill_after)
        if code == 0:
            counts["kills that came too late"] += 1
            break
        assert code == -signal.SIGKILL, f"exit code {code}"
        counts[f"killed {where_it_died(place)}"] += 1
    if code:
        code = saves.live(saves.command(env), place)
    assert code == 0, f"exit code {code} after the kills"
    found = outcome(saves.run_folder(place))
    for name, a, b in zip(("contents", "progress.csv", "files"), found, right):
        assert a == b, f"other {name} than those of an uninterrupted run"
    counts["resumed to an identical end"] += 1


# Files that are spoilt


def silent_main(*argv):
    """sac.main in this process: its exit code and what it wrote to stderr."""
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        code = sac.main([str(word) for word in argv])
    return code, errors.getvalue()


def go_on(folder):
    """What becomes of a folder: 'refused', or the outcome of the run that goes on."""
    code, errors = silent_main("--resume", folder, "--steps", 220, "--threads", 1)
    if code == 2:
        assert errors.count("\n") == 1 and errors.startswith("sac.py: "), errors
        return "refused"
    assert code == 0, f"exit code {code}: {errors}"
    assert (folder / "checkpoint.pt").is_file(), "nothing was saved"
    return saves.contents(saves.load(folder))


def originals(place):
    """Two run folders, seeds 1 and 2, saved at step 200; and how the first goes on."""
    draw = sac.plot_runs
    quick = saves.quick_picture
    sac.plot_runs = lambda runs: (quick if isinstance(runs[0], sac.Run) else draw)(runs)
    flags = "--env Pendulum-v1 --steps 200 --log-every 10".split()
    for seed in (1, 2):
        out = ("--seed", seed, "--out", place / str(seed))
        code, errors = silent_main(*saves.COMMON.split(), *flags, *out)
        assert code == 0, errors
    shutil.copytree(place / "1", place / "end")
    return go_on(place / "end")


def spoil(draw, folder, other):
    """Changes one file of the folder; says how."""
    kind = draw.choices(list(SPOILT), SPOILT.values())[0]
    path = {"replay": folder / "replay-200.npy", "picture": folder / "learning_curve.png"}.get(
        kind, folder / kind
    )
    data = bytearray(path.read_bytes())
    ends = [range(min(160, len(data))), range(max(0, len(data) - 3000), len(data))]
    place = draw.choice(draw.choice([*ends, range(len(data))]))  # headers and directories often
    ways = ["bit", "byte", "bytes", "digit", "cut", "zeros", "longer", "gone", "other", "folder"]
    ways += ["lines"] if kind in ("config.json", "progress.csv") else []
    way = draw.choices(ways, [4, 4, 2, 4, 2, 2, 1, 0.5, 1, 0.5, 4][: len(ways)])[0]
    if way == "bit":
        data[place] ^= 1 << draw.randrange(8)
    elif way == "byte":
        data[place] = draw.randrange(256)
    elif way == "bytes":
        for i in draw.sample(range(len(data)), 8):
            data[i] = draw.randrange(256)
    elif way == "digit":  # one printable character near the place becomes another
        near = [i for i in range(place, min(place + 500, len(data))) if 32 < data[i] < 127]
        data[draw.choice(near or [place])] = draw.choice(b"0123456789-.,:'\"()[]{}<>|=eOSUVfiu")
    elif way == "cut":
        del data[place:]
    elif way == "zeros":
        size = min(draw.choice([1, 8, 64, 512, 4096]), len(data) - place)
        data[place : place + size] = bytes(size)
    elif way == "longer":
        data += draw.randbytes(draw.choice([1, 22, 1000, 70000]))
    elif way == "other":
        source = draw.choice([other / path.name, *folder.iterdir()])
        data = bytearray(source.read_bytes())
    elif way == "lines":
        lines = data.decode().splitlines(keepends=True)
        lines = draw.choice(
            [lines + lines, lines[::-1], lines[::2], draw.sample(lines, len(lines))]
        )
        data = bytearray("".join(lines).encode())
    if way in ("gone", "folder"):
        path.unlink()
        if way == "folder":
            path.mkdir()
    else:
        path.write_bytes(data)
    return f"{path.name}: {way} at byte {place}"


class Hang(BaseException):
    """Not an Exception, which sac.py may well catch."""


def fuzz_once(draw, place, originals, right, counts):
    """One spoilt copy of a run folder, resumed; and drawn, if it is still a folder of text."""

    def hang(*_):
        raise Hang(f"no end after {PATIENCE} s")

    folder = Path(shutil.copytree(originals / "1", place / "run"))
    told = spoil(draw, folder, originals / "2")
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        if told.startswith(("config", "progress")):
            code, errors = silent_main("--plot", folder, "--out", place / "plot.png")
            assert code in (0, 2), f"--plot: exit code {code}: {errors}"
        found = go_on(folder)
    except BaseException as error:
        raise AssertionError(f"{told}: {type(error).__name__}: {error}") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if found == "refused":
        after = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        assert after == before, f"{told}: refused, but files changed"
    else:
        assert found == right, f"{told}: goes on differently"
    counts["refused" if found == "refused" else "went on identically"] += 1


# Long runs, large saves


def long_run(steps):
    """Speed by CPU time, which other programs do not change, and memory, at the start and end."""
    config = sac.Config(
        steps=steps, buffer_size=steps // 3, hidden=32, batch_size=32, warmup=1_000,
        log_every=steps // 30, eval_every=steps, eval_episodes=1, device="cpu", threads=1,
    )  # fmt: skip
    sac.configure_torch(config)
    run, speeds, memory, before = sac.Run(config), [], [], time.process_time()
    for _ in run:
        speeds.append(config.log_every / (time.process_time() - before))
        status = Path("/proc/self/status").read_text()
        memory.append(int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024)
        print(f"{run.step:,}: {speeds[-1]:.0f} steps a CPU second, {memory[-1]:.0f} MB", flush=True)
        before = time.process_time()
    first, last = np.mean(speeds[1:4]), np.mean(speeds[-4:-1])
    full, end = memory[11], memory[-2]  # a little after the replay was full, and before the end
    line = f"{steps:,} steps, replay of {config.buffer_size:,}, 32 units, batch 32: "
    line += f"{first:.0f} steps a CPU second at first, {last:.0f} at last; "
    return line + f"{full:.0f} MB with a full replay, {end:.0f} MB at the end", (
        ["slower by a tenth"] if last < 0.9 * first else []
    ) + (["memory grew"] if end > full + 10 else [])


def large_save(times, place):
    """Seconds that a save of a full million takes, of HalfCheetah with the default networks."""
    run = sac.Run(sac.Config(steps=1_000_000, device="cpu", threads=1), folder=place / "run")
    run.buffer.rows.uniform_(-1, 1)
    run.buffer.added = 1_000_000
    seconds = []
    for run.step in range(1, times + 1):
        start = time.perf_counter()
        run.save()
        seconds.append(time.perf_counter() - start)
    size = sum(path.stat().st_size for path in run.folder.iterdir()) / 1e6
    line = f"a million transitions, {size:.0f} MB, saved in {np.median(seconds):.2f} s (median), "
    slowest = max(seconds)
    return line + f"{slowest:.2f} s (slowest of {times})", ["too slow"] if slowest > 2 else []


# All


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["kill", "fuzz", "long", "save"])
    parser.add_argument("--times", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first time")
    flags = parser.parse_args()
    counts, failures, start = collections.Counter(), [], time.monotonic()
    root = Path(tempfile.mkdtemp(prefix="soak-"))
    memory = functools.partial(resource.getrusage, resource.RUSAGE_SELF)
    if flags.what in ("long", "save"):
        once = functools.partial(large_save, place=root) if flags.what == "save" else long_run
        line, failures = once(flags.times)
        shutil.rmtree(root)
        return finish(flags.what, line, failures, start)
    if flags.what == "kill":
        (root / "whole").mkdir()
        once = functools.partial(kill_once, whole=whole_runs(root / "whole"))
    else:
        right = originals(root)
        once = functools.partial(fuzz_once, originals=root, right=right)
    first_peak = memory().ru_maxrss
    for i in range(flags.first, flags.first + flags.times):
        place = root / f"time{i}"
        place.mkdir()
        try:
            once(random.Random(f"{flags.seed} {i}"), place, counts=counts)
            shutil.rmtree(place)
        except Exception as error:
            failures.append(f"number {i}: {error}")
            print(f"{failures[-1]} (kept in {place})", flush=True)
            traceback.print_exc()
    grown = (memory().ru_maxrss - first_peak) * (1 if sys.platform == "darwin" else 1024)
    if grown > 1e9:
        failures.append(f"the process grew by {grown / 1e9:.1f} GB")
    if not failures:
        shutil.rmtree(root)

    line = f"{flags.what}: seed {flags.seed}, times {flags.times}, failed {len(failures)}; "
    line += ", ".join(f"{name} {n}" for name, n in sorted(counts.items()))
    return finish(flags.what, line, failures, start)


def finish(what, line, failures, start):
    """Prints and keeps what came out; returns the exit code."""
    names = ("torch", "gymnasium", "numpy", "mujoco")
    checksum = zlib.crc32(Path(sac.__file__).read_bytes())
    about = [f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in names)]
    about += [platform.system(), f"sac.py {checksum:08x}", f"{time.monotonic() - start:.0f} s"]
    summary = "\n".join([line, ", ".join(about), *failures])
    print(summary)
    (RESULTS / f"soak-{what}.txt").write_text(summary + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
