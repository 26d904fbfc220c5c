"""Runs killed and folders spoilt many times; a long run; a large save.

    python benchmarks/soak.py kill --times 60      kill runs, resume them, compare the ends
    python benchmarks/soak.py fuzz --times 500     spoil a run folder's files, resume, compare
    python benchmarks/soak.py long --times 300000  so many steps: does speed fall, memory grow?
    python benchmarks/soak.py save --times 5       save a million HalfCheetah transitions

Each time has its own random numbers: `--first 17 --times 1` repeats number 17 alone, with the same
`--seed`. The exit code is 1 if anything failed; the summary goes to runs/soak-WHAT.txt, or with
`--out benchmarks/results` on record. Linux or macOS, since it forks.
"""

import argparse
import collections
import contextlib
import csv
import functools
import io
import itertools
import os
import platform
import random
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from importlib.metadata import version
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.classic_control import PendulumEnv
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from conftest import flat, learned

import sac

FLAGS = "--hidden 8 --batch-size 16 --warmup 150 --log-every 50 --eval-every 150 --eval-episodes 1"
FLAGS = (FLAGS + " --threads 1 --matmul-precision highest").split()


# Runs that are killed, each with saves between its episodes alone: so it must end bit for bit alike


class DictPendulum(PendulumEnv):
    """A Pendulum with Dict observations."""

    def __init__(self):
        super().__init__()
        box = self.observation_space
        parts = {"tip": box.low[:2], "speed": box.low[2:]}
        self.observation_space = gym.spaces.Dict(
            {name: gym.spaces.Box(low, -low, dtype=np.float32) for name, low in parts.items()}
        )

    def _get_obs(self):
        obs = super()._get_obs()
        return {"tip": obs[:2], "speed": obs[2:]}


ENVS = {  # a ring buffer that overflows, Dict observations, a task that ends itself, and Box2D
    "ShortPendulum-v0": "--steps 450 --buffer-size 180 --save-every 50",
    "DictPendulum-v0": "--steps 350 --save-every 50",
    "InvertedPendulum-v4": "--steps 300 --save-every 1000",
    "ShortLander-v0": "--steps 350 --save-every 50",
}
gym.register("ShortPendulum-v0", PendulumEnv, max_episode_steps=50)
gym.register("DictPendulum-v0", DictPendulum, max_episode_steps=50)
lander = "gymnasium.envs.box2d:LunarLander"
gym.register("ShortLander-v0", lander, max_episode_steps=50, kwargs={"continuous": True})


def quick_picture(runs):
    """In place of sac.plot_runs, which takes half a second."""
    figure = Figure(figsize=(1, 1))
    figure.figimage(np.random.default_rng(0).random((100, 100, 3)))
    return figure


