"""Saves outlive a killed process, a full disk, and files that are not what they say.

Run as a script (the tests do that) this file makes processes for them: it imports all that `sac.py`
needs once, then forks itself for each line of its input, which spares seconds a process.
"""

import builtins
import contextlib
import csv
import errno
import io
import itertools
import json
import math
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, WALL_CLOCK, Clock, flat, learned

import sac

SETTINGS = TINY | {"env": "Pendulum-v1", "steps": 120, "device": "cpu", "save_every": 30}
KEPT = {"config.json", "progress.csv", "checkpoint.pt", "learning_curve.png"}
COMMON = "--hidden 8 --batch-size 16 --warmup 150 --log-every 50 --eval-every 200 --eval-episodes 1"
COMMON += " --threads 1 --matmul-precision highest --device cpu"
RUNS = {  # one that only time ends, one that ends itself every few steps, one in Box2D
    "Pendulum-v1": "--steps 450 --buffer-size 180 --save-every 1",
    "InvertedPendulum-v4": "--steps 250 --save-every 60",
    "LunarLanderContinuous-v3": "--steps 350 --save-every 1",
}


def command(env):
    """What is typed again and again until the run is done, wherever it broke off."""
    return ["--env", env, *COMMON.split(), *RUNS[env].split(), "--resume"]


