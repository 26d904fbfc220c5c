"""Curves and a table from run folders; and Q beside the return it predicts.

    python benchmarks/learning.py table runs/HalfCheetah-v4/sac-seed* [--at 100000]
    python benchmarks/learning.py keep halfcheetah runs/HalfCheetah-v4/sac-seed*
    python benchmarks/learning.py figure halfcheetah benchmarks/results/halfcheetah-*.csv
    python benchmarks/learning.py enter "critics at 3e-4" --commit 364d293 runs/critic3e-4-*
    python benchmarks/learning.py trials --seeds 11 12 13
    python benchmarks/learning.py bias --env Hopper-v4 --variant single-q --seed 1 --steps 150000
    python benchmarks/learning.py bias-figure hopper runs/bias/Hopper-v4-*.csv
    python benchmarks/learning.py landings runs/hovering

`table` and `figure` take run folders, or the .csv files that were kept; runs that differ in their
seed alone are one line: a mean over seeds, with a sample standard deviation or a 95% interval.
`keep NAME` copies what ran (config and rows) to results/NAME-*.json and .csv, and draws NAME.png
(`--until STEP`: no later rows, to compare long runs with short ones). It overwrites nothing.
`enter CHANGE` adds a line to the leaderboard of README.md beside this file, and keeps the rows;
`changes` draws the leaderboard (`enter` does so, too).
`trials` runs what the defaults are chosen from, two runs at a time, into runs/trials/; stop it and
start it as you like, it continues each run.
`bias` trains as `sac.py` does; at each evaluation it also plays episodes with the sampled actions
and compares the critics' Q(s,a) with the discounted return, entropy bonus included, that followed.
`landings` counts the landings and crashes that the replay of a lander's run holds.
"""

import argparse
import csv
import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import sac