def child(env, place, pipe, kill):
    """Trains in this process: '(' and ')' go to the pipe where a save begins and ends. `kill`, such
    as ("fsync", 3, True), ends it before (True) or after the third call of os.fsync."""
    output = os.open(place / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.chdir(place)
    save = sac.Run.save

    def marked(*arguments, **named):
        os.write(pipe, b"(")
        save(*arguments, **named)
        os.write(pipe, b")")

    sac.Run.save = marked
    if kill:
        name, number, before = kill
        original, count = getattr(os, name), itertools.count(1)

        def deadly(*arguments):
            now = next(count) == number
            if not (now and before):
                original(*arguments)
            if now:
                os.kill(os.getpid(), signal.SIGKILL)

        setattr(os, name, deadly)
    return sac.main(["--env", env, *FLAGS, *ENVS[env].split(), "--resume"])


def live(env, place, kill=None, after=float("inf"), in_save=None):
    """Forks a process that trains in `place`, and kills it `after` so many seconds or, with
    `in_save` (n, seconds), so long after its nth save has begun. Returns its exit code, what it
    wrote to the pipe, and the seconds of its run and of its longest save."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    if (pid := os.fork()) == 0:
        code = 99
        try:
            code = child(env, place, writing, kill)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    start, marks, longest = time.monotonic(), b"", 0.0
    while True:
        left = max(0, start + min(after, 120) - time.monotonic())
        ready = select.select([reading], [], [], left)[0]
        mark = os.read(reading, 1) if ready else b""
        if mark == b"(":
            began = time.monotonic()
        elif mark == b")":
            longest = max(longest, time.monotonic() - began)
        marks += mark
        if in_save and marks.count(b"(") == in_save[0]:
            time.sleep(in_save[1])
            mark = b""
        if not mark:
            if not ready or in_save:
                os.kill(pid, signal.SIGKILL)  # an ended process does not mind
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            marks += os.read(reading, 1000)
            os.close(reading)
            return code, marks, time.monotonic() - start, longest


def load(folder):
    """Run.load without its warnings: this process has other threads than the saved one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sac.Run.load(folder)


def outcome(folder):
    """All that a run has learned, stored and reported; its table; and its files."""
    run = load(folder)
    contents = flat(run.agent.state_dict()), flat(run.buffer.state_dict())
    with open(folder / "progress.csv", newline="") as file:
        rows = learned(csv.DictReader(file))
    names = {path.name for path in folder.iterdir() if path.suffix != ".tmp"}
    return {"contents": (contents, learned(run.history)), "rows": rows, "files": names}


def run_folder(place):
    """The only folder below in which a run was saved."""
    (path,) = place.rglob("checkpoint.pt")
    return path.parent


def whole_runs(place):
    """For each environment: the outcome of a run that nothing interrupts, and its seconds."""
    torch.set_num_threads(1)
    for env in ENVS:
        sac.make_env(env)
    sac.plot_runs = quick_picture
    quick_picture([]).savefig(io.BytesIO())
    whole = {}
    for env in ENVS:
        (place / env).mkdir()
        code, marks, *seconds = live(env, place / env)
        assert code == 0 and marks.count(b"()") > 1, (place / env / "output.txt").read_text()
        whole[env] = outcome(run_folder(place / env)), marks.count(b"("), *seconds
    return whole


def kill_once(draw, place, whole, counts):
    """One run, killed up to three times and resumed each time by the same command."""
    env = draw.choice(list(whole))
    right, saves, seconds, longest = whole[env]
    for _ in range(draw.randint(1, 3)):
        how = {
            "after": {"after": draw.uniform(0, 1.1 * seconds)},
            "in_save": {"in_save": (draw.randint(1, saves), draw.uniform(0, longest))},
            "kill": {"kill": (draw.choice(["replace", "fsync"]), draw.randint(1, 4 * saves),
                              draw.random() < 0.5)},
        }  # fmt: skip
        code, marks, *_ = live(env, place, **how[draw.choice(list(how))])
        if code == 0:
            counts["kills that came too late"] += 1
            break
        assert code == -signal.SIGKILL, f"exit code {code}"
        where = "inside a save" if marks.endswith(b"(") else "elsewhere"
        counts[f"killed {where if marks else 'before its first save'}"] += 1
    if code:
        code = live(env, place)[0]
    assert code == 0, f"exit code {code} after the kills"
    found = outcome(run_folder(place))
    for name in right:
        assert found[name] == right[name], f"{env}: other {name} than those of a whole run"
    counts["resumed to an identical end"] += 1


# Files that are spoilt

PATIENCE = 60  # seconds until a spoilt folder counts as a hang
SPOILT = {"checkpoint.pt": 6, "config.json": 1, "progress.csv": 1, "learning_curve.png": 1}
WAYS = {"bit": 4, "byte": 4, "bytes": 2, "digit": 4, "cut": 2, "zeros": 2, "longer": 1, "gone": 0.5,
        "other": 1, "folder": 0.5, "lines": 4}  # fmt: skip


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
    return outcome(folder)["contents"]


def original(folder):
    """Trains a run folder, saved at step 200; how a copy of it goes on."""
    draw = sac.plot_runs
    sac.plot_runs = lambda runs: (quick_picture if isinstance(runs[0], sac.Run) else draw)(runs)
    code, errors = silent_main("--env", "Pendulum-v1", "--steps", 200, *FLAGS, "--out", folder)
    assert code == 0, errors
    return go_on(Path(shutil.copytree(folder, folder.with_name("end"))))


def spoil(draw, folder):
    """Changes one file of the folder; says how."""
    path = folder / draw.choices(list(SPOILT), SPOILT.values())[0]
    data = bytearray(path.read_bytes())
    ends = [range(min(160, len(data))), range(max(0, len(data) - 3000), len(data))]
    place = draw.choice(draw.choice([*ends, range(len(data))]))  # headers and directories often
    ways = [way for way in WAYS if way != "lines" or path.suffix in (".json", ".csv")]
    way = draw.choices(ways, [WAYS[way] for way in ways])[0]
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
        data = draw.choice([x for x in folder.iterdir() if x != path]).read_bytes()
    elif way == "lines":
        lines = data.decode().splitlines(keepends=True)
        shuffled = draw.sample(lines, len(lines))
        lines = draw.choice([lines + lines, lines[::-1], lines[::2], shuffled])
        data = "".join(lines).encode()
    if way in ("gone", "folder"):
        path.unlink()
        if way == "folder":
            path.mkdir()
    else:
        path.write_bytes(data)
    return f"{path.name}: {way} at byte {place}"


class Hang(BaseException):
    """Not an Exception, which sac.py may well catch."""


def fuzz_once(draw, place, source, right, counts):
    """One spoilt copy of a run folder, resumed; and drawn, if it is still a folder of text."""

    def hang(*_):
        raise Hang(f"no end after {PATIENCE} s")

    folder = Path(shutil.copytree(source, place / "run"))
    told = spoil(draw, folder)
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
        steps=steps, buffer_size=steps // 3, hidden=32, batch_size=32, warmup=steps // 60,
        log_every=steps // 30, eval_every=steps, eval_episodes=1, threads=1,
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
    line += f"{full:.0f} MB with a full replay, {end:.0f} MB at the end"
    slower = ["slower by a tenth"] if last < 0.9 * first else []
    return line, slower + (["memory grew"] if end > full + 10 else [])


def large_save(times, place):
    """Seconds that a save of a full million takes, of HalfCheetah with the default networks."""
    run = sac.Run(sac.Config(steps=1_000_000, threads=1), folder=place / "run")
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
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the summary")
    flags = parser.parse_args()
    flags.out.mkdir(parents=True, exist_ok=True)
    counts, failures, start = collections.Counter(), [], time.monotonic()
    root = Path(tempfile.mkdtemp(prefix="soak-"))
    if flags.what == "long":
        line, failures = long_run(flags.times)
    elif flags.what == "save":
        line, failures = large_save(flags.times, root)
    else:
        (root / "whole").mkdir()
        if flags.what == "kill":
            once = functools.partial(kill_once, whole=whole_runs(root / "whole"))
        else:
            source = root / "whole" / "run"
            once = functools.partial(fuzz_once, source=source, right=original(source))
        many_times(once, flags, root, counts, failures)
        line = f"{flags.what}: seed {flags.seed}, times {flags.times}, failed {len(failures)}; "
        line += ", ".join(f"{name} {n}" for name, n in sorted(counts.items()))
    if not failures or flags.what in ("long", "save"):
        shutil.rmtree(root)
    names = ("torch", "gymnasium", "numpy", "mujoco")
    checksum = zlib.crc32(Path(sac.__file__).read_bytes())
    about = [f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in names)]
    about += [platform.system(), f"sac.py {checksum:08x}", f"{time.monotonic() - start:.0f} s"]
    summary = "\n".join([line, ", ".join(about), *failures])
    print(summary)
    (flags.out / f"soak-{flags.what}.txt").write_text(summary + "\n")
    return 1 if failures else 0


def many_times(once, flags, root, counts, failures):
    """Calls once(draw, place, counts=counts) so many times, each in a new folder."""
    usage = functools.partial(resource.getrusage, resource.RUSAGE_SELF)
    first_peak = usage().ru_maxrss
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
    grown = (usage().ru_maxrss - first_peak) * (1 if sys.platform == "darwin" else 1024)
    if grown > 1e9:
        failures.append(f"the process grew by {grown / 1e9:.1f} GB")


if __name__ == "__main__":
    sys.exit(main())