# Processes that die


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def arm(at, nth=1, when="before", name=""):
    """This process will die at the nth call of `at`: before it, after it, when half of its bytes
    are in the file, or (a number) so many function calls later. `name` is in os.replace's target.
    """
    owners = {"replace": os, "fsync": os, "torch.save": torch, "advance": sac.Run}
    owner, function = owners[at], at.rpartition(".")[2]
    original, count = getattr(owner, function), itertools.count(1)

    def deadly(*arguments, **named):
        if (name and name not in str(arguments[-1])) or next(count) != nth:
            return original(*arguments, **named)
        if isinstance(when, int):
            later = itertools.count()
            sys.setprofile(lambda *_: next(later) >= when and die())
            return original(*arguments, **named)
        if when == "half":
            file, whole = next(x for x in arguments if hasattr(x, "write")), io.BytesIO()
            original(*(whole if x is file else x for x in arguments))
            file.write(whole.getvalue()[: whole.tell() // 2])
            file.flush()
        elif when == "after":
            original(*arguments, **named)
        die()

    setattr(owner, function, deadly)


def live(argv, folder, prepare=None, kill_after=math.inf, patience=120):
    """`sac.py argv` in a forked process in `folder`: its exit code, negative where a signal ended
    it. `prepare` is called there first. What it prints goes to output.txt."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.chdir(folder)
            output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            if prepare:
                prepare()
            code = sac.main(argv)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    start = time.monotonic()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        lived = time.monotonic() - start
        if lived > min(kill_after, patience):
            os.kill(child, signal.SIGKILL)
        if lived > patience + 10:
            raise TimeoutError(f"{argv} in {folder} does not end")
        time.sleep(0.002)


def quick_picture(runs):
    """In place of sac.plot_runs, which takes half a second: a picture larger than a checkpoint."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3, 3))
    figure.figimage(np.random.default_rng(0).random((300, 300, 3)))
    return figure


def warm_up():
    """Imports what every run needs, and computes nothing yet: then it is safe to fork."""
    torch.set_num_threads(1)
    for env in RUNS:
        sac.make_env(env)
    sac.plot_runs = quick_picture
    quick_picture([]).savefig(io.BytesIO())


def serve():
    """Forks a process for each line of input, [argv, folder, kill], and prints its exit code."""
    warm_up()
    for line in sys.stdin:
        argv, folder, kill = json.loads(line)
        print(live(argv, folder, kill and (lambda kill=kill: arm(**kill))), flush=True)


@pytest.fixture(scope="module", autouse=True)
def pictures():
    """Quick ones in this file; yields what draws the real ones."""
    with pytest.MonkeyPatch.context() as patch:
        original = sac.plot_runs
        patch.setattr(sac, "plot_runs", quick_picture)
        yield original


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    """process(env, folder, kill) runs `command(env)`; process.whole(env) is a folder it left that
    nothing interrupted."""
    if not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    paths = os.pathsep.join([str(Path(sac.__file__).parent), os.environ.get("PYTHONPATH", "")])
    server = subprocess.Popen(
        [sys.executable, __file__],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    done = {}

    def process(env, folder, kill=None):
        print(json.dumps([command(env), str(folder), kill]), file=server.stdin, flush=True)
        return int(server.stdout.readline())

    def whole(env):
        if env not in done:
            done[env] = tmp_path_factory.mktemp(env)
            assert process(env, done[env]) == 0, (done[env] / "output.txt").read_text()
        return run_folder(done[env])

    process.whole = whole
    yield process
    server.stdin.close()
    server.wait()


def run_folder(place):
    """The only folder below in which a run was saved."""
    (path,) = place.rglob("checkpoint.pt")
    return path.parent


def contents(run):
    """All that a run has learned, stored and reported: equal if bit-identical."""
    rows = run.buffer.rows[: len(run.buffer)].tolist()
    return learned(run.history), flat(run.agent.state_dict()), rows


def table(folder):
    """progress.csv without the columns of the clock."""
    with open(folder / "progress.csv", newline="") as file:
        return [{k: v for k, v in x.items() if k not in WALL_CLOCK} for x in csv.DictReader(file)]


def load(folder, **changes):
    """Run.load without its warnings: this process has other threads than the saved one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sac.Run.load(folder, **changes)


def random_moment(seed):
    """A kill at a random step, and at a random function call from there."""
    draw = random.Random(seed)
    return {"at": "advance", "nth": draw.randint(10, 200), "when": draw.randrange(3000)}


KILLS = {
    "in the middle of writing a checkpoint": (
        "Pendulum-v1",
        [{"at": "torch.save", "nth": 3, "when": "half"}],
    ),
    "at two random moments": ("Pendulum-v1", [random_moment(1), random_moment(2)]),
    "between writing a checkpoint and naming it": (
        "InvertedPendulum-v4",
        [{"at": "replace", "name": "checkpoint", "nth": 3}],
    ),
    "within the first save, then soon after a new beginning": (
        "InvertedPendulum-v4",
        [{"at": "torch.save", "when": "half"}, {"at": "advance", "nth": 30}],
    ),
    "before the rows of a new checkpoint are written": (
        "LunarLanderContinuous-v3",
        [{"at": "replace", "name": "checkpoint", "nth": 2, "when": "after"}],
    ),
    "within the last save, which none will follow": (
        "Pendulum-v1",
        [{"at": "replace", "name": "checkpoint", "nth": 4, "when": "after"}],
    ),
    "in the middle of writing the rows, then at random": (
        "LunarLanderContinuous-v3",
        [{"at": "replace", "name": "progress", "nth": 5}, random_moment(3)],
    ),
}


@pytest.mark.parametrize("case", KILLS)
def test_a_killed_run_goes_on_as_if_nothing_had_been(process, tmp_path, case):
    """Catches a checkpoint that is written in place, state that a save leaves out, rows doubled or
    lost, and a run killed before its first save that the same command does not begin again."""
    env, kills = KILLS[case]
    whole = process.whole(env)
    for kill in kills:
        assert process(env, tmp_path, kill) == -signal.SIGKILL, "the kill never came"
    assert process(env, tmp_path) == 0, (tmp_path / "output.txt").read_text()
    folder = run_folder(tmp_path)
    assert contents(load(folder)) == contents(load(whole))
    assert table(folder) == table(whole)
    names = {path.name for path in folder.iterdir() if path.suffix != ".tmp"}
    assert names == {path.name for path in whole.iterdir()}


def test_data_reach_the_disk_before_their_name(tmp_path, monkeypatch):
    """Catches a rename without fsync, which SIGKILL cannot show: after a power cut the name may be
    there and the data not."""
    safe, replaced = set(), []
    fsync, replace = os.fsync, os.replace

    def record_fsync(number):
        fsync(number)
        safe.add((os.fstat(number).st_ino, os.fstat(number).st_size))

    def record_replace(source, target):
        assert (os.stat(source).st_ino, os.stat(source).st_size) in safe, target
        replaced.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    run, rows = disk_run(tmp_path / "run")
    run_to(100, run, rows)
    assert {"checkpoint.pt", "config.json", "progress.csv"} <= set(replaced)


# A disk that is full, read-only or gone


def disk_run(folder, limit=50):
    """300 steps, saved at 100, 200 and 300, unless the disk is in the way."""
    settings = TINY | {"steps": 300, "save_every": 100, "log_every": 50, "eval_every": 150}
    config = sac.Config(**settings | {"device": "cpu", "warmup": 250})
    run = sac.Run(config, env=lambda: Clock(limit), folder=folder)
    return run, iter(run)


def run_to(step, run, rows):
    """Takes rows up to that step's; returns the text of every warning on the way."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        while run.step < step:
            next(rows)
    return [str(warning.message) for warning in caught]


@contextlib.contextmanager
def largest_file(size):
    """No file can grow beyond so many bytes: the system refuses, in the middle of a write too."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Full:
    """A file on a disk with room for so many bytes more."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def writelines(self, lines):
        for line in lines:
            self.write(line)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


@contextlib.contextmanager
def broken_disk(folder, room):
    """Files in the folder have room for so many bytes; or, None, cannot be opened for writing."""
    original = io.open

    def refuse(path, mode="r", *arguments, **named):
        if isinstance(path, int) or Path(path).parent != folder or mode[0] == "r":
            return original(path, mode, *arguments, **named)
        if room is None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return Full(original(path, mode, *arguments, **named), room)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io, "open", refuse)
        patch.setattr(builtins, "open", refuse)
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The same run on a good disk, and the sizes of its files at step 200."""
    folder = tmp_path_factory.mktemp("disk") / "run"
    run, rows = disk_run(folder)
    assert run_to(200, run, rows) == []
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert run_to(300, run, rows) == []
    return contents(run), sizes


TROUBLE = {
    "nothing fits any more": lambda folder, sizes: largest_file(0),
    "full within the checkpoint": lambda folder, sizes: largest_file(sizes["checkpoint.pt"] // 2),
    "full within the picture": lambda folder, sizes: largest_file(
        (sizes["checkpoint.pt"] + sizes["learning_curve.png"]) // 2
    ),
    "no space at all": lambda folder, sizes: broken_disk(folder, 0),
    "no space after 600 bytes": lambda folder, sizes: broken_disk(folder, 600),
    "no space after 6000 bytes": lambda folder, sizes: broken_disk(folder, 6000),
    "read-only": lambda folder, sizes: broken_disk(folder, None),
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_a_full_or_read_only_disk_costs_a_save_and_no_more(tmp_path, undisturbed, trouble):
    """Catches a run that ends with its disk, a last good save that is lost, silence, a half file
    that is left on a disk that is full, and a run that never saves again."""
    whole, sizes = undisturbed
    folder = tmp_path / "run"
    run, rows = disk_run(folder)
    assert run_to(100, run, rows) == []
    good = contents(run)
    with TROUBLE[trouble](folder, sizes):
        told = run_to(200, run, rows)
    assert run.step == 200
    assert 1 <= len(told) <= 3  # the save, and the rows of steps 150 and 200
    for line in told:
        assert "cannot write" in line and str(folder) in line and "\n" not in line
    saved = sac.Run.load(folder, env=lambda: Clock(50))
    if trouble == "full within the picture":
        assert saved.step == 200
    else:
        assert saved.step == 100 and contents(saved) == good
    assert [path.name for path in folder.glob("*.tmp")] == []
    assert run_to(300, run, rows) == []
    assert contents(run) == whole == contents(sac.Run.load(folder, env=lambda: Clock(50)))
    assert {path.name for path in folder.iterdir()} == KEPT


def test_rows_that_a_full_disk_refused_are_written_later(tmp_path, pictures):
    """Catches a progress.csv with a hole, or with half a row that the next one is glued to."""
    run, rows = disk_run(tmp_path / "run")
    run_to(100, run, rows)
    with largest_file((tmp_path / "run" / "progress.csv").stat().st_size + 20):
        assert run_to(200, run, rows)
    assert run_to(300, run, rows) == []
    assert [row["step"] for row in table(tmp_path / "run")] == [
        "50",
        "100",
        "150",
        "200",
        "250",
        "300",
    ]
    pictures([tmp_path / "run"])


def test_a_resume_on_a_full_disk_empties_nothing(tmp_path):
    """Catches config.json and progress.csv opened for writing, and so emptied, before it shows
    that there is no room to write them again."""
    folder = tmp_path / "run"
    run, rows = disk_run(folder)
    run_to(100, run, rows)
    before = (folder / "config.json").read_text(), table(folder)
    with largest_file(0):
        run = sac.Run.load(folder, env=lambda: Clock(50))
        assert run_to(150, run, iter(run))
    after = (folder / "config.json").read_text(), table(folder)
    assert after[0] == before[0] and after[1][: len(before[1])] == before[1]


def test_a_full_disk_is_not_tried_at_every_episode(tmp_path):
    """Catches a save that fails and is due again five steps later, and again: the whole replay is
    copied and a line is printed each time, thousands of times."""
    run, rows = disk_run(tmp_path / "run", limit=5)
    run_to(100, run, rows)
    with broken_disk(tmp_path / "run", 0):
        told = run_to(250, run, rows)
    assert len(told) <= 1 + 3, f"{len(told)} warnings for one save and three rows"


def test_a_file_that_cannot_be_replaced_costs_no_save(tmp_path):
    """Catches a checkpoint that is not written because config.json or progress.csv could not be:
    on Windows it is enough that a spreadsheet has the table open. (Here, folders of their names.)
    """
    folder = tmp_path / "run"
    run, rows = disk_run(folder)
    run_to(100, run, rows)
    for name in ("config.json", "progress.csv"):
        (folder / name).unlink()
        (folder / name).mkdir()
    assert all("cannot write" in line for line in run_to(200, run, rows))
    assert sac.Run.load(folder, env=lambda: Clock(50)).step == 200


def test_a_folder_that_was_deleted_stops_nothing(tmp_path, undisturbed):
    """Catches a run of hours that ends because somebody tidied up, or that never saves again."""
    folder = tmp_path / "run"
    run, rows = disk_run(folder)
    run_to(100, run, rows)
    shutil.rmtree(folder)
    told = run_to(200, run, rows)
    assert 1 <= len(told) <= 3 and all("cannot write" in line for line in told)
    folder.mkdir(exist_ok=True)
    assert run_to(300, run, rows) == []
    assert contents(sac.Run.load(folder, env=lambda: Clock(50))) == undisturbed[0]


# Files from elsewhere


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """Two runs saved at step 200 of 250, which differ in their seed; and how the first ends."""
    place = tmp_path_factory.mktemp("origin")
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    for seed in (1, 2):
        config = TINY | {"env": "Pendulum-v1", "steps": 250, "seed": seed, "device": "cpu"}
        run = sac.Run(sac.Config(**config, eval_every=250))
        while run.step < 200:
            next(iter(run))
        run.save(place / f"seed{seed}")
    shutil.copytree(place / "seed1", place / "end")
    return place, ending(place / "end")


@pytest.fixture
def copy(origin, tmp_path):
    """A saved run to be spoilt."""
    return shutil.copytree(origin[0] / "seed1", tmp_path / "run")


def ending(folder):
    """What becomes of the run saved there: its contents at the end, or the UsageError's text."""
    try:
        run = load(folder)
    except sac.UsageError as refusal:
        return str(refusal)
    list(run)
    return contents(run)


def assert_refused(folder):
    """In one line, with nothing changed."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    refusal = ending(folder)
    assert isinstance(refusal, str), "it was taken for a good save"
    assert "\n" not in refusal and str(folder) in refusal, refusal
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def state_of(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


class Bomb:
    """An object whose unpickling makes a directory."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("where", ["checkpoint", "old format", "bare pickle"])
def test_a_file_from_elsewhere_runs_no_code(copy, where):
    """Catches weights_only=False: whoever sends a run would command here."""
    mark = copy.parent / "mark"
    path = copy / "checkpoint.pt"
    state = state_of(copy) | {"bomb": Bomb(mark)}
    if where == "bare pickle":
        path.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=where == "checkpoint")
    assert_refused(copy)
    assert sac.main(["--play", str(copy)]) == sac.main(["--resume", str(copy)]) == 2
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists()  # the bomb was live


def test_another_networks_checkpoint_is_refused(origin, copy):
    """Catches weights of one size that are read into another, and a traceback for it."""
    state = state_of(copy)
    state["config"]["hidden"] = 24
    torch.save(state, copy / "checkpoint.pt")
    assert_refused(copy)


def test_a_truncated_file_is_refused(copy):
    """Catches half a file that is good enough for a loader."""
    path = copy / "checkpoint.pt"
    whole = path.read_bytes()
    for length in (0, 1, 10, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert_refused(copy)
    path.unlink()
    assert_refused(copy)


@pytest.mark.parametrize("step", [-5, 251, "7", True, torch.tensor(0.5)])
def test_a_step_that_cannot_be_is_refused(copy, step):
    """Catches a counter from a crafted file that trains on, or for ever."""
    torch.save(state_of(copy) | {"step": step}, copy / "checkpoint.pt")
    assert_refused(copy)


def test_rows_of_another_shape_are_refused(copy):
    """Catches one number that is broadcast into the whole replay."""
    state, whole = state_of(copy), state_of(copy)["buffer"]["rows"]
    for crafted in (whole[:1, :1].clone(), whole[:1, :1].expand(whole.shape)):
        state["buffer"]["rows"] = crafted
        torch.save(state, copy / "checkpoint.pt")
        assert_refused(copy)


@pytest.mark.parametrize("name", ["means", "squares", "steps"])
@pytest.mark.parametrize("part", ["actor", "critic", "alpha"])
def test_moments_of_another_shape_are_refused(copy, part, name):
    """Catches a short tensor that the fused Adam reads and writes past its end."""
    state = state_of(copy)
    state["agent"][f"{part}_optimizer"][name][0] = torch.zeros(3)
    torch.save(state, copy / "checkpoint.pt")
    assert_refused(copy)


def test_a_learning_rate_that_is_no_number_is_refused(copy):
    """Catches a rate that is found to be a word at the first update, hours later."""
    state = state_of(copy)
    state["agent"]["actor_optimizer"]["lr"] = "fast"
    torch.save(state, copy / "checkpoint.pt")
    assert_refused(copy)


def test_moments_that_share_one_number_are_given_memory_of_their_own(copy):
    """Catches the same by a tensor of the right shape that has one number behind it."""
    state = state_of(copy)
    means = state["agent"]["critic_optimizer"]["means"]
    means[0] = torch.zeros(1).expand(means[0].shape)
    torch.save(state, copy / "checkpoint.pt")
    assert sac.Run.load(copy).agent.critic_optimizer.means[0].is_contiguous()


def test_a_checkpoint_that_is_no_file_is_refused(copy):
    """Catches waiting for ever for a pipe, and reading a device until the memory is full."""
    path = copy / "checkpoint.pt"
    path.unlink()
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes in the file system here")
    os.mkfifo(path)
    assert isinstance(ending(copy), str)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert isinstance(ending(copy), str)


def test_compressed_members_are_refused(copy):
    """Catches 1 KB that becomes gigabytes in memory."""
    path = copy / "checkpoint.pt"
    packed = copy / "packed"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    packed.replace(path)
    assert_refused(copy)


def test_a_temporary_file_does_not_follow_a_link(tmp_path):
    """Catches a link in a folder from elsewhere through which a save overwrites another file."""
    (tmp_path / "mine").write_text("mine")
    run = sac.Run(sac.Config(**SETTINGS), env=Clock, folder=tmp_path / "run")
    (tmp_path / "run" / f"checkpoint.pt.{os.getpid()}.tmp").symlink_to(tmp_path / "mine")
    run.save()
    assert (tmp_path / "mine").read_text() == "mine"
    assert sac.Run.load(tmp_path / "run", env=Clock).step == 0


def test_a_picture_that_cannot_be_drawn_stops_no_training(tmp_path, monkeypatch):
    """Catches an error of the plotting library that ends a run."""

    def broken(runs):
        raise KeyError("a broken matplotlib")

    monkeypatch.setattr(sac, "plot_runs", lambda runs: type("Figure", (), {"savefig": broken}))
    run = sac.Run(sac.Config(**SETTINGS), env=Clock, folder=tmp_path / "run")
    with pytest.warns(UserWarning, match="learning_curve"), pytest.raises(OSError):
        list(run)
    assert sac.Run.load(tmp_path / "run", env=Clock).step == run.config.steps


def test_a_flipped_bit_is_refused_or_means_nothing(origin, copy):
    """Catches a weight or reward that changed on its way and is trained on."""
    path = copy / "checkpoint.pt"
    whole, draw = path.read_bytes(), random.Random("flip")
    places = [*range(0, 130, 13), *(draw.randrange(len(whole)) for _ in range(40))]
    for place in places:
        spoilt = bytearray(whole)
        spoilt[place] ^= 1 << draw.randrange(8)
        path.write_bytes(spoilt)
        found = ending(copy)
        refused = isinstance(found, str) and "\n" not in found
        assert refused or found == origin[1], f"byte {place}"
        shutil.rmtree(copy)
        shutil.copytree(origin[0] / "seed1", copy)


def test_a_tensor_that_claims_to_be_a_folder_is_refused(copy):
    """Catches trust in the zip's checksums alone: with this one bit set, which they do not cover,
    PyTorch reads nothing and takes for weights what happened to be in its memory."""
    path = copy / "checkpoint.pt"
    spoilt, changed = bytearray(path.read_bytes()), 0
    for found in re.finditer(rb"PK\x01\x02.{42}[^/]+/data/", bytes(spoilt), re.DOTALL):
        spoilt[found.start() + 38] |= 0x10  # the external attributes of its directory entry
        changed += 1
    assert changed > 20
    path.write_bytes(spoilt)
    assert_refused(copy)


def entries(state, prefix=()):
    """The paths of all keys of a checkpoint but those of its config, three levels deep."""
    for key, value in state.items():
        yield (*prefix, key)
        if isinstance(value, dict) and len(prefix) < 2 and key not in ("config", "versions"):
            yield from entries(value, (*prefix, key))


def test_a_checkpoint_that_lacks_a_key_is_refused_or_means_nothing(origin, copy):
    """Catches a KeyError's traceback, and a counter or generator that silently begins anew."""
    failed = []
    for path in entries(state_of(copy)):
        state = part = state_of(origin[0] / "seed1")
        for key in path[:-1]:
            part = part[key]
        del part[path[-1]]
        torch.save(state, copy / "checkpoint.pt")
        try:
            found = ending(copy)
            if found != origin[1] and (not isinstance(found, str) or "\n" in found):
                failed.append((path, "another run"))
        except Exception as error:
            failed.append((path, repr(error)))
        shutil.rmtree(copy)
        shutil.copytree(origin[0] / "seed1", copy)
    for value in ([], torch.zeros(3), {}, 1):
        torch.save(value, copy / "checkpoint.pt")
        assert_refused(copy)
    assert failed == []


# What a resume believes


@pytest.mark.parametrize("change", ["edited", "nonsense", "deleted"])
def test_a_resume_believes_the_checkpoint_alone(origin, copy, change):
    """Catches settings or rows that are read back from files which people edit."""
    settings = json.loads((copy / "config.json").read_text())
    rows = (copy / "progress.csv").read_text()
    edited = settings | {"config": settings["config"] | {"gamma": 0.5, "seed": 9, "steps": 9}}
    texts = {"edited": (json.dumps(edited), rows + rows), "nonsense": ("\0{", "\0,\xff\n" * 9)}
    for path, text in zip((copy / "config.json", copy / "progress.csv"), texts.get(change, " ")):
        path.unlink() if change == "deleted" else path.write_text(text)
    assert ending(copy) == origin[1]
    assert json.loads((copy / "config.json").read_text()) == settings
    assert table(copy) == table(origin[0] / "end")


def test_progress_never_holds_a_step_twice(tmp_path):
    """Catches rows that came after the last save and come again after the resume."""
    folder = tmp_path / "run"
    run_to(150, *disk_run(folder))
    assert [row["step"] for row in table(folder)] == ["50", "100", "150"]
    run = sac.Run.load(folder, env=lambda: Clock(50))
    for _ in run:
        steps = [int(row["step"]) for row in table(folder)]
        assert steps == list(range(50, run.step + 1, 50))
    assert run.step == 300


if __name__ == "__main__":
    serve()
