"""The command line, most of it as a user meets it: another process in an empty folder."""

import contextlib
import dataclasses
import inspect
import json
import os
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import WALL_CLOCK
from PIL import Image

import sac

SCRIPT = Path(sac.__file__)
SHORT = "--steps 120 --warmup 60 --hidden 8 --batch-size 16 --eval-episodes 1 --threads 1".split()
TOYS = """
import gymnasium as gym, numpy as np

class Toy(gym.Env):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}
    observation_space = gym.spaces.Box(-9, 9, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    def __init__(self, render_mode=None, wrong=None, length=10, **spaces):
        self.render_mode, self.wrong, self.length = render_mode, wrong, length
        vars(self).update(spaces)
        self.total = 0
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), {}
    def step(self, action):
        self.time, self.total = self.time + 1, self.total + 1
        obs, reward = np.zeros(1, np.float32), 1.0
        if self.total == 95 and self.wrong == "observation":
            obs += np.nan
        if self.total == 95 and self.wrong == "reward":
            reward = np.inf
        if self.total == 95 and self.wrong == "loss":
            reward = 1e30
        if self.total == 95 and self.wrong == "error":
            raise KeyError("a bug of its own")
        if self.total == 95 and self.wrong in ("exit", "end"):
            raise {"exit": SystemExit, "end": GeneratorExit}[self.wrong]("a bug of its own")
        return obs, reward, False, self.time == self.length, {}
    def render(self):
        return np.full((64, 64, 3), 20 * self.time, np.uint8)

def toy(name, **kwargs):
    gym.register(name, entry_point=Toy, kwargs=kwargs)

box = gym.spaces.Box
class Blind(Toy):
    metadata = {"render_modes": []}

toy("Toy-v0")
gym.register("Blind-v0", entry_point=Blind)
for wrong in ("observation", "reward", "loss", "error", "exit", "end"):
    toy(f"Nan-{wrong}-v0", wrong=wrong)
toy("Endless-v0", length=None)
toy("Unbounded-v0", action_space=box(-1, np.inf, (1,), np.float32))
toy("Frozen-v0", action_space=box(np.float32([-1, 2]), np.float32([1, 2])))
toy("Whole-v0", action_space=box(0, 9, (2,), np.int64))
toy("Images-v0", observation_space=box(0, 255, (8, 8, 3), np.uint8))
toy("Graphs-v0", observation_space=gym.spaces.Graph(box(-1, 1, (2,)), None))
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working directory, with toy environments to import from elsewhere."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "toys.py").write_text(TOYS)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of other processes
    known = set(gym.registry)
    yield tmp_path / "here"
    sys.modules.pop("toys", None)
    for name in set(gym.registry) - known:
        gym.registry.pop(name)


@pytest.fixture
def call(place, capsys, monkeypatch):
    """main(argv) in this process, which it leaves as it was: exit code, output, errors."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*argv):
        capsys.readouterr()
        code = sac.main([str(word) for word in argv])
        return code, *capsys.readouterr()

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def command(*argv, code=None):
    """The same in a process of its own; `code` is Python to run in place of the script."""
    program = ["-c", code] if code else [SCRIPT, *argv]
    program = [sys.executable, *map(str, program)]
    process = subprocess.run(program, capture_output=True, text=True)
    return process.returncode, process.stdout, process.stderr