PAGE = Path(__file__).with_name("README.md")
RESULTS = Path(__file__).parent / "results"
LAST = 3  # evaluations that a number in the table averages
# The runs of results/ with today's defaults, which the leaderboard compares with
DEFAULTS = ("halfcheetah-sac", "leaderboard-actor-and-temperature-at-1e-3-not-3e-4-*")
# 97.5% quantiles of Student's t, by the number of seeds
T95 = {2: 12.7, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
# SAC's mean and sample sd over ten seeds, from results/raw/sac_mujoco of SimbaV2's repository:
# its own baseline, one evaluation at (nearly) that step
PUBLISHED = {
    "HalfCheetah-v4": {
        100_000: (6156, 738),
        200_000: (7680, 898),
        300_000: (8593, 1016),
        500_000: (9839, 972),
        1_000_000: (11321, 1108),
    },
    "Hopper-v4": {
        100_000: (1103, 388),
        200_000: (2342, 971),
        500_000: (2887, 882),
        1_000_000: (2787, 868),
    },
    "Walker2d-v4": {
        100_000: (690, 254),
        200_000: (1946, 1349),
        500_000: (3603, 1232),
        1_000_000: (4536, 495),
    },
    "Ant-v4": {
        100_000: (747, 528),
        200_000: (2296, 1182),
        500_000: (4970, 1587),
        1_000_000: (5734, 674),
    },
    "Humanoid-v4": {
        100_000: (632, 179),
        200_000: (994, 481),
        500_000: (3275, 2429),
        1_000_000: (4826, 1679),
    },
}


def read(source):
    """The config (a dict) and the evaluations {step: return} of a run's folder or a kept .csv."""
    source = Path(source)
    rows, about = source / "progress.csv", source / "config.json"
    if source.suffix == ".csv":
        rows, about = source, source.with_suffix(".json")
    if not (rows.is_file() and about.is_file()):
        sys.exit(f"{source} is not a run: {rows.name} or {about.name} is missing")
    config = json.loads(about.read_text())["config"]
    with open(rows, newline="") as file:
        lines = [{name: float(x) for name, x in row.items()} for row in csv.DictReader(file)]
    every = config["eval_every"]
    evaluations = {r["step"]: r["eval_return"] for r in lines if r["step"] % every == 0}
    if not evaluations:
        sys.exit(f"{source} has no evaluation yet")
    return config, evaluations


def setting(config):
    """A run's settings in words: its environment, its variant, and what is not the default."""
    usual = vars(sac.Config())
    named = {"env", "variant", "seed", "device", *sac.LOG_SETTINGS, *sac.MAY_CHANGE}
    if config["alpha"] is not None:  # a fixed temperature has no learning rate
        named.add("alpha_lr")
    names = [x for x in usual if x not in named]
    odd = [f"{x} {config[x]:g}" for x in names
           if isinstance(config[x], (int, float)) and config[x] != usual[x]]  # fmt: skip
    return ", ".join([config["env"], config["variant"], *odd])


def by_setting(sources):
    """{setting: {seed: evaluations}}. The same setting and seed again (of edited code) gets the
    file's or folder's name."""
    groups = {}
    for source in sources:
        config, evaluations = read(source)
        name, seed = setting(config), config["seed"]
        if seed in groups.get(name, {}):
            name += ", " + re.sub(rf"-(seed)?{seed}$", "", Path(source).stem)
        groups.setdefault(name, {})[seed] = evaluations
    return groups


def last_mean(evaluations, steps, count=LAST):
    """The mean of the last `count` evaluations up to a step."""
    last = sorted(step for step in evaluations if step <= steps)[-count:]
    return np.mean([evaluations[step] for step in last])


def spread(numbers):
    """Their mean, and the sample sd of several, in words."""
    sd = f" ± {np.std(numbers, ddof=1):,.0f}" if len(numbers) > 1 else ""
    return f"{np.mean(numbers):,.0f}{sd}"


def table(sources, at):
    """Prints a Markdown table: a line for each setting, at step `at` (or the runs' end)."""
    print(f"| setting | steps | seeds | mean of the last {LAST} evaluations | mean ± sample sd | "
          "last evaluation | published SAC, last |\n|---|---|---|---|---|---|---|")  # fmt: skip
    for name, seeds in by_setting(sources).items():
        steps = at or min(max(x) for x in seeds.values())
        means = [last_mean(evaluations, steps) for evaluations in seeds.values()]
        last = [last_mean(evaluations, steps, 1) for evaluations in seeds.values()]
        each = ", ".join(f"{x:,.0f}" for x in means)
        published = PUBLISHED.get(name.split(",")[0], {}).get(steps)
        shown = "{:,} ± {:,}".format(*published) if published else ""
        print(f"| {name} | {steps:,.0f} | {', '.join(map(str, seeds))} | {each} | "
              f"{spread(means)} | {spread(last)} | {shown} |")  # fmt: skip


def figure(name, sources):
    """Draws results/NAME.png: each setting's mean and 95% interval, and published SAC."""
    from matplotlib.figure import Figure

    groups = by_setting(sources)
    envs = list(dict.fromkeys(name.split(",")[0] for name in groups))
    columns = len(envs) if len(envs) < 4 else 2
    lines = -(-len(envs) // columns)
    picture = Figure(figsize=(6 * columns, 4.5 * lines), layout="constrained")
    for panel, env in zip(picture.subplots(lines, columns, squeeze=False).flat, envs):
        panel.set_prop_cycle(color=sac.COLOURS)
        here = {label: label.split(", ")[1:] for label in groups if label.split(",")[0] == env}
        shared = set.intersection(*map(set, here.values())) if len(here) > 1 else set()
        common = ", ".join(x for x in next(iter(here.values())) if x in shared and " " in x)
        for label, settings in here.items():
            seeds = groups[label]
            steps = sorted(set.intersection(*map(set, seeds.values())))
            values = np.array([[x[step] for step in steps] for x in seeds.values()])
            n = len(values)
            words = ", ".join(x for x in settings if x not in shared)
            words = words or ("no other flags" if common else "default settings")
            words += f": mean of {n} seeds" if n > 1 else ": one seed"
            (line,) = panel.plot(steps, values.mean(0))
            if n > 3:
                half = T95.get(n, 2.0) * values.std(0, ddof=1) / np.sqrt(n)
                band = values.mean(0) - half, values.mean(0) + half
                panel.fill_between(steps, *band, alpha=0.2, color=line.get_color())
                words += ", 95% interval"
            elif n > 1 and len(here) < 3:  # an interval of so few seeds would fill the picture
                panel.plot(steps, values.T, lw=0.8, alpha=0.6, color=line.get_color())
                words += ", thin: each seed"
            line.set_label(words)
        limit = panel.get_xlim()[1]
        known = {step: x for step, x in PUBLISHED.get(env, {}).items() if step <= limit}
        if known:
            means = [mean for mean, _ in known.values()]
            half = [T95[10] * sd / np.sqrt(10) for _, sd in known.values()]
            words = "published SAC: mean of 10 seeds, 95% interval"
            style = "kx--" if len(known) > 1 else "kx"
            panel.errorbar(list(known), means, half, fmt=style, label=words)
        panel.set(
            title=f"{env}\n{common}" if common else env,
            xlabel="environment steps",
            ylabel="evaluation return",
        )
        panel.grid(alpha=0.3)
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_formatter("{x:,.0f}")
        panel.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.14))
    picture.savefig(RESULTS / f"{name}.png", dpi=100)


