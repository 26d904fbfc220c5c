"""How fast sac.py trains, beside Stable-Baselines3 and SBX (JAX), and what arithmetic alone costs.

    pip install -r requirements.txt -r benchmarks/requirements.txt    (Python 3.11 or newer)
    python benchmarks/speed.py                                        on the CPU; Linux or macOS
    python benchmarks/speed.py --rounds 1 --steps 500                 a quick look
    python benchmarks/speed.py profile                                where a step's time goes
    python benchmarks/speed.py ideas                                  what tricks would gain
    python benchmarks/speed.py race --threads 1                       seconds to a given return
    python benchmarks/speed.py worker sac 1 500                       one measurement, as JSON
    python benchmarks/speed.py worker sac-cuda 1 5000                 the same on a GPU

Each measurement is a process of its own, and the contestants take turns, so that whatever else the
machine does meets all of them. Writes speed.csv (all measurements) and speed.md into runs/speed/;
`--out benchmarks/results` replaces those on record.

sac, sb3, sbx          environment steps, with one update each, per second of training after the
                       warm-up; seconds from the script's start to the end of the first update
                       (1,000 steps of warm-up, imports, JAX's compiler); peak memory
sac-medium             sac.py with --matmul-precision medium
floor                  updates per second if an update were its matrix products and nothing else

The race: seconds of wall clock, from the start of the script, until an evaluation of HalfCheetah-v4
(10 episodes, mean action, not counted) first reaches 2,000 and 4,000; everyone with their own
defaults. What race.csv holds already is not run again: stop it and start it as you like.
"""

import argparse
import csv
import importlib.util
import itertools
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
import zlib
from dataclasses import replace
from pathlib import Path
from statistics import median

# torch and JAX are imported where they are used: after `pin`, and only in a worker, since a child's
# peak memory is never less than what its parent had.
BORN = time.perf_counter()
HERE = Path(__file__).resolve().parent
ENV, OBS, ACTION, BATCH, HIDDEN, REPLAY = "HalfCheetah-v4", 17, 6, 256, 256, 1_000_000
WARMUP, SETTLE = 1_000, 500  # steps without learning; then steps that are not timed yet
DISTURBED = 0.1  # of a core, taken by other processes during a measurement
GOALS, EVERY, LIMIT = (2_000, 4_000), 2_500, 150_000  # the race: returns; steps
WHO = {"sac": "torch", "sb3": "stable_baselines3", "sbx": "sbx"}  # and the package it needs
WHO |= dict.fromkeys(("sac-medium", "floor"), "torch")


class Done(Exception):
    """Ends a training loop from inside its environment."""


def pin(threads):
    """As many CPUs as threads, and one of each physical core first: the same for everyone."""

    def second(cpu):  # of two CPUs that share a core
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        return siblings.exists() and re.match(r"\d+", siblings.read_text())[0] != str(cpu)

    if hasattr(os, "sched_setaffinity"):
        cpus = sorted(os.sched_getaffinity(0), key=lambda cpu: (second(cpu), cpu))
        os.sched_setaffinity(0, cpus[:threads])
    os.environ |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    os.environ["XLA_FLAGS"] = f"--xla_cpu_multi_thread_eigen={str(threads > 1).lower()}"
    os.environ["JAX_PLATFORMS"] = "cpu"


def import_sac(threads, **flags):
    """The module, and a Config in which rows and evaluations are too rare to be met."""
    sys.path.insert(0, str(HERE.parent))
    import sac

    config = sac.Config(
        batch_size=BATCH, hidden=HIDDEN, buffer_size=REPLAY, steps=REPLAY, log_every=REPLAY,
        eval_every=REPLAY, device="cpu", threads=threads,
    )  # fmt: skip
    config = replace(config, **flags)
    sac.configure_torch(config)
    return sac, config


