"""What several test files share: a steady torch, small agents and batches, toy environments."""

import gymnasium as gym
import numpy as np
import pytest
import torch

import sac

WALL_CLOCK = ("steps_per_second", "seconds")
TINY = {"hidden": 16, "batch_size": 32, "warmup": 50, "eval_episodes": 1, "log_every": 100}


@pytest.fixture(autouse=True)
def steady_torch():
    """One thread and full precision, whatever an earlier test has set."""
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    torch.set_flush_denormal(False)


def make_agent(obs_dim=3, action_dim=2, double=False, **config):
    """A small agent of any variant; `double` turns its networks and temperature to float64."""
    config = sac.Config(**{"hidden": 8, "device": "cpu", **config})
    agent = sac.VARIANTS[config.variant](obs_dim, action_dim, config)
    if double:
        for net in (agent.actor, agent.critic, agent.target_critic):
            net.double()
        agent.log_alpha.data = agent.log_alpha.data.double()
    return agent


def make_batch(size=16, obs_dim=3, action_dim=2, seed=0, dtype=torch.float32):
    """Random transitions, about a third of them terminated."""
    g = torch.Generator().manual_seed(seed)
    return sac.Batch(
        obs=torch.randn(size, obs_dim, generator=g, dtype=dtype),
        action=torch.rand(size, action_dim, generator=g, dtype=dtype) * 2 - 1,
        reward=torch.randn(size, generator=g, dtype=dtype),
        next_obs=torch.randn(size, obs_dim, generator=g, dtype=dtype),
        terminated=(torch.rand(size, generator=g) < 0.3).to(dtype),
    )


class Clock(gym.Env):
    """Observes the steps done (or, `blind`, always 0), pays 1 a step, and ends after `limit`."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, limit=5, ends="truncated", blind=False, reward=1.0):
        self.limit, self.ends, self.blind, self.reward = limit, ends, blind, reward

    def _observe(self):
        return np.array([0 if self.blind else self.time], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self._observe(), {}

    def step(self, action):
        self.time += 1
        over = self.time == self.limit
        terminated = over and self.ends == "terminated"
        return self._observe(), self.reward, terminated, over and not terminated, {}


def learned(rows):
    """Rows as text without their wall-clock columns: equal text is bit-identical, NaN included."""
    return [repr({k: v for k, v in row.items() if k not in WALL_CLOCK}) for row in rows]


def flat(state):
    """The tensors and numbers of a nested state_dict, as one list of lists."""
    if isinstance(state, dict):
        return [x for value in state.values() for x in flat(value)]
    if isinstance(state, list | tuple):
        return [x for value in state for x in flat(value)]
    return [state.tolist() if isinstance(state, torch.Tensor) else state]