def keep(name, folders, until):
    """Copies config.json and the rows of each run, up to step `until`, to results/; draws them."""
    copies = {}
    for folder in map(Path, folders):
        config, evaluations = read(folder)
        last = min(config["steps"], until)
        if max(evaluations) + config["eval_every"] <= last and config["stop_at"] is None:
            sys.exit(f"{folder} is not finished: continue it, or give --until")
        label = re.sub(rf"-(seed)?{config['seed']}$", "", folder.name)
        copy = RESULTS / f"{name}-{label}-seed{config['seed']}.csv"
        if copy.exists() or copy in copies:
            sys.exit(f"{copy} exists: remove it first, or choose another NAME")
        copies[copy] = folder
    for copy, folder in copies.items():
        head, *rows = (folder / "progress.csv").read_text().splitlines(keepends=True)
        rows = [row for row in rows if float(row.split(",")[0]) <= until]
        copy.write_text(head + "".join(rows))
        shutil.copy(folder / "config.json", copy.with_suffix(".json"))
    figure(name, copies)


def gap(means, usual):
    """How far two means over seeds are apart, and, in brackets, that in standard errors."""
    a, b = ([*x.values()] for x in (means, usual))
    if min(len(a), len(b)) < 2:
        return ""
    apart = np.mean(a) - np.mean(b)
    error = np.sqrt(np.var(a, ddof=1) / len(a) + np.var(b, ddof=1) / len(b))
    return f"{apart:+,.0f} ({abs(apart) / error:.1f})"


def defaults():
    """{seed: return after 100,000 steps} of the runs with today's defaults, on HalfCheetah-v4."""
    kept = [read(path) for name in DEFAULTS for path in RESULTS.glob(f"{name}-seed*.csv")]
    return {config["seed"]: last_mean(x, 100_000) for config, x in kept}


def leaderboard():
    """README.md in three parts: the text before the leaderboard, its lines, the text after it."""
    ends = r"(?<=<!-- leaderboard -->\n)|\n(?=<!-- end -->)"
    head, board, rest = re.split(ends, PAGE.read_text())
    return head, board.split("\n"), rest