def learn(who, threads, make, policy, seed=1, warmup=None):
    """Trains until make()'s environment raises Done. `policy` gets the contestant's mean action.

    Without `warmup`, with the contestant's own defaults."""
    try:
        if who.startswith("sac"):
            flags = {"sac-cuda": {"device": "cuda"}, "sac-medium": {"matmul_precision": "medium"}}
            flags = flags.get(who, {}) | ({} if warmup is None else {"warmup": warmup})
            sac, config = import_sac(threads, seed=seed, **flags)
            run = sac.Run(config, env=make)
            policy.append(lambda obs: run.agent.act(obs, deterministic=True))
            for _ in run:
                pass
            return
        import torch
        from stable_baselines3 import SAC

        torch.set_num_threads(threads)
        if who == "sbx":
            from sbx import SAC
        same = {
            "learning_starts": warmup, "batch_size": BATCH, "buffer_size": REPLAY, "train_freq": 1,
            "gradient_steps": 1, "policy_kwargs": {"net_arch": [HIDDEN, HIDDEN]},
        }  # fmt: skip
        same = {} if warmup is None else same
        model = SAC("MlpPolicy", make(), device="cpu", seed=seed, **same)
        policy.append(lambda obs: model.predict(obs, deterministic=True)[0])
        model.learn(REPLAY)
    except Done:
        pass


def make_cheetah():
    import gymnasium as gym
    import mujoco

    mujoco.set_mju_user_warning(lambda text: None)  # else it writes a file where it stands
    return gym.make(ENV, disable_env_checker=True)


def train(who, threads, steps):
    """Seconds of `steps` steps of training, and seconds until the first update was done."""
    start, seconds = WARMUP + SETTLE, {}  # when a step begins; steps are counted from 0

    def make():
        env, count = make_cheetah(), itertools.count()
        step = env.step

        def timed(action):  # the one stopwatch for all
            if (n := next(count)) in (WARMUP + 1, start, start + steps):
                seconds[n] = time.perf_counter() - BORN
                if n == start + steps:
                    raise Done
            return step(action)

        env.step = timed
        return env

    learn(who, threads, make, [], warmup=WARMUP)
    # All make their first update between the steps WARMUP and WARMUP + 1
    return seconds[start + steps] - seconds[start], seconds[WARMUP + 1]


def race(who, threads, seed):
    """Prints each evaluation as a line of JSON, until one reaches the last of GOALS or LIMIT steps.

    The clock starts with the process and stands still during an evaluation: 10 episodes of the
    mean action, the same starts for everyone."""
    policy, test, waited = [], make_cheetah(), 0.0

    def evaluate():
        total = 0.0
        for episode in range(10):
            obs, _ = test.reset(seed=1_000 + episode)
            over = False
            while not over:
                obs, reward, terminated, truncated, _ = test.step(policy[0](obs.astype("float32")))
                total, over = total + reward, terminated or truncated
        return total / 10

    def make():
        env, count = make_cheetah(), itertools.count()
        step = env.step

        def watched(action):
            nonlocal waited
            if (n := next(count)) > 0 and n % EVERY == 0:
                now = time.perf_counter()
                row = {"step": n, "seconds": round(now - BORN - waited, 1), "return": evaluate()}
                waited += time.perf_counter() - now
                print(json.dumps(row), flush=True)
                if row["return"] >= GOALS[-1] or n >= LIMIT:
                    raise Done
            return step(action)

        env.step = watched
        return env

    learn(who, threads, make, policy, seed)


