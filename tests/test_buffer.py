"""The replay buffer, against a plain list."""

from collections import Counter, deque

import numpy as np
import pytest
import torch
from conftest import flat
from hypothesis import given, settings
from hypothesis import strategies as st

import sac


def transition(i, obs_dim=1, action_dim=1):
    """The i-th transition; each of its numbers is found nowhere else."""
    part = i + np.arange(obs_dim) / 100
    return part, -1 / (2 + i + np.arange(action_dim)), i + 0.5, -1 - part, i % 3 == 0


def filled(count, capacity, obs_dim=1, action_dim=1, seed=0):
    buffer = sac.ReplayBuffer(obs_dim, action_dim, capacity, seed=seed)
    for i in range(count):
        buffer.add(*transition(i, obs_dim, action_dim))
    return buffer


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    capacity=st.integers(1, 12),
    count=st.integers(1, 40),
    obs_dim=st.integers(1, 5),
    action_dim=st.integers(1, 4),
    seed=st.integers(0, 2**32),
)
def test_what_goes_in_comes_out_and_the_oldest_goes_first(
    capacity, count, obs_dim, action_dim, seed
):
    """Catches fields that overlap or swap, unfilled rows, a wrap that is one off, lost rows."""
    buffer = filled(count, capacity, obs_dim, action_dim, seed)
    kept = deque(range(count), maxlen=capacity)
    assert len(buffer) == len(kept)
    batch = buffer.sample(60 * capacity)
    assert all(x.dtype == torch.float32 for x in batch)
    numbers = [int(x) for x in batch.reward]
    assert set(numbers) == set(kept)  # missing one has a probability below 1e-24
    for name, column in zip(
        batch._fields, zip(*(transition(i, obs_dim, action_dim) for i in kept))
    ):
        right = dict(zip(kept, np.array(column, np.float32)))
        assert (getattr(batch, name).numpy() == np.array([right[i] for i in numbers])).all(), name


@pytest.mark.parametrize("count", [100, 70, 130], ids=["full", "part", "wrapped"])
def test_draws_are_uniform_and_with_replacement(count):
    """Catches a last row that is never drawn, an index beyond what is filled, a preference for
    the newest, and draws without replacement, which are too even."""
    buffer = filled(count, 100)
    draws = Counter(buffer.sample(256 * 100).reward.tolist())
    rows = min(count, 100)
    expected = 256 * 100 / rows
    missing = rows - len(draws)
    statistic = sum((n - expected) ** 2 / expected for n in draws.values()) + missing * expected
    low, high = {100: (61.1, 148.2), 70: (38.3, 111.1)}[rows]  # chi-square, 0.1% and 99.9%
    assert len(draws) <= rows and low < statistic < high


def test_draws_belong_to_the_seed_alone():
    """Catches draws from a global generator: two runs would disturb each other."""
    state = torch.get_rng_state(), repr(np.random.get_state())
    first, same, other = (filled(50, 50, seed=seed) for seed in (1, 1, 2))
    draws = flat(first.sample(20).reward)
    other.sample(3)
    torch.rand(1)
    assert flat(same.sample(20).reward) == draws != flat(other.sample(20).reward)
    assert flat(first.sample(20).reward) != draws
    torch.set_rng_state(state[0])
    first.sample(5)
    assert torch.equal(torch.get_rng_state(), state[0]) and repr(np.random.get_state()) == state[1]


def test_a_sample_is_a_copy_in_the_shapes_of_batch():
    """Catches (B,1) rewards, which would broadcast, and a view that later rows would change."""
    buffer = filled(4, 4, obs_dim=3, action_dim=2)
    batch = buffer.sample(7)
    shapes = {k: tuple(v.shape) for k, v in batch._asdict().items()}
    assert shapes == {
        "obs": (7, 3),
        "action": (7, 2),
        "reward": (7,),
        "next_obs": (7, 3),
        "terminated": (7,),
    }
    before = [x.clone() for x in batch]
    for i in range(4, 8):
        buffer.add(*transition(i, 3, 2))
    assert all(torch.equal(old, new) for old, new in zip(before, batch))


def test_an_empty_buffer_gives_no_batch():
    """Catches a batch of zeros, from which a run would learn nothing in silence."""
    with pytest.raises(RuntimeError, match="random_ expects"):
        sac.ReplayBuffer(1, 1, 10, seed=0).sample(1)