def enter(change, sources, lines, commit):
    """Adds a line to the leaderboard: HalfCheetah-v4 at 100,000 steps, best mean first; with its
    distance from the defaults on all their seeds and on the same seeds (standard errors)."""
    runs = [read(source) for source in sources]
    if any(c["env"] != "HalfCheetah-v4" or max(x) < 100_000 for c, x in runs):
        sys.exit("the leaderboard takes runs of HalfCheetah-v4 with 100,000 steps")
    if any(Path(source).is_dir() for source in sources):
        keep("leaderboard-" + re.sub(r"\W+", "-", change), sources, 100_000)
    if len({setting(config) for config, _ in runs}) > 1:
        sys.exit("these runs have different settings")
    if len({config["seed"] for config, _ in runs}) < len(runs):
        sys.exit("two of these runs have the same seed")
    means = {config["seed"]: last_mean(x, 100_000) for config, x in runs}
    usual = defaults()
    same = {seed: usual[seed] for seed in means if seed in usual}
    cells = [change, ", ".join(map(str, means)), spread([*means.values()]),
             gap(means, usual), gap(means, same), str(lines), commit]  # fmt: skip
    row = f"| {' | '.join(cells)} |"
    head, (title, rule, *rows), rest = leaderboard()
    rows.append(row)
    rows.sort(key=lambda x: -float(x.split("|")[3].split("±")[0].replace(",", "")))
    PAGE.write_text(head + "\n".join([title, rule, *rows]) + "\n" + rest)
    print(row)
    changes()


def changes():
    """Draws results/changes.png: how far each line of the leaderboard is from the defaults."""
    from matplotlib.figure import Figure

    usual = [*defaults().values()]
    _, (_, _, *rows), _ = leaderboard()
    rows = [row for row in rows if "±" in row]  # one seed has no standard error
    picture = Figure(figsize=(9, 1.2 + 0.4 * len(rows)), layout="constrained")
    panel = picture.subplots()
    left, right = -2700, 1700
    for y, row in enumerate(rows):
        change, seeds, returns, against_all = row.split("|")[1:5]
        n = len(seeds.split(","))
        sd = float(returns.split("±")[1].replace(",", ""))
        apart = float(against_all.split("(")[0].replace(",", ""))
        half = 3 * np.sqrt(sd**2 / n + np.var(usual, ddof=1) / len(usual))
        right = max(right, apart + half + 100)
        colour = sac.COLOURS[0] if half <= abs(apart) else "0.6"
        if apart < left:
            panel.text(left + 60, y, f"← {apart:,.0f}", color=colour, va="center")
        else:
            panel.errorbar(apart, y, xerr=half, fmt="o", color=colour, capsize=3)
        words = f"{change.split(':')[0].strip().replace('`', '')} ({n})"
        panel.text(left - 40, y, words, ha="right", va="center")
    panel.axvline(0, color="k", lw=1)
    panel.set(
        xlim=(left, right),
        ylim=(len(rows) - 0.5, -0.5),
        yticks=[],
        xlabel=f"return minus that of the defaults ({len(usual)} runs); bars: ± 3 standard errors",
        title="One change at a time (number of runs)",
    )
    panel.xaxis.set_major_formatter("{x:+,.0f}")
    panel.grid(alpha=0.3)
    picture.savefig(RESULTS / "changes.png", dpi=100)


TRIALS = {
    "base": "--actor-lr 3e-4 --alpha-lr 3e-4",  # the defaults until these trials changed them
    "rates": "",  # today's
    "alpha0.2": "--alpha 0.2",
    "start0.2": "",  # alpha is learned, from 0.2
    "tau0.01": "--tau 0.01",
    "half": "--target-entropy {half}",  # -A/2
    "tianshou": "--alpha 0.2 --warmup 10000",  # Tianshou's published settings
}
HALF = {"Hopper-v4": -1.5, "Walker2d-v4": -3, "HalfCheetah-v4": -3}


