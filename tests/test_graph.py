"""benchmarks/cuda_graph.py: on a GPU itself; anywhere, on a stand-in with a CUDA graph's traps.

The stand-in records the operations that torch dispatches and repeats them on the same memory,
undoing what recording has changed. As in a graph, Python does not run again. What it cannot show
is whether CUDA agrees to record the operations, and how fast they are.
"""

import contextlib
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY, learned, make_agent, make_batch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sac

sys.path.insert(0, str(Path(sac.__file__).parent / "benchmarks"))
import cuda_graph

BATCH = 32
# These read a result back, which a recording cannot (normal looks whether each deviation is >= 0)
REFUSED = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "normal"}


def memory(tensor):
    return tensor.untyped_storage().data_ptr()


class StandIn(TorchDispatchMode):
    """In place of torch.cuda.CUDAGraph."""

    recording, replays = False, 0

    def __init__(self):
        super().__init__()
        self.calls, self.undo, self.generators = [], [], []

    def register_generator_state(self, generator):
        self.generators.append(generator)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert function._schema.name.removeprefix("aten::") not in REFUSED
        if generator := kwargs.get("generator"):  # torch wraps it anew: known by its state
            known = [torch.equal(g.get_state(), generator.get_state()) for g in self.generators]
            assert any(known), "a generator that was not registered"
        for argument, value in zip(function._schema.arguments, args):
            if argument.alias_info and argument.alias_info.is_write:
                self.undo += [(x, x.detach().clone()) for x in tree_leaves(value)]
        result = function(*args, **kwargs)
        self.calls.append((function, args, kwargs, result))
        return result

    def __enter__(self):
        StandIn.recording, self.states = True, [(g, g.get_state()) for g in self.generators]
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        StandIn.recording = False
        for tensor, before in reversed(self.undo):
            tensor.data.copy_(before)
        for generator, state in self.states:
            generator.set_state(state)

    @torch.no_grad()
    def replay(self):
        StandIn.replays += 1
        for function, args, kwargs, result in self.calls:
            for old, new in zip(tree_leaves(result), tree_leaves(function(*args, **kwargs))):
                if isinstance(old, torch.Tensor) and memory(old) != memory(new):
                    old.data.copy_(new)


class Stream:
    def wait_stream(self, other):
        pass


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(StandIn, "replays", 0)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", StandIn)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: graph)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())


def agent_and_buffer(device, variant):
    """An agent, and a buffer of 40 transitions."""
    samples = 2 if variant == "reinforce" else 1
    settings = {"batch_size": BATCH, "tau": 0.2, "actor_samples": samples}
    agent = make_agent(variant=variant, device=device, **settings)
    buffer = sac.ReplayBuffer(3, 2, 200, seed=1, device=device)
    fill(buffer, 40)
    return agent, buffer


def fill(buffer, n, seed=0):
    for i in range(n):
        buffer.add(*(x[i].numpy() for x in make_batch(n, seed=seed)))


def check_agreement(device, variant, tolerance):
    """Twelve updates by hand and by cuda_graph.Graph, from the same state and noise."""
    eager, eager_buffer = agent_and_buffer(device, variant)
    graphed, graphed_buffer = agent_and_buffer(device, variant)
    graph = cuda_graph.Graph(graphed, graphed_buffer)
    for n in range(12):
        for buffer in (eager_buffer, graphed_buffer):
            fill(buffer, 10, seed=n)  # its length must not be what it was while recording
        eager.log_alpha.data += 0.1  # as a notebook may
        graphed.log_alpha.data += 0.1
        expected = [eager.update(eager_buffer.sample(BATCH)), eager.state_dict()]
        actual = [graph.update(graph.sample(BATCH)), graphed.state_dict()]
        for old, new in zip(tree_leaves(expected), tree_leaves(actual), strict=True):
            if isinstance(old, torch.Tensor):
                torch.testing.assert_close(new, old, atol=tolerance, rtol=tolerance)
            else:
                assert new == old, (n, old, new)
    assert graphed.updates == 12
    assert (graph.graph is None) == (variant == "hard-target")


@pytest.mark.parametrize("variant", sac.VARIANTS)
def test_graphed_updates_repeat_the_eager_ones(variant, stand_in):
    """Catches a buffer length, a counter, a branch or Adam's first step that was recorded as it
    stood, a recording that counts as an update, and noise or a batch that comes twice."""
    check_agreement("cpu", variant, 0)


def test_a_graphed_run_yields_the_rows_of_an_eager_one(stand_in):
    """Catches a GraphedRun that never reaches the graph, rows made of what a later update left,
    and a comparison that would not see it if both did not learn the same."""
    config = sac.Config(env="Pendulum-v1", steps=220, **TINY)
    eager, graphed = sac.Run(config), cuda_graph.GraphedRun(config)
    *speeds, apart = cuda_graph.compare(eager, graphed)
    assert learned(graphed.history) == learned(eager.history) and apart == 0
    assert graphed.agent.updates == 220 - TINY["warmup"] == StandIn.replays + 3
    assert min(speeds) > 0
    other = sac.Config(env="Pendulum-v1", steps=220, **TINY, critic_lr=1e-2)
    assert cuda_graph.compare(sac.Run(config), cuda_graph.GraphedRun(other))[-1] > 0.1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_benchmark_says_so_in_one_line(capsys):
    """Catches a traceback, or a run on the CPU whose numbers look like those of a graph."""
    assert cuda_graph.main([]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "no GPU" in err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("variant", sac.VARIANTS)
def test_cuda_graph_repeats_the_eager_updates(variant):
    """Catches what the stand-in cannot: operations that CUDA refuses to record."""
    check_agreement("cuda", variant, 1e-4)