def files(folder="."):
    """All files below, with their content."""
    return {str(path): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def assert_refused(result, *words, code=2):
    assert result[0] == code, result
    assert result[2].count("\n") == 1 and "Traceback" not in result[2], result[2]
    for word in words:
        assert word.lower() in result[2].lower(), result[2]


def test_denormal_numbers_are_zero_in_every_thread():
    """Catches setting it when the threads have started: it would reach the first one alone."""
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor cannot")
    x = "torch.full((1_000_000,), 1000, dtype=torch.int32).view(torch.float32)"  # 1.4e-42
    half = f"({x} * 0.5).view(torch.int32).count_nonzero().item()"
    configure = "import sac, torch; sac.configure_torch(sac.Config(threads=2, device='cpu'))"
    assert command(code=f"{configure}; print({half})") == (0, "0\n", "")
    assert command(code=f"import torch; print({half})")[1] == "1000000\n"


def short(flags):
    """The flags, after those that keep a run short should it wrongly begin."""
    return flags.split() if "--pl" in flags else [*SHORT, *flags.split()]


# Bad input


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--env HalfCheetha-v4", ["HalfCheetha", "`HalfCheetah`"]),
        ("--env LunarLanderContinuous-v2", ["LunarLanderContinuous-v3"]),
        ("--env no_such_module:Any-v0", ["no_such_module"]),
        ("--env HalfCheetah", ["HalfCheetah", "full id like Hopper-v4"]),
        ("--env CartPole-v1", ["CartPole-v1", "Discrete(2)", "continuous"]),
        ("--env toys:Whole-v0", ["Whole-v0", "continuous"]),
        ("--env toys:Unbounded-v0", ["Unbounded-v0", "inf", "finite low"]),
        ("--env toys:Frozen-v0", ["Frozen-v0", "low < high"]),
        ("--env toys:Images-v0", ["Images-v0", "images"]),
        ("--env toys:Graphs-v0", ["Graphs-v0", "Graph"]),
        ("--steps 0", ["--steps", "number from 1 to"]),
        ("--steps 1.5", ["--steps", "1.5"]),
        ("--batch-size 0", ["--batch-size", "number from 1 to"]),
        ("--buffer-size -1", ["--buffer-size", "number from 1 to"]),
        ("--hidden 0", ["--hidden", "number from 1 to"]),
        ("--warmup -1", ["--warmup", "number from 0 to"]),
        ("--seed -1", ["--seed", "number from 0 to"]),
        ("--log-every 0", ["--log-every", "number from 1 to"]),
        ("--eval-every 0", ["--eval-every", "number from 1 to"]),
        ("--eval-episodes 0", ["--eval-episodes", "number from 1 to"]),
        ("--save-every 0", ["--save-every", "number from 1 to"]),
        ("--updates-per-step 0", ["--updates-per-step", "number from 1 to"]),
        ("--actor-samples 0", ["--actor-samples", "number from 1 to"]),
        ("--actor-lr 0", ["--actor-lr", "number from "]),
        ("--critic-lr nan", ["--critic-lr", "number from "]),
        ("--alpha-lr inf", ["--alpha-lr", "number from "]),
        ("--alpha -0.1", ["--alpha", "-0.1"]),
        ("--alpha nan", ["--alpha", "nan"]),
        ("--reward-scale 0", ["--reward-scale", "number from "]),
        ("--target-entropy inf", ["--target-entropy", "number from "]),
        ("--stop-at nan", ["--stop-at", "number from "]),
        ("--gamma 1.01", ["--gamma", "number from "]),
        ("--gamma nan", ["--gamma", "number from "]),
        ("--tau 0", ["--tau", "number from "]),
        ("--tau 2", ["--tau", "number from "]),
        ("--variant triple-q", ["triple-q", *sac.VARIANTS]),
        ("--device tpu", ["--device", "tpu", "cpu"]),
        ("--matmul-precision low", ["--matmul-precision", "highest"]),
        ("--threads x", ["--threads", "x"]),
        ("--gama 0.9", ["--gama"]),
        ("--env toys:Toy-v0 --out here", ["here has files", "--resume here"]),
        ("--resume nowhere --out new", ["--out"]),
        ("--resume nowhere", ["no run is saved in nowhere", "checkpoint.pt"]),
        ("--resume here", ["no run is saved in here", "checkpoint.pt"]),
        ("--play nowhere", ["no run is saved in nowhere", "checkpoint.pt"]),
        ("--play here", ["no run is saved in here", "checkpoint.pt"]),
        ("--plot nowhere", ["nowhere", "not the folder of a run"]),
        ("--plot here", ["here", "not the folder of a run"]),
        ("--play here --steps 9 --gamma 0.5", ["--gamma", "play"]),
        ("--episodes 3", ["--episodes", "train"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(call, flags, words):
    """Catches a traceback, a mistake accepted in silence, and folders or files left behind."""
    Path("here").mkdir()
    Path("here", "note").write_text("mine")
    before = files(), set(Path().rglob("*"))
    assert_refused(call(*short(flags)), *words)
    assert (files(), set(Path().rglob("*"))) == before


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--env HalfCheetha-v4", ["`HalfCheetah`"]),
        ("--env toys:Unbounded-v0", ["finite low"]),
        ("--tau 2", ["--tau"]),
        ("--nonsense", ["--nonsense"]),
        ("--resume nowhere", ["nowhere"]),
    ],
)
def test_bad_input_through_a_real_process(place, flags, words):
    """Catches an exit code that main returns and the script drops, and a library's own noise."""
    assert_refused(command(*short(flags)), *words)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    "module, env, extra",
    [("mujoco", "HalfCheetah-v4", "mujoco"), ("Box2D", "LunarLanderContinuous-v3", "box2d")],
)
def test_a_missing_package_is_named_with_its_remedy(place, module, env, extra):
    """Catches an ImportError's traceback on a machine that has gymnasium alone."""
    code = f"""
import sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
sys.modules[{module!r}] = None  # as if it were not installed
import sac
sys.exit(sac.main(["--env", {env!r}]))
"""
    assert_refused(command(code=code), "pip install", extra)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("what", ["observation", "reward", "loss"])
def test_nan_stops_the_run_and_keeps_the_last_save(call, what):
    """Catches NaN that is trained on, an exit code 0, and a last save that is overwritten."""
    flags = [*SHORT, "--env", f"toys:Nan-{what}-v0", "--log-every", 60, "--out", "run"]
    flags += ["--batch-size", 256]  # so that the next batches do contain the reward of step 95
    result = call(*flags, "--save-every", 20)
    errors = result[2].splitlines()
    assert result[0] == 1 and len(errors) == 1 and what in errors[0], result
    assert "step 9" in errors[0] or what == "loss"
    env = f"toys:Nan-{what}-v0"
    assert "to continue" not in result[1]  # it would meet the same NaN again
    assert sac.Run.load("run", env=env).step == 80  # not 100: by then the loss was infinite


@pytest.mark.parametrize("wrong", ["error", "exit", "end"])
def test_an_environment_that_fails_costs_nothing(call, wrong):
    """Catches a traceback, steps that are lost, an exit code that says it diverged, and
    sys.exit() in an environment taken for the end of the run."""
    flags = [*SHORT, "--env", f"toys:Nan-{wrong}-v0", "--out", "run"]
    code, out, errors = call(*flags)
    assert code == 3 and errors.count("\n") == 1
    assert "a bug of its own" in errors and "toys.py, line" in errors
    lines = SCRIPT.read_text(encoding="utf-8").split("\n")
    (step,) = (i for i, line in enumerate(lines, 1) if "self.env.step(action)" in line)
    assert f", {step} of sac.py" in errors
    assert f"to continue:  python sac.py --resume run --env toys:Nan-{wrong}-v0" in out
    with pytest.warns(UserWarning, match="inside an episode"):
        assert sac.Run.load("run", env=f"toys:Nan-{wrong}-v0").step == 94


@pytest.mark.parametrize(
    "env, evaluations, signals, code, inside",
    [
        ("Toy", 1, ["SIGINT"], 130, False),
        ("Endless", 1, ["SIGINT", "SIGINT"], 130, True),
        ("Endless", 1, ["SIGINT"], 130, True),  # no time limit: an episode that may never end
        ("Endless", 1, ["SIGTERM"], 143, True),
        ("Toy", 1_000_000, ["SIGHUP"], 129, False),  # ends inside an evaluation
    ],
)
def test_a_signal_saves_and_tells_how_to_continue(place, env, evaluations, signals, code, inside):
    """Catches steps that are lost, a signal that an endless episode or a long evaluation swallows,
    a save inside an episode that is not marked, and an exit code that no scheduler understands."""
    if not hasattr(signal, "SIGHUP"):
        pytest.skip("no such signals on this system")
    flags = [*SHORT, "--steps", "1000000", "--env", f"toys:{env}-v0", "--out", "run"]
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *flags, "--log-every", "200", "--eval-every", "250"]
        + ["--eval-episodes", str(evaluations)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: [
            signal.signal(x, signal.SIG_DFL) for x in (signal.SIGHUP, signal.SIGINT)
        ],
    )  # also where these tests run under nohup or in the background
    while "200/" not in process.stdout.readline():
        assert process.poll() is None
    for name in signals:
        process.send_signal(getattr(signal, name))
        time.sleep(0.5)
    start = time.monotonic()
    out, errors = process.communicate(timeout=60)
    assert time.monotonic() - start < 30 and (process.returncode, errors) == (code, "")
    assert f"to continue:  python sac.py --resume run --env toys:{env}-v0" in out
    state = sac.read_checkpoint("run", f"toys:{env}-v0")
    assert state["step"] >= 200 and state["between_episodes"] != inside
    assert state["history"][-1]["step"] <= state["step"]


