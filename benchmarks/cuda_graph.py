"""What a CUDA graph of sample and update gains on a GPU, and what it needs.

    python benchmarks/cuda_graph.py --steps 3000

An update is some 200 small kernels, and launching them costs more than running them. A graph is one
launch: it repeats the kernels it has recorded, on the same memory. sac.py does without, also with
`--device cuda`, because Python does not run in a replay: its numbers and branches stay what they
were while recording. A schedule inside `update`, say a learning rate that falls, would freeze, and
nothing would tell. Whoever changes an update should not have to think of that.

Nobody here has measured this on a GPU yet, nor seen CUDA record it. tests/test_graph.py tries it on
a stand-in, and on a GPU where there is one.

Trains HalfCheetah-v4 twice, the two runs taking turns, and prints the steps per second of each and
how far their rows are apart. Exit code 1 if that is too far, 2 without a GPU.
"""

import argparse
import sys
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import sac


class Graph:
    """Takes the place of buffer.sample and agent.update: after three eager updates, a replay."""

    def __init__(self, agent, buffer):
        self.agent, self.buffer, self.eager_update = agent, buffer, agent.update
        self.side, self.graph = torch.cuda.Stream(), None
        self.eager_left = float("inf") if isinstance(agent, sac.HardTarget) else 3  # it has an `if`

    def sample(self, batch_size):
        """The rows of the next batch, drawn outside the graph: in there, len would not grow."""
        where = {"generator": self.buffer.generator, "device": self.buffer.rows.device}
        return torch.randint(len(self.buffer), (batch_size,), **where)

    def gather(self, index):
        """The Batch of these rows, as ReplayBuffer.sample makes it."""
        rows = self.buffer.rows.index_select(0, index)
        obs, action, reward, next_obs, d = rows.split(self.buffer.widths, 1)
        return sac.Batch(obs, action, reward.squeeze(1), next_obs, d.squeeze(1))

    def update(self, index):
        """One update from these rows. The next one overwrites the tensors that are returned."""
        if self.eager_left:  # CUDA wants what comes before a recording on another stream
            self.eager_left -= 1
            self.side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.side):
                metrics = self.eager_update(self.gather(index))
            torch.cuda.current_stream().wait_stream(self.side)
            return metrics
        if self.graph is None:
            self.record(index)
        self.index.copy_(index)
        self.graph.replay()
        self.agent.updates += 1  # for Python, which does not run now
        return self.metrics

    def record(self, index):
        """Records the kernels of an update, and runs none."""
        self.index, self.graph = index.clone(), torch.cuda.CUDAGraph()
        self.graph.register_generator_state(self.agent.generator)  # so that each replay draws anew
        updates = self.agent.updates
        with torch.cuda.graph(self.graph):
            self.metrics = self.eager_update(self.gather(self.index))
        self.agent.updates = updates  # Python did run, and counted an update that was none


class GraphedRun(sac.Run):
    """A Run on a GPU whose updates are a CUDA graph."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        graph = Graph(self.agent, self.buffer)
        self.buffer.sample, self.agent.update = graph.sample, graph.update


def compare(eager, graphed):
    """Trains both: their median steps per second, and the largest relative difference in a row."""
    speeds, apart = [], 0.0
    for a, b in zip(eager, graphed):  # in turns, so that whatever else runs here meets both
        if a["step"] > eager.config.warmup + eager.config.log_every:  # after the recording
            speeds.append((a["steps_per_second"], b["steps_per_second"]))
        for name in ("q_mean", "actor_loss", "entropy"):  # NaN, and no maximum, until it learns
            apart = max(apart, abs(a[name] - b[name]) / max(1, abs(a[name])))
    return *map(median, zip(*speeds)), apart


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=3_000, help="of each run, 1,000 of warm-up")
    steps = parser.parse_args(argv).steps
    if steps <= 1_100:
        parser.error("--steps must be more than 1,100")
    if not torch.cuda.is_available():
        print("cuda_graph.py: there is no GPU here that torch can use", file=sys.stderr)
        return 2
    config = sac.Config(steps=steps, warmup=1_000, log_every=100, eval_every=steps, device="cuda")
    sac.configure_torch(config)
    eager, graphed, apart = compare(sac.Run(config), GraphedRun(config))
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {steps:,} steps:")
    print(f"eager {eager:.0f} steps/s, graph {graphed:.0f} steps/s: x {graphed / eager:.2f}")
    same = apart < 0.1  # two eager runs get 4% apart from one rounding, which the physics magnifies
    print(f"rows at most {apart:.2%} apart: {'the same learning' if same else 'TOO FAR'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