def trial(env, name, seed):
    """One run of `trials`: begun, or continued where it was saved."""

    class Start(sac.SAC):
        def __init__(self, *dims_and_config):
            super().__init__(*dims_and_config)
            self.log_alpha.data.fill_(np.log(0.2))

    if name == "start0.2":
        sac.VARIANTS["sac"] = Start
    flags = TRIALS[name].format(half=HALF[env]).split()
    flags += f"--env {env} --seed {seed} --threads 1 --save-every 10000 --resume".split()
    return sac.main([*flags, "--out", f"runs/trials/{env}-{name}-{seed}"])


def trials(seeds):
    """All of TRIALS, two runs at a time, each in a process of its own."""
    jobs = [(env, name, str(seed)) for seed in seeds for name in TRIALS for env in HALF]
    with ThreadPoolExecutor(2) as pool:
        commands = ([sys.executable, __file__, "trial", *job] for job in jobs)
        codes = []
        for job, done in zip(jobs, pool.map(subprocess.run, commands)):
            print(*job, "exit code", done.returncode, flush=True)
            codes.append(done.returncode)
    return int(any(codes))


@torch.no_grad()
def q_and_return(agent, env, episodes, seed):
    """Mean Q(s,a) that `combine` sees, and mean discounted soft return from the same (s,a).

    Along whole episodes of sampled actions. A state counts only where the rest of the episode is
    at least 300 steps long or ends in termination: gamma^300 = 0.05 of the tail is cut at most.
    """
    gamma, alpha = agent.config.gamma, agent.alpha.item()
    qs, returns = [], []
    for i in range(episodes):
        obs, _ = env.reset(seed=None if i else seed)
        q, rewards, terminated, truncated = [], [], False, False
        while not (terminated or truncated):
            state = torch.as_tensor(obs)[None]
            action, log_prob = agent.actor.sample(state)
            q.append(agent.combine(agent.critic(state, action)).item())
            obs, reward, terminated, truncated, _ = env.step(action[0].numpy())
            # Q(s,a) counts the entropy of later actions, not that of a itself
            rewards.append((agent.config.reward_scale * reward, -alpha * log_prob.item()))
        tail, realised = 0.0, np.zeros(len(q))
        for t in reversed(range(len(q))):
            realised[t] = rewards[t][0] + gamma * tail
            tail = realised[t] + rewards[t][1]
        counted = len(q) if terminated else max(len(q) - 300, 0)
        qs += q[:counted]
        returns += list(realised[:counted])
    return (np.mean(qs), np.mean(returns)) if qs else (np.nan, np.nan)


def bias(config):
    """Trains, and writes runs/bias/ENV-VARIANT-seedN.csv: step, eval_return, q, realised."""
    sac.configure_torch(config)
    folder = Path("runs/bias")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{config.env}-{config.variant}-seed{config.seed}.csv"
    run, env = sac.Run(config), sac.make_env(config.env)
    about = {"config": asdict(config), "versions": sac.versions()}
    path.with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n")
    with open(path, "x") as file:
        print("step,eval_return,eval_min,eval_max,q,realised,alpha", file=file, flush=True)
        for row in run:
            if run.step % config.eval_every == 0 and run.agent.updates:
                noise = run.agent.generator.get_state()  # measuring must not change training
                q, realised = q_and_return(run.agent, env, 5, config.seed + 1)
                run.agent.generator.set_state(noise)
                evaluation = [row[k] for k in ("eval_return", "eval_min", "eval_max")]
                numbers = [run.step, *evaluation, q, realised, row["alpha"]]
                print(",".join(f"{x:.6g}" for x in numbers), file=file, flush=True)


