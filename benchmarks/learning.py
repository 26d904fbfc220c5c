"""Curves and a table from run folders; and Q beside the return it predicts.

    python benchmarks/learning.py table runs/HalfCheetah-v4/sac-seed*
    python benchmarks/learning.py keep halfcheetah runs/HalfCheetah-v4/sac-seed*
    python benchmarks/learning.py bias --env Hopper-v4 --variant single-q --seed 1 --steps 150000
    python benchmarks/learning.py bias-figure hopper runs/bias/Hopper-v4-*.csv

`keep NAME` copies what ran (config and rows) to results/NAME-*.json and .csv, and draws NAME.png
(`--until STEP`: no later rows, to compare long runs with short ones).
`bias` trains as `sac.py` does; at each evaluation it also plays episodes with the sampled actions
and compares the critics' Q(s,a) with the discounted return, entropy bonus included, that followed.
"""

import argparse
import csv
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import sac

RESULTS = Path(__file__).parent / "results"
LAST = 3  # evaluations that a number in the table averages


def last_evaluations(folder):
    """Means of the last LAST evaluations of a run, oldest first."""
    config = json.loads((Path(folder) / "config.json").read_text())["config"]
    with open(Path(folder) / "progress.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    returns = [
        float(r["eval_return"]) for r in rows if float(r["step"]) % config["eval_every"] == 0
    ]
    return config, float(rows[-1]["step"]), returns[-LAST:]


def table(folders):
    """Prints a Markdown table: a line for each run, and one for all (give runs of one kind)."""
    print(f"| run | steps | last {LAST} evaluations | mean |\n|---|---|---|---|")
    means = []
    for folder in folders:
        config, steps, returns = last_evaluations(folder)
        means.append(np.mean(returns))
        name = f"{config['env']}, {config['variant']}, seed {config['seed']}"
        shown = ", ".join(f"{value:.0f}" for value in returns)
        print(f"| {name} | {steps:,.0f} | {shown} | {means[-1]:.0f} |")
    print(f"| all {len(means)}: mean +- sd | | | {np.mean(means):.0f} +- {np.std(means):.0f} |")


def keep(name, folders, until):
    """Copies config.json and the rows of each run, up to step `until`, to results/; draws them."""
    with tempfile.TemporaryDirectory() as place:
        copies = [Path(place, str(i)) for i in range(len(folders))]
        for folder, copy in zip(map(Path, folders), copies):
            config, _, _ = last_evaluations(folder)
            stem = f"{name}-{config['variant']}-seed{config['seed']}"
            if config["variant"] == "reinforce":
                stem = stem.replace("reinforce", f"reinforce{config['actor_samples']}")
            head, *rows = (folder / "progress.csv").read_text().splitlines(keepends=True)
            rows = [row for row in rows if float(row.split(",")[0]) <= until]
            copy.mkdir()
            (copy / "progress.csv").write_text(head + "".join(rows))
            shutil.copy(folder / "config.json", copy)
            shutil.copy(copy / "progress.csv", RESULTS / f"{stem}.csv")
            shutil.copy(copy / "config.json", RESULTS / f"{stem}.json")
        sac.plot_runs(copies).savefig(RESULTS / f"{name}.png")


@torch.no_grad()
def q_and_return(agent, env, episodes, seed, horizon=1000):
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
    """Draws results/NAME-q.png, a line for each run, keeps the CSVs, and prints a table.

    Top: what Q said and what came, one panel a variant; bottom: the evaluations of the same runs.
    """
    from matplotlib.figure import Figure

    groups = {}
    print("| means of the last 5 evaluations | steps | Q said | came | evaluation |")
    print("|---|---|---|---|---|")
    for file in map(Path, files):
        shutil.copy(file, RESULTS / f"{name}-q-{file.name}")
        table = np.genfromtxt(file, delimiter=",", names=True)
        means = (f"{table[column][-5:].mean():.0f}" for column in ("q", "realised", "eval_return"))
        print(f"| {file.stem} | {table['step'][-1]:,.0f} |", " | ".join(means), "|")
        groups.setdefault(file.stem.rsplit("-seed", 1)[0], []).append(table)
    figure = Figure(figsize=(4.2 * len(groups), 6.4), layout="constrained")
    panels = figure.subplots(2, len(groups), sharex=True, sharey="row", squeeze=False).T
    for (top, bottom), (label, runs) in zip(panels, groups.items()):
        for i, run in enumerate(runs):
            style = ("-", "--", ":")[i % 3]
            top.plot(run["step"], run["q"], style, color=sac.COLOURS[4])
            top.plot(run["step"], run["realised"], style, color=sac.COLOURS[0])
            bottom.plot(run["step"], run["eval_return"], style, color="black")
        top.set_title(label)
        bottom.set_xlabel("environment steps")
        for panel in (top, bottom):
            panel.grid(alpha=0.3)
    orange, blue = panels[0, 0].lines[:2]
    panels[0, 0].legend((orange, blue), ("what Q(s,a) said", "soft return that came"))
    panels[0, 0].set_ylabel("discounted")
    panels[0, 1].set_ylabel("evaluation return")
    figure.savefig(RESULTS / f"{name}-q.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("table").add_argument("folders", nargs="+")
    for command, many in (("keep", "folders"), ("bias-figure", "files")):
        sub = commands.add_parser(command)
        sub.add_argument("name")
        sub.add_argument(many, nargs="+")
        if command == "keep":
            sub.add_argument("--until", type=float, default=float("inf"), help="no later step")
    sub = commands.add_parser("bias", help="takes the flags of sac.py's Config")
    for field in sac.Config.__annotations__:
        sub.add_argument("--" + field.replace("_", "-"), default=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.command == "table":
        table(args.folders)
    elif args.command == "keep":
        keep(args.name, args.folders, args.until)
    elif args.command == "bias-figure":
        bias_figure(args.name, args.files)
    else:
        bias(sac.Config(**{name: x for name, x in vars(args).items() if name != "command"}))


if __name__ == "__main__":
    main()