def test_a_run_under_nohup_outlives_its_terminal(place):
    """Catches a handler that takes back what nohup has set: SIGHUP is ignored."""
    if not hasattr(signal, "SIGHUP"):
        pytest.skip("no such signal on this system")
    flags = [*SHORT, *TOY, "--steps", "1000", "--log-every", "100", "--out", "run"]
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *flags],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    while "100/" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "1,000/1,000" in out and "stopping" not in out


def test_a_folder_with_spaces_is_quoted_where_a_command_is_told(call):
    """Catches a command that a shell takes apart, and that then resumes nothing."""
    out = call(*SHORT, *TOY, "--out", "my run")[1]
    told = re.search("to watch it:  python sac.py (.*) --render", out)[1]
    assert shlex.split(told) == ["--play", "my run", "--env", "toys:Toy-v0"]


def test_a_copy_of_the_script_tells_commands_that_run_the_copy(place):
    """Catches a reader's copy, with a variant of its own, that says to continue with sac.py, which
    does not know that variant."""
    text = SCRIPT.read_text(encoding="utf-8").replace('"ddpg": DDPG,', '"ddpg": DDPG, "mine": SAC,')
    Path("my_sac.py").write_text(text, encoding="utf-8")
    begin = [sys.executable, "my_sac.py", *map(str, SHORT), *TOY, "--variant", "mine"]
    out = subprocess.run(
        [*begin, "--out", "run"], capture_output=True, text=True, check=True
    ).stdout
    assert "to watch it:  python my_sac.py --play run" in out
    wrong = subprocess.run([*begin, "--tau", "2"], capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stderr.startswith("my_sac.py: --tau must be")


def test_a_folder_that_is_lost_is_told_at_each_save_alone(call, monkeypatch):
    """Catches training that ends with its folder, and one warning a step."""
    advance = sac.Run.advance

    def lose(run):
        if run.step == 70:
            shutil.rmtree("run")
            Path("run").write_text("a file")
        advance(run)

    monkeypatch.setattr(sac.Run, "advance", lose)
    flags = [*SHORT, *TOY, "--out", "run", "--save-every", 20, "--log-every", 60]
    code, out, errors = call(*flags)
    assert code == 2 and "120/120" in out and "watch" not in out
    assert 2 <= errors.count("\n") <= 6 and "Traceback" not in errors, errors
    assert Path("run").read_text() == "a file"


def test_output_that_nobody_reads_costs_no_step(place):
    """Catches a closed pipe (Ctrl-C on `... | tee log` kills tee first) that costs the run, ends it
    as if it had diverged, or leaves a traceback."""
    flags = [*SHORT, *TOY, "--steps", "1000000", "--out", "run", "--log-every", "10"]
    usual = {name: x for name, x in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": usual}
    process = subprocess.Popen([sys.executable, str(SCRIPT), *flags], **pipes)
    while "100/" not in process.stdout.readline():
        assert process.poll() is None
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(timeout=60) == 2 and "Traceback" not in errors
    assert "Broken pipe" in errors and "ignored" not in errors  # Python would exit with 120
    assert sac.read_checkpoint("run", "toys:Toy-v0")["step"] > 100


def test_a_damaged_checkpoint_is_refused(call):
    """Catches a traceback from the depths of a loader, and half a run that goes on."""
    assert call(*SHORT, "--env", "toys:Toy-v0", "--out", "run")[0] == 0
    path = Path("run", "checkpoint.pt")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    for flag in ("--resume", "--play"):
        assert_refused(call(flag, "run"), "damaged")


def test_a_checkpoint_of_the_first_edition_is_refused_as_such(call):
    """Catches a traceback, or a run of the first edition that is taken for a broken one."""
    Path("run").mkdir()
    config = {"env": "Pendulum-v1", "device": "auto", "steps": 100}
    torch.save({"config": config, "counters": {"step": 50}}, "run/checkpoint.pt")
    for flag in ("--resume", "--play"):
        assert_refused(call(flag, "run"), "another sac.py")


def test_a_replay_that_does_not_fit_into_the_memory_is_refused(call, monkeypatch):
    """Catches torch's RuntimeError (exit code 3), which names neither the buffer nor the cure."""

    def buffer(*sizes):
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(sac, "ReplayBuffer", buffer)
    assert_refused(call(*SHORT, *TOY, "--out", "run"), "memory", "--buffer-size")
    assert not Path("run").exists()


def test_a_run_from_elsewhere_imports_no_module_unless_asked(call):
    """Catches --play and --resume importing what a downloaded config names: code in its folder."""
    assert call(*SHORT, "--env", "toys:Toy-v0", "--out", "run")[0] == 0
    sys.modules.pop("toys")
    for flags in (["--resume", "run"], ["--play", "run"], ["--play", "run", "--env", ""]):
        assert_refused(call(*flags), "toys:Toy-v0", "--env")
        assert "toys" not in sys.modules
    with pytest.raises(sac.UsageError, match="import"):
        sac.Run.load("run")
    assert_refused(call("--resume", "run", "--env", "Pendulum-v1"), "start a new run")
    assert_refused(call("--play", "run", "--env", "Pendulum-v1"), "does not fit Pendulum-v1")
    assert "toys" not in sys.modules
    assert call("--play", "run", "--env", "toys:Toy-v0", "--episodes", 1)[0] == 0


def test_a_saved_environment_that_is_gone_is_named(call):
    """Catches a policy whose environment cannot be made any more ending in a traceback."""
    assert call(*SHORT, "--env", "toys:Toy-v0", "--out", "run")[0] == 0
    Path("../modules/toys.py").unlink()
    sys.modules.pop("toys")
    play = call("--play", "run", "--env", "toys:Toy-v0")
    assert_refused(play, "toys:Toy-v0", "No module named")


@pytest.mark.parametrize("columns", [80, 50, 20])
def test_a_line_on_a_terminal_is_whole_fields_and_fits(place, columns):
    """Catches a number that the terminal's edge cuts (58 for 5834.2) and passes for another."""
    pty, fcntl, termios = (pytest.importorskip(name) for name in ("pty", "fcntl", "termios"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    flags = [*SHORT, *TOY, "--steps", "1200", "--warmup", "60", "--out", "run"]
    size = {name: text for name, text in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen([sys.executable, SCRIPT, *flags], stdout=theirs, env=size)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # Linux, when the other end is closed
        while more := os.read(ours, 1000):
            shown += more
    os.close(ours)
    assert process.wait() == 0
    lines = [line for line in re.split(r"[\r\n]+", shown.decode()) if "/1,200" in line]
    assert len(lines) == 3 and all(len(line) < max(columns, 25) for line in lines)
    step = r" *[\d,]+/1,200 +\d+%"
    number = r"-?[\d.]+(e-\d+)?"
    fields = [rf"{number} steps/s", rf"{number} min left"]
    fields += [
        rf"{name} {number}" for name in ("evaluation", "last episode", "alpha", "entropy", "Q")
    ]
    whole = re.compile(step + "".join(f"(  {field})?" for field in fields) + " *")
    assert all(whole.fullmatch(line) for line in lines), lines


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device on this system")
def test_a_log_on_a_full_disk_costs_no_step(place):
    """Catches a run that a full disk under `> log` ends unsaved."""
    flags = ["--steps", "1000000", "--out", "run", "--log-every", "100"]
    code = f"""
import os, sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import sac
advance = sac.Run.advance
def then_full(run):
    if run.step == 150:
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    advance(run)
sac.Run.advance = then_full
sys.exit(sac.main({[*SHORT, *TOY, *flags]!r}))
"""
    code, _, errors = command(code=code)
    assert code not in (0, 1) and "No space left" in errors and "Traceback" not in errors
    assert sac.read_checkpoint("run", "toys:Toy-v0")["step"] == 200


def test_a_last_save_that_fails_is_told(call, monkeypatch):
    """Catches exit code 0 and "to watch it" after a run whose end was not saved."""
    replace = os.replace

    def full(source, target):
        if "checkpoint" in str(target) and Path(target).exists():
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    code, out, errors = call(*SHORT, *TOY, "--out", "run")
    assert code == 2 and "No space left" in errors and "watch" not in out
    assert sac.read_checkpoint("run", "toys:Toy-v0")["step"] == 0


@pytest.mark.parametrize("when", ["reset", "__init__"])
def test_an_environment_that_changes_the_directory_moves_no_file(call, when):
    """Catches a relative folder that is resolved anew at each save, or after the environment is
    made, and a path to continue from that is wrong where the user stands."""
    module = "moving" + when.strip("_")
    Path(f"../modules/{module}.py").write_text(
        "import os, gymnasium as gym, toys\n"
        "class Moving(toys.Toy):\n"
        f"    def {when}(self, **named):\n"
        "        os.chdir('/')\n"
        f"        return super().{when}(**named)\n"
        "gym.register('Moving-v0', entry_point=Moving)\n"
    )
    here, name = Path().absolute(), f"{module}:Moving-v0"
    for flags in (["--out", "run"], ["--resume", "run"], []):
        os.chdir(here)
        steps = ["--steps", 160] if "--resume" in flags else []
        code, out, _ = call(*SHORT, "--env", name, *flags, *steps)
        folder = flags[-1] if flags else f"runs/{module}-Moving-v0/sac-seed1"
        assert code == 0 and f"results: {folder}\n" in out
        assert sac.read_checkpoint(here / folder, name)["step"] == (160 if steps else 120)
    os.chdir(here)
    assert call("--play", "run", "--env", name, "--episodes", 1)[0] == 0
    os.chdir(here)
    run = sac.Run(sac.Config(env=name, steps=120, warmup=10, threads=1), folder="python")
    assert run.folder == here / "python"


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--variant no-entropy --alpha 0.5", ["no-entropy", "--alpha"]),
        ("--variant ddpg --alpha 0.5", ["ddpg", "--alpha"]),
        ("--alpha 0.2 --target-entropy -3", ["--target-entropy", "alpha is fixed"]),
        ("--variant no-entropy --target-entropy -3", ["--target-entropy", "alpha is fixed"]),
        ("--seed -1", ["--seed", "0 to 4294967295"]),
        ("--actor-samples 10", ["--actor-samples", "reinforce"]),
        (f"--seed {2**64}", ["--seed"]),
        ("--threads 1000000", ["--threads"]),
        ("--hidden 1000000000", ["--hidden"]),
        ("--batch-size 1e300", ["--batch-size"]),
    ],
)
def test_what_would_be_ignored_or_absurd_is_refused(call, flags, words):
    """Catches a flag that is silently unused, and sizes that end in a crash of a library."""
    assert_refused(call(*short(flags)), *words)
    assert files() == {}


def test_numbers_may_be_written_as_people_write_them(call):
    """Catches --steps 1e2 refused although it is whole."""
    assert call(*SHORT, *TOY, "--steps", "1e2", "--out", "run")[0] == 0
    assert sac.read_checkpoint("run", "toys:Toy-v0")["step"] == 100


def test_a_run_that_reached_its_goal_says_so_when_it_is_resumed(call):
    """Catches a resume with more steps that ends at once and does not say why."""
    flags = [*SHORT, *TOY, "--eval-every", 30, "--out", "run"]
    assert "--stop-at" in call(*flags, "--stop-at", 10)[1]
    code, out, _ = call("--resume", "run", *TOY, "--steps", 150)
    assert code == 0 and "--stop-at" in out and "150/150" not in out
    assert "150/150" in call("--resume", "run", *TOY, "--steps", 150, "--stop-at", 1e6)[1]


def test_a_run_without_rows_is_named_and_skipped(call):
    """Catches an empty run that empties the mean of its seeds, one that is left out unsaid, and a
    picture of nothing."""
    assert call(*SHORT, *TOY, "--out", "run", "--log-every", 20, "--eval-every", 40)[0] == 0
    config = sac.read_checkpoint("run", "toys:Toy-v0")["config"]
    sac.Run(dataclasses.replace(config, seed=2), env=None, folder="empty")
    with pytest.warns(UserWarning, match="empty.*no rows"):
        figure = sac.plot_runs(["run", "empty"])
    assert list(figure.axes[0].lines[0].get_xdata()) == [40, 80, 120]
    assert "n = 1" in figure.legends[0].get_texts()[0].get_text()
    with pytest.warns(UserWarning, match="empty"), pytest.raises(sac.UsageError, match="no.*rows"):
        sac.plot_runs(["empty"])


def test_reports_do_not_divide_runs_and_plot_may_be_given_twice(call):
    """Catches curves that are kept apart because they were evaluated at other times, and a first
    --plot that is dropped in silence; the picture names the environment and its band."""
    for seed in (1, 2):
        flags = [*SHORT, *TOY, "--seed", seed, "--log-every", 20, "--eval-every", 20 * seed]
        assert call(*flags, "--out", f"run{seed}")[0] == 0
    figure = sac.plot_runs(["run1", "run2"])
    assert [text.get_text()[-5:] for text in figure.legends[0].get_texts()] == [" = 2)"]
    assert list(figure.axes[0].lines[0].get_xdata()) == [40, 80, 120]
    words = figure.get_supxlabel()
    assert "toys:Toy-v0" in words and "lowest to highest" in words
    assert call("--plot", "run1", "--plot", "run2", "--out", "both.svg")[0] == 0
    assert "n = 2" in Path("both.svg").read_text()


def test_an_environment_from_python_says_so_when_it_is_played_by_name(call):
    """Catches "Malformed environment ID" where the environment came from Python."""
    sac.Run(
        sac.Config(steps=40, warmup=40, hidden=4),
        env=lambda: gym.make("Pendulum-v1"),
        folder="mine",
    )
    assert_refused(call("--play", "mine"), "a Python function", "env=<lambda>")


# What a command leaves


def test_halfcheetah_from_training_to_film(place):
    """Catches a command of the README that fails: train, look, play, plot, go on, on MuJoCo."""
    flags = "--steps 1100 --warmup 1000 --hidden 16 --eval-episodes 1 --eval-every 1000".split()
    code, out, errors = command("--env", "HalfCheetah-v4", *flags, "--threads", 1)
    assert (code, errors) == (0, "")
    folder = Path("runs/HalfCheetah-v4/sac-seed1")
    for word in ("threads: 1", "1,000/1,100", "final evaluation", "0.2 MB"):
        assert word in out
    assert f"--play {folder}" in out and "\r" not in out
    kept = "config.json progress.csv checkpoint.pt learning_curve.png".split()
    assert {path.name for path in folder.iterdir()} == set(kept)
    assert {path.name for path in place.iterdir()} == {"runs"}  # no MUJOCO_LOG.TXT
    about = json.loads((folder / "config.json").read_text())
    assert about["config"]["env"] == "HalfCheetah-v4" and about["config"]["steps"] == 1100
    assert {"torch", "gymnasium", "numpy", "sac.py"} <= about["versions"].keys()
    table = np.genfromtxt(folder / "progress.csv", delimiter=",", names=True)
    assert table["step"].tolist() == [500, 1000, 1100] and np.isfinite(table[-1]["q_mean"])
    saved = sac.read_checkpoint(folder)["buffer"]["rows"]
    assert saved.shape == (1100, 17 + 6 + 1 + 17 + 1)
    assert (folder / "learning_curve.png").read_bytes().startswith(b"\x89PNG")

    before = files()
    code, out, errors = command("--play", folder, "--episodes", 1)
    assert (code, errors) == (0, "") and files() == before
    assert f"episode 1: return {table[-1]['eval_return']:.1f}" in out  # the same first start
    code, out, errors = command("--plot", folder, "--out", "plot.png")
    assert (code, errors) == (0, "") and Path("plot.png").read_bytes().startswith(b"\x89PNG")
    code, out, errors = command("--resume", folder, "--steps", 1200)
    assert code == 0 and "new one begins" in errors and errors.count("\n") == 1
    rows = (folder / "progress.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "500", "1000", "1100", "1200"]
    assert {path.name for path in place.iterdir()} == {"runs", "plot.png"}


TOY = ("--env", "toys:Toy-v0")
FILMED = ("--env", "film:ShortCheetah-v0")
FILM = """
import gymnasium as gym
path = "gymnasium.envs.mujoco.half_cheetah_v4:HalfCheetahEnv"
gym.register("ShortCheetah-v0", entry_point=path, max_episode_steps=20)
"""


def test_mujoco_is_filmed_without_a_display(call, monkeypatch):
    """Catches a film that is empty, frozen, of another length, or that needs a window."""
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    Path("../modules/film.py").write_text(FILM)
    assert call(*SHORT, "--env", "film:ShortCheetah-v0", "--out", "run")[0] == 0
    probe = "import os; os.environ['MUJOCO_GL'] = 'egl'; import mujoco; mujoco.GLContext(8, 8)"
    if sys.platform != "linux" or command(code=probe)[0]:
        pytest.skip("no GL without a display on this machine")
    code, out, errors = command("--play", "run", *FILMED, "--video", "film.gif", "--episodes", 1)
    assert (code, errors) == (0, "") and "wrote film.gif" in out
    film = frames("film.gif")
    assert len(film) == 1 + 20 / 2 and (film[0] != film[-1]).any() and film[0].std() > 5
    assert film.shape[1:3] == (240, 240)  # half of what is drawn, 10 of its 20 pictures a second
    assert_refused(call("--play", "run", *FILMED, "--video", "film.gif"), "film.gif", "new")


def frames(path):
    import imageio.v3 as imageio

    return np.array(list(imageio.imiter(path)))


def test_films_of_other_kinds_and_what_stands_in_their_way(call, monkeypatch):
    """Catches a missing display or ending that crashes, or shows after playing, a film left
    half-written, a film of all episodes, and one that plays at another speed."""
    assert call(*SHORT, *TOY, "--out", "run")[0] == 0
    before = files()
    for name in ("film.xyz", "film", "nowhere/film.gif"):
        assert_refused(call("--play", "run", *TOY, "--video", name), name, ".gif")
    blind = ("--env", "toys:Blind-v0")
    assert call(*SHORT, *blind, "--out", "blind")[0] == 0
    code, out, errors = call("--play", "blind", *blind, "--video", "film.gif")
    assert code == 2 and "it has no render_mode" in errors and "episode" not in out
    before = files()
    assert_refused(call("--play", "run", *TOY, "--episodes", 0), "--episodes", "1")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    if sys.platform == "linux":
        assert_refused(call("--play", "run", *TOY, "--render"), "display", "--video")
    assert files() == before
    assert call("--play", "run", *TOY, "--video", "film.webp", "--episodes", 2)[0] == 0
    assert len(frames("film.webp")) == 4  # each third step of the first episode of the two
    monkeypatch.setitem(sys.modules["toys"].Toy.metadata, "render_fps", 15)
    assert call("--play", "run", *TOY, "--video", "slow.gif", "--episodes", 1)[0] == 0
    with Image.open("slow.gif") as film:
        assert film.info["duration"] == 130  # each second picture of 15 a second


def test_playing_repeats_the_last_evaluation(call):
    """Catches other starts than the evaluation's, and one episode that is played over and over."""
    flags = [*SHORT, "--env", "Pendulum-v1", "--eval-episodes", 3, "--out", "run"]
    final = re.search("final evaluation (.*)", call(*flags)[1])[1]
    code, out, _ = call("--play", "run", "--episodes", 3)
    returns = re.findall(r"episode \d: return (\S+)", out)
    assert code == 0 and len(set(returns)) == len(returns) == 3
    assert f"mean {final}\n" in out


def test_the_same_command_again_writes_beside_what_is_there(call):
    """Catches a second run that overwrites the first, and one that is not the same run."""
    flags = [*SHORT, "--env", "toys:Toy-v0"]
    assert call(*flags)[0] == 0
    first = files("runs")
    assert call(*flags)[0] == call(*flags)[0] == 0
    root = Path("runs/toys-Toy-v0")
    assert {path.name for path in root.iterdir()} == {f"sac-seed1{x}" for x in ("", "-2", "-3")}
    assert files("runs").items() >= first.items()
    tables = [np.genfromtxt(p / "progress.csv", delimiter=",", names=True) for p in root.iterdir()]
    for name in set(tables[0].dtype.names) - set(WALL_CLOCK):
        assert all(np.array_equal(tables[0][name], t[name], equal_nan=True) for t in tables), name


@pytest.mark.parametrize("variant", sac.VARIANTS)
def test_every_variant_runs_is_resumed_played_and_plotted(call, variant):
    """Catches a variant whose networks or rows do not survive a folder."""
    flags = [*SHORT, "--env", "toys:Toy-v0", "--variant", variant]
    assert call(*flags, *(["--actor-samples", 2] if variant == "reinforce" else []))[0] == 0
    folder = f"runs/toys-Toy-v0/{variant}-seed1"
    code, out, errors = call("--resume", folder, *TOY, "--steps", 150)
    assert (code, errors) == (0, "") and "150/150" in out
    code, out, errors = call("--play", folder, *TOY, "--episodes", 2)
    assert (code, errors) == (0, "") and "episode 2: return 10.0" in out
    assert call("--plot", folder, "--out", "plot.png")[0] == 0


def test_resuming_with_other_settings_is_refused(call):
    """Catches a run whose folder says one thing and whose weights were trained with another."""
    flags = [*SHORT, "--env", "toys:Toy-v0", "--out", "run"]
    assert call(*flags)[0] == 0
    before = files()
    assert_refused(call("--resume", "run", *TOY, "--gamma", 0.5), "gamma", "0.99")
    assert_refused(call("--resume", "run", *TOY, "--steps", 60), "120 steps")
    assert files() == before


def test_a_goal_and_a_plain_resume(call):
    """Catches --stop-at that runs on, and --resume alone that begins again what is there."""
    flags = [*SHORT, *TOY, "--eval-every", 30]
    out = call(*flags, "--stop-at", 10, "--seed", 3)[1]
    assert "30/120" in out and "60/120" not in out and "final evaluation 10.0" in out
    assert call(*flags, "--resume")[0] == 0  # none there: a new one
    assert call(*flags, "--resume", "--steps", 150)[0] == 0
    folder = "runs/toys-Toy-v0/sac-seed1"
    assert sac.read_checkpoint(folder, "toys:Toy-v0")["config"].steps == 150
    assert_refused(call("--resume", folder, "--env", "Pendulum-v1"), "env")
    assert {p.name for p in Path("runs/toys-Toy-v0").iterdir()} == {"sac-seed1", "sac-seed3"}


def test_a_plain_resume_goes_on_to_the_steps_of_its_flags(call, monkeypatch):
    """Catches a job that does nothing because a shorter run with its settings is done."""
    flags = [*SHORT[2:], *TOY]  # without --steps
    assert call(*flags, "--steps", 90)[0] == 0
    loaded = []
    monkeypatch.setattr(sac.Run, "load", lambda folder, **flags: loaded.append(flags) or 1 / 0)
    assert call(*flags, "--resume")[0] == 3
    assert loaded[0]["steps"] == sac.Config().steps


def test_a_plain_resume_without_a_goal_goes_on_past_the_old_one(call):
    """Catches a job that ends at a --stop-at that its command does not name."""
    flags = [*SHORT, *TOY, "--eval-every", 30]
    assert "30/120" in call(*flags, "--stop-at", 10)[1]
    assert "120/120" in call(*flags, "--resume")[1]


def test_a_plain_resume_finds_the_run_with_all_the_same_settings(call):
    """Catches --resume going on with a fixed temperature that was not asked for, or refusing for
    ever because the first folder holds another run."""
    flags = [*SHORT, *TOY, "--resume"]
    assert call(*flags, "--alpha", 0.2)[0] == 0
    assert call(*flags)[0] == 0  # another run: its own folder
    assert call(*flags, "--steps", 150)[0] == 0
    assert call(*flags, "--alpha", 0.2, "--steps", 160)[0] == 0
    root, steps = Path("runs/toys-Toy-v0"), {}
    for path in root.iterdir():
        config = sac.read_checkpoint(path, "toys:Toy-v0")["config"]
        steps[path.name] = config.alpha, config.steps
    assert steps == {"sac-seed1": (0.2, 160), "sac-seed1-2": (None, 150)}


def test_runs_that_start_together_get_folders_of_their_own(call, monkeypatch):
    """Catches two processes that both find a name free, and then share its folder."""
    first, second = Path("runs/toys-Toy-v0/sac-seed1"), Path("runs/toys-Toy-v0/sac-seed1-2")
    make = sac.make_env

    def slow(*args):
        first.mkdir(parents=True, exist_ok=True)  # meanwhile, another process was faster
        return make(*args)

    monkeypatch.setattr(sac, "make_env", slow)
    assert call(*SHORT, *TOY)[0] == 0
    assert list(first.iterdir()) == [] and (second / "checkpoint.pt").exists()


def test_a_link_to_nowhere_in_place_of_runs_is_one_line(call, monkeypatch):
    """Catches a search for a free folder that never ends."""
    configure, tries = sac.configure_torch, []

    def counted(config):
        tries.append(config)
        assert len(tries) < 5
        return configure(config)

    monkeypatch.setattr(sac, "configure_torch", counted)
    os.symlink("gone", "runs")
    assert_refused(call(*SHORT, *TOY), "runs", "exists")


def test_out_and_resume_together_begin_or_continue(call):
    """Catches a folder that a killed first save has left and that no command can use again, and a
    folder of somebody else that is written to."""
    flags = [*SHORT, *TOY, "--out", "run", "--resume"]
    Path("run").mkdir()
    Path("run/checkpoint.pt.77.tmp").write_text("half")
    assert call(*flags)[0] == 0
    assert call(*flags, "--steps", 150)[0] == 0
    assert sac.read_checkpoint("run", "toys:Toy-v0")["step"] == 150
    assert_refused(call(*flags, "--gamma", 0.5), "run has files", "--resume run")
    assert_refused(call(*SHORT, "--gamma", 0.5, *TOY, "--resume", "run"), "gamma 0.99")
    Path("mine").mkdir()
    Path("mine/config.json").write_text("mine")
    assert_refused(call(*SHORT, *TOY, "--out", "mine", "--resume"), "mine has files")
    assert Path("mine/config.json").read_text() == "mine"


def test_a_plot_says_how_each_temperature_was_set(call):
    """Catches "alpha learned" for a variant that fixes it at 0, and an axis without numbers."""
    for name, extra in (("a", []), ("b", ["--alpha", 0.5]), ("c", ["--variant", "no-entropy"])):
        assert call(*SHORT, *TOY, *extra, "--out", name)[0] == 0
    texts = sac.plot_runs(["a", "b", "c"]).legends[0].get_texts()
    labels = [text.get_text().partition(" (n")[0] for text in texts]
    assert labels == ["variant sac, alpha learned", "variant sac, alpha 0.5",
                      "variant no-entropy, alpha 0.0"]  # fmt: skip
    axis = sac.plot_runs(["b"]).axes[3]
    low, high = axis.get_ylim()
    assert low < 0.5 < high
    assert sum(low <= y <= high for y in (*axis.get_yticks(), *axis.get_yticks(minor=True))) > 2


def test_plots_join_seeds_and_name_what_differs(call):
    """Catches seeds drawn as rivals, different runs averaged, a band that is not from the lowest
    to the highest seed, swapped titles, and a picture overwritten."""
    folders = []
    for i, extra in enumerate(([], ["--seed", 2], ["--gamma", 0.5])):
        folders.append(f"run{i}")
        flags = [*SHORT, "--env", "toys:Toy-v0", "--eval-every", 40, "--log-every", 20, *extra]
        assert call(*flags, "--out", folders[-1])[0] == 0
    figure = sac.plot_runs(folders)
    panel = figure.axes[0]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(labels) == 2 and "0.99" in labels[0] and "0.5" in labels[1]
    assert list(panel.lines[0].get_xdata()) == [40, 80, 120]
    tables = [np.genfromtxt(f"{x}/progress.csv", delimiter=",", names=True) for x in folders]
    line = sac.plot_runs(folders[:2]).axes[1].lines[0]
    learning = np.isfinite(tables[0]["q_mean"])  # not in the warm-up
    assert list(line.get_xdata()) == list(tables[0]["step"][learning])
    right = (tables[0]["q_mean"] + tables[1]["q_mean"])[learning] / 2
    np.testing.assert_allclose(line.get_ydata(), right)
    figure, values = sac.plot_runs(folders[:2]), [x["q_mean"][learning] for x in tables[:2]]
    band = figure.axes[1].collections[0].get_paths()[0].vertices
    for step, low, high in zip(line.get_xdata(), np.min(values, 0), np.max(values, 0)):
        here = band[band[:, 0] == step, 1]
        assert (here.min(), here.max()) == pytest.approx((low, high))
    for panel, word in zip(figure.axes, ("return", "mean Q", "entropy", "alpha")):
        assert word in panel.get_title()
    about = Path(folders[0], "config.json")
    for i in range(3, 9):  # six more settings
        shutil.copytree(folders[0], f"run{i}")
        Path(f"run{i}", "config.json").write_text(about.read_text().replace("0.99", f"0.{i}1"))
    lines = sac.plot_runs([*folders, *(f"run{i}" for i in range(3, 9))]).axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 8
    for name in ("comparison.png", "comparison-2.png"):
        assert call("--plot", *folders)[1] == f"wrote {name}\n" and Path(name).exists()
    for name in ("comparison.png", "comparison", "comparison.xyz"):
        assert_refused(call("--plot", *folders, "--out", name), name, "--out")
    about.write_text(about.read_text().replace("eval_every", "eval_evary"))
    assert_refused(call("--plot", *folders, "--out", "other.png"), folders[0], "not the folder")


def test_a_picture_is_not_written_through_a_link(call):
    """Catches a file elsewhere that a dangling link makes appear."""
    assert call(*SHORT, *TOY, "--out", "run")[0] == 0
    Path("plot.png").symlink_to("../elsewhere.png")
    call("--plot", "run", "--out", "plot.png")
    assert not Path("../elsewhere.png").exists()


@pytest.mark.parametrize("camera", ["track", "other"])
def test_the_camera_of_a_film_follows_the_runner(call, camera):
    """Catches a film whose runner soon leaves the picture, smooth edges that take minutes, and
    a model without that camera that cannot be filmed."""
    Path(f"../modules/filmed_{camera}.py").write_text(
        "import types, gymnasium as gym, toys\n"
        "class Filmed(toys.Toy):\n"
        "    def __init__(self, **named):\n"
        "        super().__init__(**named)\n"
        "        quality = types.SimpleNamespace(offsamples=4)\n"
        "        self.model = types.SimpleNamespace(vis=types.SimpleNamespace(quality=quality))\n"
        f"        cameras = {{'{camera}': types.SimpleNamespace(id=3)}}\n"
        "        self.model.camera = cameras.__getitem__\n"
        "        self.mujoco_renderer = types.SimpleNamespace(camera_id=-1)\n"
        "    def render(self):\n"
        f"        assert self.mujoco_renderer.camera_id == {3 if camera == 'track' else -1}\n"
        "        assert self.model.vis.quality.offsamples == 0\n"
        "        return super().render()\n"
        f"gym.register('Filmed-{camera}-v0', entry_point=Filmed)\n"
    )
    filmed = ["--env", f"filmed_{camera}:Filmed-{camera}-v0"]
    assert call(*SHORT, *filmed, "--out", "run")[0] == 0
    assert call("--play", "run", *filmed, "--video", "film.gif")[0] == 0
    assert len(frames("film.gif")) == 4


def test_tensorboard_writes_events_or_names_its_package(call):
    """Catches a traceback where tensorboard is not installed."""
    result = call(*SHORT, "--env", "toys:Toy-v0", "--tensorboard", "--out", "run")
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        assert_refused(result, "tensorboard")
        assert not Path("run").exists()
    else:
        assert result[0] == 0 and list(Path("run").glob("events*"))


# What stands beside the script


def test_readme_names_flags_that_exist(place, capsys):
    """Catches a flag that a README names and that does not exist, and a field without a flag."""
    assert sac.main(["--help"]) == 0
    page = capsys.readouterr().out
    files = [SCRIPT.parent / name for name in ("README.md", "benchmarks/README.md")]
    readme = [x for file in files for x in file.read_text(encoding="utf-8").splitlines()]
    tools = r"\b(git|pip|ruff|pytest|jupyter|(benchmarks|tests)/\w+\.py) |#SBATCH "
    others = re.compile(tools)  # their flags are theirs
    readme = "\n".join(line for line in readme if not others.search(line))
    named = [set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", text)) for text in (readme, page)]
    fields = {"--" + name.replace("_", "-") for name in sac.Config.__dataclass_fields__}
    assert named[0] <= named[1] and fields < named[1] and len(named[0]) > 10
    assert all(name in page for name in sac.VARIANTS) and "(0.005)" in page and "(1e-3)" in page
    assert page.count("\n") <= 80 and max(map(len, page.splitlines())) <= 100  # two screens


def test_readme_counts_the_lines():
    """Catches numbers of an earlier sac.py."""
    lines, first = inspect.getsourcelines(sac.Run.advance)
    whole = len(SCRIPT.read_text(encoding="utf-8").splitlines())
    readme = SCRIPT.with_name("README.md").read_text(encoding="utf-8")
    assert f"ends at line {first + len(lines) - 1} of [{whole:,}](sac.py)" in readme


@pytest.mark.parametrize("page", ["README.md", "benchmarks/README.md"])
def test_links_and_pictures_of_a_page_exist(page):
    """Catches a picture that was renamed, a section that is linked and gone, a front page that
    has grown, and a placeholder."""
    page = SCRIPT.parent / page
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", text)
    links = [one or other for one, other in links]
    assert len(links) > 5 and not re.search("^[A-Z-]{6,}$", text, re.MULTILINE)
    for link in links:
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        if anchor:
            headings = re.findall("^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", x.lower()).replace(" ", "-") for x in headings]
    assert page.parent != SCRIPT.parent or text.count("\n") <= 150


def test_importing_has_no_side_effects(place):
    """Catches an import that parses, seeds, sets threads or precision, or writes a file."""
    code = f"""
import os, random, signal, sys, threading, warnings
import gymnasium, numpy, torch
sys.path.insert(0, {str(SCRIPT.parent)!r})
sys.argv = ["other.py", "--nonsense"]
sys.dont_write_bytecode = True
def state():
    return (
        torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.get_default_dtype(),
        torch.get_rng_state().tolist(), torch.is_grad_enabled(), repr(numpy.random.get_state()),
        random.getstate(), list(sys.argv), dict(os.environ), threading.active_count(),
        signal.getsignal(signal.SIGINT), warnings.showwarning, list(warnings.filters),
        "mujoco" in sys.modules, "matplotlib.pyplot" in sys.modules, list(gymnasium.registry),
    )
before = state()
import sac
names = [i for i, (old, new) in enumerate(zip(before, state())) if old != new]
print("changed:", names)
"""
    assert command(code=code) == (0, "changed: []\n", "")
    assert list(place.iterdir()) == []


def test_training_does_without_torchs_compiler(place):
    """Catches what imports it, such as torch.optim.Adam: 70 MB more, and a second at each start."""
    script = f"""
import sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import sac
print(sac.main("--env Pendulum-v1 --steps 300 --warmup 200 --hidden 8 --threads 1".split()))
print("torch._dynamo" in sys.modules)
"""
    code, out, _ = command(code=script)
    assert (code, out.splitlines()[-2:]) == (0, ["0", "False"])