def bias_figure(name, files):
    """Draws results/NAME-q.png: predicted Q and observed soft return, one panel a variant and one
    line style a seed; keeps the CSVs, and prints a table."""
    from matplotlib.figure import Figure

    groups = {}
    print(
        "| means of the last 5 evaluations | steps | predicted Q | observed soft return | return |"
    )
    print("|---|---|---|---|---|")
    for file in map(Path, files):
        for kept in (file, file.with_suffix(".json")):
            if kept.exists() and kept.resolve().parent != RESULTS.resolve():  # early: no .json
                shutil.copy(kept, RESULTS / f"{name}-q-{kept.name}")
        table = np.genfromtxt(file, delimiter=",", names=True)
        means = (f"{table[column][-5:].mean():.0f}" for column in ("q", "realised", "eval_return"))
        print(f"| {file.stem} | {table['step'][-1]:,.0f} |", " | ".join(means), "|")
        variant = re.sub(r".*-v\d+-|-seed\d+$", "", file.stem)
        groups.setdefault(variant, []).append(table)
    figure = Figure(figsize=(4 * len(groups), 3.4), layout="constrained")
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for panel, (label, runs) in zip(panels, groups.items()):
        for i, run in enumerate(runs):
            style = ("-", "--", ":")[i % 3]
            panel.plot(run["step"], run["q"], style, color=sac.COLOURS[4])
            panel.plot(run["step"], run["realised"], style, color=sac.COLOURS[0])
        panel.set(title=label, xlabel="environment steps (a line style for each seed)")
        panel.xaxis.set_major_formatter("{x:,.0f}")
        panel.grid(alpha=0.3)
    panels[0].legend(panels[0].lines[:2], ("predicted Q", "observed soft return"))
    panels[0].set_ylabel("discounted value")
    figure.savefig(RESULTS / f"{name}-q.png")


def landings(folder):
    """Prints how many landings and crashes each 10,000 steps of a lander's replay hold."""
    rows = sac.read_checkpoint(folder)["buffer"]["rows"]
    reward, ends = rows[:, 8 + 2], rows[:, -1] > 0  # after observation and action
    for first in range(0, len(rows), 10_000):
        part = slice(first, first + 10_000)
        landed, crashed = (ends & (reward > 0))[part].sum(), (ends & (reward < 0))[part].sum()
        print(f"from step {first:,}: {landed} landings, {crashed} crashes")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("table")
    sub.add_argument("sources", nargs="+")
    sub.add_argument("--at", type=int, help="the step; default: the last that all seeds reached")
    for command, many in (("figure", "sources"), ("keep", "folders"), ("bias-figure", "files")):
        sub = commands.add_parser(command)
        sub.add_argument("name")
        sub.add_argument(many, nargs="+")
        if command == "keep":
            sub.add_argument("--until", type=float, default=float("inf"), help="no later step")
    sub = commands.add_parser("enter")
    sub.add_argument("change", help="what was changed, in a few words")
    sub.add_argument("sources", nargs="+")
    sub.add_argument("--lines", type=int, default=0, help="of sac.py that changed (0: flags only)")
    sub.add_argument("--commit", required=True, help="what the change applies to")
    sub = commands.add_parser("trials")
    sub.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13])
    sub = commands.add_parser("trial", help="one of them")
    for name in ("env", "name", "seed"):
        sub.add_argument(name)
    commands.add_parser("changes")
    commands.add_parser("landings").add_argument("folder")
    sub = commands.add_parser("bias", help="takes the flags of sac.py's Config")
    for field in sac.Config.__annotations__:
        sub.add_argument("--" + field.replace("_", "-"), default=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.command == "table":
        table(args.sources, args.at)
    elif args.command == "figure":
        figure(args.name, args.sources)
    elif args.command == "enter":
        enter(args.change, args.sources, args.lines, args.commit)
    elif args.command == "changes":
        changes()
    elif args.command == "trials":
        sys.exit(trials(args.seeds))
    elif args.command == "trial":
        sys.exit(trial(args.env, args.name, args.seed))
    elif args.command == "keep":
        keep(args.name, args.folders, args.until)
    elif args.command == "landings":
        landings(args.folder)
    elif args.command == "bias-figure":
        bias_figure(args.name, args.files)
    else:
        bias(sac.Config(**{name: x for name, x in vars(args).items() if name != "command"}))


if __name__ == "__main__":
    main()