def races(seeds, thread_counts, out):
    """Runs what race.csv does not hold yet, in turns; writes race.csv, race.md and race.png."""
    path, rows = out / "race.csv", []
    if path.exists():
        with open(path, newline="") as file:
            rows = [{k: x if k == "who" else float(x) for k, x in row.items()}
                    for row in csv.DictReader(file)]  # fmt: skip
    where = machine()
    for seed, threads, who in itertools.product(seeds, thread_counts, ("sac", "sb3", "sbx")):
        key = {"who": who, "threads": threads, "seed": seed}
        mine = [row for row in rows if key.items() <= row.items()]
        if any(row["return"] >= GOALS[-1] or row["step"] >= LIMIT for row in mine):
            continue
        rows = [row for row in rows if row not in mine]
        command = [sys.executable, __file__, "worker", f"race-{who}", str(threads), str(seed)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            for line in child.stdout:
                rows.append(key | json.loads(line))
                print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
                with open(path, "w", newline="") as file:
                    writer = csv.DictWriter(file, rows[-1], lineterminator="\n")
                    writer.writeheader()
                    writer.writerows(rows)
        if child.returncode:
            sys.exit(f"{who} failed")
    show_races(rows, where, out)


def show_races(rows, where, out):
    """The table of seconds to each goal, and return over seconds as a figure."""
    from matplotlib.figure import Figure

    runs = {}
    for row in rows:
        runs.setdefault((row["threads"], row["who"]), {}).setdefault(row["seed"], []).append(row)
    lines = ["| threads | who | seeds | " + " | ".join(f"seconds to {x:,}" for x in GOALS) + " |"]
    lines += ["|---" * (3 + len(GOALS)) + "|"]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    panel = figure.subplots()
    names = {"sac": "sac.py", "sb3": "Stable-Baselines3", "sbx": "SBX"}
    colours = {"sac": "#0072B2", "sb3": "#D55E00", "sbx": "#009E73"}
    for (threads, who), seeds in sorted(runs.items()):
        cells = []
        for goal in GOALS:
            first = [min((row["seconds"] for row in one if row["return"] >= goal), default=math.inf)
                     for one in seeds.values()]  # fmt: skip
            each = ", ".join("never" if x == math.inf else f"{x:.0f}" for x in first)
            cells.append(f"{median(first):.0f} ({each})")
        lines += [f"| {threads:.0f} | {who} | {len(seeds)} | " + " | ".join(cells) + " |"]
        for i, one in enumerate(seeds.values()):
            points = [row["seconds"] for row in one], [row["return"] for row in one]
            words = f"{names[who]}, {threads:.0f} threads, one line per seed"
            label = words if i == 0 else None
            panel.plot(*points, label=label, color=colours[who], ls="--" if threads == 1 else "-")
    for goal in GOALS:
        panel.axhline(goal, color="0.5", lw=1)
    panel.set(xlabel="seconds of wall clock, evaluations not counted", ylabel=f"{ENV}: return")
    panel.grid(alpha=0.3)
    panel.legend()
    figure.savefig(out / "race.png", dpi=120)
    text = "\n".join(lines) + f"\n\nMedian (each seed); {where}.\n"
    (out / "race.md").write_text(text)
    print(text)


def clock(action, n):
    """Seconds that n calls take, after a few that are not counted."""
    for _ in range(n // 10 + 1):
        action()
    start = time.perf_counter()
    for _ in range(n):
        action()
    return time.perf_counter() - start


def floor(threads, steps):
    """Seconds of the matrix products of `steps` updates, and the operations of one update."""
    import_sac(threads)  # for its threads and precision
    import torch

    todo = []  # (function, its operands, memory for the result)

    def network(twin, inputs, outputs, learns=False, back_to=0):
        """Forward; backward to the weights if it learns, or to its last `back_to` inputs."""
        for i, o in itertools.pairwise((inputs, HIDDEN, HIDDEN, outputs)):
            x, w, grad = (torch.randn(twin + s) for s in ((BATCH, i), (i, o), (BATCH, o)))
            pairs = [(x, w)]
            if learns:
                pairs.append((x.mT, grad))
            if i == inputs and back_to:
                pairs.append((grad, w[..., -back_to:, :].mT))
            elif i != inputs and (learns or back_to):
                pairs.append((grad, w.mT))
            product = torch.bmm if twin else torch.mm
            todo.extend((product, pair, product(*pair)) for pair in pairs)

    actor, critic = ((), OBS, 2 * ACTION), ((2,), OBS + ACTION, 1)
    network(*actor)  # a' ~ pi(s')
    network(*critic)  # the targets' Q(s',a')
    network(*critic, learns=True)  # critic loss
    network(*actor, learns=True)  # actor loss: a ~ pi(s) ...
    network(*critic, back_to=ACTION)  # ... and the gradient of Q(s,a) towards a
    flop = sum(2 * a.numel() * b.shape[-1] for _, (a, b), _ in todo)
    assert abs(flop / 577e6 - 1) < 0.05, flop

    def once():
        for product, pair, out in todo:
            product(*pair, out=out)

    return clock(once, steps), flop


def from_noise(sac):
    def sample(self, obs):
        mean, log_std = self(obs)
        noise = self.noise(mean.shape)
        u = mean + log_std.exp() * noise
        log_normal = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
        log_slope = 2 * (math.log(2) - u - sac.F.softplus(-2 * u))
        return u.tanh(), (log_normal - log_slope).sum(-1)

    sac.Actor.sample = sample


def last_layer(sac):
    plain = sac.TwinLinear.forward

    def forward(self, x):
        if self.weight.shape[-1] > 1:
            return plain(self, x)
        return (x * self.weight.mT).sum(-1, keepdim=True) + self.bias

    sac.TwinLinear.forward = forward


def mse_loss(sac):
    def critic_loss(self, batch):
        q = self.critic(batch.obs, batch.action)
        self.q_mean = q.detach().mean()
        y = self.td_target(batch).expand_as(q)
        return 0.5 * len(q) * sac.F.mse_loss(q, y)

    sac.SAC.critic_loss = critic_loss


def torchs_adam(sac):
    import torch

    class Adam(torch.optim.Adam):
        def __init__(self, weights, lr):
            super().__init__(weights, lr, fused=True)

        def descend(self, loss):
            self.zero_grad()
            loss.backward(inputs=self.param_groups[0]["params"])
            self.step()

    sac.Adam = Adam


IDEAS = {
    "as it is, once more": [],  # how much of a gain is chance
    "log-density from the noise": [from_noise],
    "the critics' last layer as a sum of products": [last_layer],
    "F.mse_loss": [mse_loss],
    "these three together": [from_noise, last_layer, mse_loss],
    "torch.optim.Adam": [torchs_adam],
}


def ideas(threads, steps):
    """What each of IDEAS gains of an update: blocks of 50 updates, all taking turns."""
    import torch

    agents = {}
    for name, changes in {"as it is": [], **IDEAS}.items():
        sys.modules.pop("sac", None)
        sac, config = import_sac(threads)  # a module of its own
        for change in changes:
            change(sac)
        agents[name] = sac.SAC(OBS, ACTION, config), sac.ReplayBuffer(OBS, ACTION, 10_000, seed=1)
        agents[name][1].rows.uniform_(-1, 1)
        agents[name][1].rows[:, -1] = 0  # terminated
        agents[name][1].added = 10_000
    spans = {name: [] for name in agents}
    for _ in range(steps // 50):
        for name, (agent, buffer) in agents.items():
            spans[name].append(clock(lambda a=agent, b=buffer: a.update(b.sample(BATCH)), 50) / 50)
    head = f"| idea, {threads} thread{'s' * (threads > 1)} | an update, ms | gain |"
    lines = [head, "|---|---|---|"]
    for name, span in spans.items():
        gain = median(a / b for a, b in zip(spans["as it is"], span)) - 1
        lines += [f"| {name} | {1000 * median(span):.2f} | {gain:+.1%} |"]
    print("\n".join(lines), f"\n\n{machine()}; {torch.get_float32_matmul_precision()}; medians.\n")


def profile(threads, steps, **flags):
    """Median milliseconds of each part of a training step, and of the step."""
    sac, config = import_sac(threads, warmup=WARMUP, **flags)
    run, spans = sac.Run(config), {}

    def watch(owner, function, name):
        original = getattr(owner, function)

        def timed(*args, **kwargs):
            start = time.perf_counter()
            result = original(*args, **kwargs)
            span = 1000 * (time.perf_counter() - start)
            spans.setdefault(name, []).append(span)
            return result

        setattr(owner, function, timed)

    agent = run.agent
    for name in ("critic_optimizer", "actor_optimizer", "alpha_optimizer"):
        watch(getattr(agent, name), "descend", f"descend, {name}")
    for name in "act td_target critic_loss actor_loss alpha_loss update_target".split():
        watch(agent, name, name)
    watch(run.env, "step", "env.step")
    watch(run.buffer, "add", "buffer.add")
    watch(run.buffer, "sample", "buffer.sample")
    watch(run, "advance", "advance")
    for n in range(WARMUP + SETTLE + steps):
        if n == WARMUP + SETTLE:
            spans.clear()
        run.advance()
    spent = {name: median(span) for name, span in spans.items()}
    spent["critic_loss"] -= spent["td_target"]  # which it calls
    whole = spent.pop("advance")
    return spent | {"the rest": whole - sum(spent.values()), "one step": whole}


def profiles(steps, thread_counts, out):
    """Prints and writes a table: each part of a step, real and with next to no work."""
    results, where = {}, machine()
    for threads, who in itertools.product(thread_counts, ("profile", "profile-tiny")):
        command = [sys.executable, __file__, "worker", who, str(threads), str(steps)]
        child = subprocess.run(command, capture_output=True, text=True, check=True)
        result = json.loads(child.stdout.splitlines()[-1])
        size = "4 units, batch 4" if who == "profile-tiny" else f"{HIDDEN} units, batch {BATCH}"
        results[f"{threads} threads, {size}".replace("1 threads", "1 thread")] = result["stages"]
    lines = ["| milliseconds | " + " | ".join(results) + " |", "|---" * (len(results) + 1) + "|"]
    for part in result["stages"]:
        lines += [f"| {part} | " + " | ".join(f"{x[part]:.2f}" for x in results.values()) + " |"]
    text = "\n".join(lines) + f"\n\n{where}; medians of {steps:,} steps.\n"
    (out / "profile.md").write_text(text)
    print(text)


def worker(who, threads, steps):
    """One measurement: prints a line of JSON."""
    pin(threads)
    result = {"who": who, "threads": threads}
    if who == "ideas":
        return ideas(threads, steps)
    if who.startswith("race-"):
        return race(who.removeprefix("race-"), threads, seed=steps)
    if who == "floor":
        seconds, result["flop"] = floor(threads, steps)
    elif who.startswith("profile"):
        tiny = {"hidden": 4, "batch_size": 4} if who == "profile-tiny" else {}
        start = time.perf_counter()
        result["stages"] = profile(threads, steps, **tiny)
        seconds = time.perf_counter() - start
    else:
        seconds, first = train(who, threads, steps)
        result["first_update_seconds"] = round(first, 2)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS, else in KiB
    result["peak_mb"] = round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6)
    result["steps_per_second"] = round(steps / seconds, 2)
    names = ("torch", "gymnasium", "mujoco", "numpy", "stable_baselines3", "sbx", "jax")
    versions = {name: sys.modules[name].__version__ for name in names if name in sys.modules}
    versions["python"] = platform.python_version()
    if who == "sac":
        versions["precision"] = sys.modules["torch"].get_float32_matmul_precision()
    if "sac" in sys.modules:
        source = Path(sys.modules["sac"].__file__).read_bytes()
        versions["sac.py"] = f"{zlib.crc32(source):08x}"
    print(json.dumps(result | {"versions": versions}))


def table(rows):
    """Markdown: medians over the rounds (lowest to highest), and sac.py's speed by theirs."""
    groups = {}
    for row in rows:
        groups.setdefault((row["threads"], row["who"]), []).append(row)
    lines = ["| threads | who | per second | sac.py is | first update, s | peak, MB |"]
    lines += ["|---|---|---|---|---|---|"]
    for (threads, who), group in sorted(groups.items(), key=lambda item: item[0][0]):
        speeds = [row["steps_per_second"] for row in group]
        own = [row["steps_per_second"] for row in groups[threads, "sac"]]
        ratio = median(a / b for a, b in zip(own, speeds))  # of the same round
        first, peak = (
            median(row.get(name, float("nan")) for row in group)
            for name in ("first_update_seconds", "peak_mb")
        )
        speed = f"{median(speeds):.1f} ({min(speeds):.1f} to {max(speeds):.1f})"
        lines += [f"| {threads} | {who} | {speed} | x {ratio:.2f} | {first:.1f} | {peak:.0f} |"]
    return "\n".join(lines).replace("nan", "")


def machine():
    """The processor, and how busy it is now."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    name = model[1] if model else platform.processor()
    return f"{name}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} at the start"


def busy_elsewhere():
    """Seconds of CPU that all other processes have taken so far; 0 where nothing tells (macOS)."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    first = stat.read_text().splitlines()[0].split()[1:]
    user, nice, system, _, _, irq, softirq, steal, *_ = map(int, first)
    mine = os.times()
    total = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return total - sum(mine[:4])  # with those of its children


def compare(rounds, steps, thread_counts, out):
    """All measurements, in turns; prints and writes them."""
    where = f"{machine()}; {rounds} x {steps:,} steps"
    there = [who for who in WHO if importlib.util.find_spec(WHO[who])]
    for who in WHO.keys() - there:
        print(f"{who} is left out: {WHO[who]} is not installed (see benchmarks/requirements.txt)")
    rows, versions = [], {}
    columns = "round who threads steps_per_second first_update_seconds peak_mb".split()
    with open(out / "speed.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for n, threads, who in itertools.product(range(1, rounds + 1), thread_counts, there):
            command = [sys.executable, __file__, "worker", who, str(threads), str(steps)]
            for _ in range(3):  # once more where something else was busy meanwhile
                start, others = time.perf_counter(), busy_elsewhere()
                child = subprocess.run(command, capture_output=True, text=True)
                if child.returncode:
                    sys.exit(f"{who} failed:\n{child.stderr}")
                others = (busy_elsewhere() - others) / (time.perf_counter() - start)
                if others < DISTURBED:
                    break
                print(f"disturbed: other processes took {others:.2f} of a core", flush=True)
            rows.append({"round": n} | json.loads(child.stdout.splitlines()[-1]))
            versions |= rows[-1].pop("versions")
            writer.writerow(rows[-1])
            file.flush()
            print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    flop = f"The floor is {rows[-1]['flop'] / 1e6:.1f} million operations an update."
    shown = ", ".join(f"{k} {v}" for k, v in versions.items())
    text = f"{table(rows)}\n\n{flop}\n\n{where}; {shown}.\n"
    (out / "speed.md").write_text(text)
    print("\n" + text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
        modes = ("compare", "profile", "ideas", "race")
        parser.add_argument("what", nargs="?", choices=modes, default="compare")
        parser.add_argument("--rounds", type=int, default=3)
        parser.add_argument("--steps", type=int, default=5_000, help="timed, in a measurement")
        parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
        parser.add_argument("--out", type=Path, default=Path("runs/speed"), help="folder")
        parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of the race")
        args = parser.parse_args()
        args.out.mkdir(parents=True, exist_ok=True)
        if args.what == "profile":
            profiles(args.steps, args.threads, args.out)
        elif args.what == "ideas":
            for threads in args.threads:
                command = [sys.executable, __file__, "worker", "ideas", str(threads)]
                subprocess.run([*command, str(args.steps)], check=True)
        elif args.what == "race":
            races(args.seeds, args.threads, args.out)
        else:
            compare(args.rounds, args.steps, args.threads, args.out)
