"""The update as a CUDA graph: on a GPU itself; anywhere, on a stand-in with a graph's traps.

The stand-in records the operations that torch dispatches and repeats them on the same memory,
undoing what recording has changed. As in a graph, Python does not run again. What it cannot show
is whether CUDA agrees to record the operations, and how fast they are.
"""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY, learned, make_agent, make_batch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sac

BATCH = 32
# These read a result back, which a recording cannot (normal looks whether each deviation is >= 0)
REFUSED = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "normal"}


def memory(tensor):
    return tensor.untyped_storage().data_ptr()


class Graph(TorchDispatchMode):
    """In place of torch.cuda.CUDAGraph."""

    recording = False

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
        Graph.recording, self.states = True, [(g, g.get_state()) for g in self.generators]
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        Graph.recording = False
        for tensor, before in reversed(self.undo):
            tensor.data.copy_(before)
        for generator, state in self.states:
            generator.set_state(state)

    @torch.no_grad()
    def replay(self):
        for function, args, kwargs, result in self.calls:
            for old, new in zip(tree_leaves(result), tree_leaves(function(*args, **kwargs))):
                if isinstance(old, torch.Tensor) and memory(old) != memory(new):
                    old.data.copy_(new)


class Stream:
    def wait_stream(self, other):
        pass


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: graph)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())

    def complain(adam, *_):  # as torch.optim does where there is a GPU
        assert adam.param_groups[0]["capturable"] == Graph.recording

    hook = register_optimizer_step_pre_hook(complain)
    yield
    hook.remove()


def agent_and_buffer(device, variant):
    """An agent, and a buffer of 40 transitions."""
    agent = make_agent(variant=variant, device=device, batch_size=BATCH, tau=0.2, actor_samples=2)
    buffer = sac.ReplayBuffer(3, 2, 200, seed=1, device=device)
    fill(buffer, 40)
    return agent, buffer


def fill(buffer, n, seed=0):
    for i in range(n):
        buffer.add(*(x[i].numpy() for x in make_batch(n, seed=seed)))


def check_agreement(device, variant, tolerance):
    """Twelve updates by hand and from graphed_updates, from the same state and noise."""
    eager, eager_buffer = agent_and_buffer(device, variant)
    graphed, graphed_buffer = agent_and_buffer(device, variant)
    updates = sac.graphed_updates(graphed, graphed_buffer, graphed.config)
    for n in range(12):
        for buffer in (eager_buffer, graphed_buffer):
            fill(buffer, 10, seed=n)  # its length must not be what it was while recording
        eager.log_alpha.data += 0.1  # as a notebook may
        graphed.log_alpha.data += 0.1
        right_batch = eager_buffer.sample(BATCH)
        right_metrics = eager.update(right_batch)
        batch, metrics = next(updates)
        expected = [*right_batch, right_metrics, eager.state_dict()]
        actual = [*batch, metrics, graphed.state_dict()]
        for old, new in zip(tree_leaves(expected), tree_leaves(actual), strict=True):
            if isinstance(old, torch.Tensor):
                torch.testing.assert_close(new, old, atol=tolerance, rtol=tolerance)
            else:
                assert new == old, (n, old, new)
    assert graphed.updates == 12


@pytest.mark.parametrize("variant", sac.VARIANTS)
def test_graphed_updates_repeat_the_eager_ones(variant, stand_in):
    """Catches a buffer length, a counter, a branch or Adam's first step that was recorded as it
    stood, a recording that counts as an update, and noise or a batch that comes twice."""
    check_agreement("cpu", variant, 0)


def test_run_on_a_gpu_yields_the_same_rows(stand_in, monkeypatch):
    """Catches a Run that never reaches the graph, and rows made of what the next update left."""
    config = sac.Config(env="Pendulum-v1", steps=260, eval_every=130, **TINY)
    expected = learned(list(sac.Run(config)))
    run, cpu = sac.Run(config), torch.device("cpu")
    act, replays = run.agent.act, []
    monkeypatch.setattr(Graph, "replay", lambda self, f=Graph.replay: replays.append(f(self)))

    def act_on_the_cpu(obs, deterministic=False):
        with monkeypatch.context() as patch:
            patch.setattr(run.agent, "device", cpu)
            return act(obs, deterministic)

    run.agent.act, run.agent.device = act_on_the_cpu, SimpleNamespace(type="cuda")
    rows = [next(iter(run)), next(iter(run))]  # a new iteration records anew
    assert learned([*rows, *run]) == expected
    assert run.agent.updates == 260 - TINY["warmup"]
    assert len(replays) == run.agent.updates - 3 * 3


def test_a_run_goes_on_after_an_interrupt_in_a_replay(stand_in, monkeypatch):
    """Catches a generator that the interrupt has ended and that is asked for more."""
    run = sac.Run(sac.Config(env="Pendulum-v1", steps=120, **TINY))
    replay = Graph.replay
    run.agent.device, run.agent.act = SimpleNamespace(type="cuda"), lambda *_, **__: np.zeros(1)

    def interrupt(graph):
        monkeypatch.setattr(Graph, "replay", replay)
        raise KeyboardInterrupt

    monkeypatch.setattr(Graph, "replay", interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(run)
    list(run)
    assert run.finished and run.agent.updates >= 120 - TINY["warmup"] - 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("variant", sac.VARIANTS)
def test_cuda_graph_repeats_the_eager_updates(variant):
    """Catches what the stand-in cannot: operations that CUDA refuses to record."""
    check_agreement("cuda", variant, 1e-4)
