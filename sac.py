"""Soft Actor-Critic (SAC) in one file, to be read from top to bottom.

    python sac.py --env HalfCheetah-v4                      train: rows, policy and curve in runs/
    python sac.py --play runs/HalfCheetah-v4/sac-seed1      see what was learned
    python sac.py --env Hopper-v4 --variant single-q        change one idea and compare (--help)

Source: Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", arXiv 1812.05905: all
equation numbers are its. Algorithm 1, as `Run.advance` and `SAC.update` carry it out:

    initialise policy phi and two critics theta; copy the critics to the targets theta'
    for each environment step:
        a ~ pi(.|s)                                             act
        s', r ~ p(.|s, a)                                       step the environment
        D <- D + (s, a, r, s', d)                               store
        for each gradient step, on a batch of D:                learn
            theta  <- theta - lr grad J_Q(theta)                    critics (Eq. 5)
            phi    <- phi - lr grad J_pi(phi)                       policy (Eq. 9)
            alpha  <- alpha - lr grad J(alpha)                      temperature (Eq. 18), by its log
            theta' <- tau theta + (1 - tau) theta'                  targets

Symbols: s, a, r, s' (obs, action, reward, next_obs); d (terminated); u (the action before tanh);
alpha (temperature: the reward that a nat of entropy is worth); gamma (discount); tau (the targets'
step). Shapes: B batch, O observation, A action, H hidden units; (2,B) has a row for each critic.

Where this differs from the paper, and why:
- The critics' learning rate is 1e-3, not 3e-4: on HalfCheetah-v4 they learn faster (see README).
- The first 5,000 steps are uniform actions without learning, so the first batches are diverse.
- Actions and entropies are in [-1,1] units, so that the target entropy -A suits any bounds.
- log_std is kept in [-20,2] by softplus: a hard clamp has no gradient at all outside.
"""

import argparse
import copy
import importlib.util
import inspect
import json
import math
import os
import re
import signal
import sys
import time
import warnings
import zipfile
import zlib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


# 1. Config: what defines a run
@dataclass(frozen=True)
class Config:
    """Each field is a flag, its comment the flag's help; a value out of range is a UsageError."""

    # Experiment
    env: str = "HalfCheetah-v4"  # gymnasium id with continuous actions, or module:Name-v0
    variant: str = "sac"  # SAC with one idea changed; the list is below
    seed: int = 1  # of weights, noise, replay, warm-up and environment
    steps: int = 100_000  # environment steps in all
    stop_at: float | None = None  # end once the mean return of an evaluation is this high
    # Algorithm
    warmup: int = 5_000  # first steps: uniform actions, no learning
    batch_size: int = 256  # transitions in an update
    buffer_size: int = 1_000_000  # transitions kept at most
    hidden: int = 256  # units in each of the two hidden layers
    gamma: float = 0.99  # discount
    tau: float = 0.005  # how far the target networks move at an update
    actor_lr: float = 3e-4  # learning rate of the policy
    critic_lr: float = 1e-3  # learning rate of the critics
    alpha_lr: float = 3e-4  # learning rate of the temperature
    alpha: float | None = None  # fixed temperature (learned unless given)
    target_entropy: float | None = None  # entropy in nats, which the learned temperature keeps (-A)
    reward_scale: float = 1.0  # factor on the rewards that the critics learn from
    updates_per_step: int = 1  # updates for each environment step
    actor_samples: int = 1  # actions per state, for variant reinforce
    # Reports
    log_every: int = 500  # steps between rows
    eval_every: int = 5_000  # steps between evaluations
    eval_episodes: int = 10  # episodes in an evaluation
    save_every: int = 50_000  # steps between saves
    # Machine
    device: str = "auto"  # cpu, cuda or mps; auto is the cpu: no GPU was measured yet
    threads: int = 0  # CPU threads; 0 is one per physical core, at most 4
    matmul_precision: str = "auto"  # highest, high, medium; auto: medium if exact, else highest

    def __post_init__(self):
        check_ranges(self)


# 2. Actor: a Gaussian squashed by tanh
def linear(inputs, outputs, generator):
    """nn.Linear with its usual initial weights, but drawn from `generator`."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, device=generator.device)
    for p in layer.parameters():
        nn.init.uniform_(p, -(inputs**-0.5), inputs**-0.5, generator=generator)
    return layer


def mlp(layer, inputs, hidden, outputs, generator):
    """Two hidden layers with ReLU; `layer` is `linear` or `TwinLinear`."""
    first, second = layer(inputs, hidden, generator), layer(hidden, hidden, generator)
    last, relu = layer(hidden, outputs, generator), nn.ReLU(inplace=True)
    return nn.Sequential(first, relu, second, relu, last)


def squash(u, mean, log_std):
    """u (...,A) ~ N(mean, exp(log_std)^2) -> action tanh(u) (...,A), its log-density (...).

    A density changes with its variable: log pi(a) = log N(u) - log |da/du| (Appendix C). But
    da/du = 1 - tanh(u)^2 rounds to 0 from |u| = 9 on. The logarithm of 4 e^-2u / (1 + e^-2u)^2,
    which is the same, is right for every u, and so is its gradient.
    """
    log_normal = -0.5 * ((u - mean) / log_std.exp()) ** 2 - log_std - 0.5 * math.log(2 * math.pi)
    log_slope = 2 * (math.log(2) - u - F.softplus(-2 * u))  # (...,A)
    return torch.tanh(u), (log_normal - log_slope).sum(-1)


class Actor(nn.Module):
    """The policy pi(a|s)."""

    def __init__(self, obs_dim, action_dim, hidden, generator):
        super().__init__()
        self.generator = generator
        self.net = mlp(linear, obs_dim, hidden, 2 * action_dim, generator)

    def forward(self, obs):
        """obs (B,O) -> mean (B,A) and log_std (B,A) of the Gaussian before tanh."""
        mean, raw = self.net(obs).chunk(2, -1)
        return mean, -20 + F.softplus(22 - F.softplus(2 - raw))  # about raw, bent into [-20,2]

    def sample(self, obs):
        """obs (B,O) -> action (B,A), log_prob (B,), both differentiable: u = mean + std * noise."""
        mean, log_std = self(obs)
        noise = torch.randn(mean.shape, generator=self.generator, device=mean.device)
        return squash(mean + log_std.exp() * noise, mean, log_std)


# 3. TwinCritic: both Q-functions in one batched network
class TwinLinear(nn.Module):
    """Two independent linear layers in one call: x (2,B,inputs) -> (2,B,outputs)."""

    def __init__(self, inputs, outputs, generator):
        super().__init__()
        a, b = linear(inputs, outputs, generator), linear(inputs, outputs, generator)
        self.weight = nn.Parameter(torch.stack([a.weight.T, b.weight.T]))  # (2,inputs,outputs)
        self.bias = nn.Parameter(torch.stack([a.bias, b.bias])[:, None])  # (2,1,outputs)

    def forward(self, x):
        return torch.baddbmm(self.bias, x, self.weight)


class TwinCritic(nn.Module):
    """Q_1(s,a) and Q_2(s,a)."""

    def __init__(self, obs_dim, action_dim, hidden, generator):
        super().__init__()
        self.net = mlp(TwinLinear, obs_dim + action_dim, hidden, 1, generator)

    def forward(self, obs, action):
        """obs (B,O), action (B,A) -> q (2,B)."""
        x = torch.cat([obs, action], -1).expand(2, -1, -1)  # (2,B,O+A)
        return self.net(x).squeeze(-1)


# 4. SAC: the losses and the update
def descend(loss, optimizer):
    """One step of gradient descent; only the optimizer's own parameters get a gradient."""
    parameters = optimizer.param_groups[0]["params"]
    for p, grad in zip(parameters, torch.autograd.grad(loss, parameters)):
        p.grad = grad
    optimizer.step()


@torch.no_grad()
def blend(target, online, tau):
    """target <- tau online + (1 - tau) target, weight by weight."""
    for old, new in zip(target.parameters(), online.parameters()):
        old.lerp_(new, tau)


class SAC:
    """Soft Actor-Critic as published: networks, temperature, and how they learn."""

    def __init__(self, obs_dim, action_dim, config):
        self.obs_dim, self.action_dim, self.config = obs_dim, action_dim, config
        self.device = pick_device(config.device)
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        self.actor = self.make_actor()
        self.critic = self.make_critic()
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)

        learned = config.alpha is None
        alpha = torch.tensor(1.0 if learned else config.alpha, device=self.device)
        self.log_alpha = alpha.log().requires_grad_()  # learned as a logarithm: alpha stays > 0
        target = config.target_entropy
        self.target_entropy = -float(action_dim) if target is None else target
        adam = torch.optim.Adam
        self.critic_optimizer = adam(self.critic.parameters(), config.critic_lr, fused=True)
        self.actor_optimizer = adam(self.actor.parameters(), config.actor_lr, fused=True)
        alpha_lr = config.alpha_lr if learned else 0.0  # so a fixed temperature stays
        self.alpha_optimizer = adam([self.log_alpha], alpha_lr, fused=True)
        self.updates = 0

    def make_actor(self):
        return Actor(self.obs_dim, self.action_dim, self.config.hidden, self.generator)

    def make_critic(self):
        return TwinCritic(self.obs_dim, self.action_dim, self.config.hidden, self.generator)

    @property
    def alpha(self):
        """The temperature, a tensor (). To set it from outside: agent.log_alpha.data.fill_(...)."""
        return self.log_alpha.exp()

    @torch.no_grad()
    def act(self, obs, deterministic=False):
        """obs (O,) or (B,O) -> action (A,) or (B,A), numpy in [-1,1]: a sample, or tanh(mean)."""
        obs = torch.as_tensor(obs, dtype=torch.float32, device=self.device)
        action = torch.tanh(self.actor(obs)[0]) if deterministic else self.actor.sample(obs)[0]
        return action.cpu().numpy()

    def combine(self, q):
        """q (2,B) -> (B,). The smaller, in target and actor alike: else overestimates win."""
        return q.min(0).values

    def backup(self, q):
        """Target critics' q (2,B) -> the Q' that enters y: (B,), or (2,B) one for each critic."""
        return self.combine(q)

    def next_value(self, next_obs):
        """V(s') = Q'(s',a') - alpha log pi(a'|s'), with a' ~ pi as it is now (Eq. 3)."""
        next_action, log_prob = self.actor.sample(next_obs)  # (B,A), (B,)
        return self.backup(self.target_critic(next_obs, next_action)) - self.alpha * log_prob

    @torch.no_grad()
    def td_target(self, batch):
        """y = r + gamma (1 - d) V(s'), without gradient: (B,), or (2,B) one for each critic."""
        r, d, v = batch.reward, batch.terminated, self.next_value(batch.next_obs)
        return self.config.reward_scale * r + self.config.gamma * (1 - d) * v

    def critic_loss(self, batch):
        """J_Q = 1/2 E[(Q_1 - y)^2] + 1/2 E[(Q_2 - y)^2], a scalar (Eq. 5)."""
        y = self.td_target(batch)  # (B,) or (2,B)
        q = self.critic(batch.obs, batch.action)  # (2,B)
        assert y.shape in (q.shape, q.shape[1:]), f"{y.shape} would broadcast against {q.shape}"
        return 0.5 * ((q - y) ** 2).mean(1).sum()

    def actor_loss(self, obs):
        """J_pi = E[alpha log pi(a|s) - Q(s,a)], a scalar (Eq. 7 and 9), and log_prob (B,)."""
        action, log_prob = self.actor.sample(obs)  # (B,A), (B,)
        q = self.combine(self.critic(obs, action))  # (B,)
        return (self.alpha.detach() * log_prob - q).mean(), log_prob

    def alpha_loss(self, log_prob):
        """J(alpha) = E[-alpha (log pi(a|s) + target entropy)], a scalar (Eq. 18)."""
        return -(self.alpha * (log_prob + self.target_entropy).detach()).mean()

    def update_target(self):
        """theta' <- tau theta + (1 - tau) theta'."""
        blend(self.target_critic, self.critic, self.config.tau)

    def update(self, batch):
        """One gradient step on everything (Algorithm 1); returns scalars, as tensors, by name."""
        critic_loss = self.critic_loss(batch)
        descend(critic_loss, self.critic_optimizer)

        actor_loss, log_prob = self.actor_loss(batch.obs)
        descend(actor_loss, self.actor_optimizer)

        alpha_loss = self.alpha_loss(log_prob)
        descend(alpha_loss, self.alpha_optimizer)

        self.updates += 1
        self.update_target()
        losses = {"critic_loss": critic_loss, "actor_loss": actor_loss, "alpha_loss": alpha_loss}
        return {k: v.detach() for k, v in (losses | {"entropy": -log_prob.mean()}).items()}

    def state_dict(self):
        """All that `update` and `act` depend on."""
        parts = {k: v.state_dict() for k, v in vars(self).items() if hasattr(v, "state_dict")}
        scalars = {"log_alpha": self.log_alpha.detach(), "updates": self.updates}
        return parts | scalars | {"rng": self.generator.get_state()}

    def load_state_dict(self, state):
        """The inverse; where names or shapes differ KeyError, ValueError or RuntimeError."""
        for name, part in vars(self).items():
            if hasattr(part, "load_state_dict"):
                part.load_state_dict(state[name])
        self.log_alpha.data.copy_(state["log_alpha"])
        self.updates = state["updates"]
        restore(self.generator, state["rng"])


# 5. Variants: one idea changed or taken away
class SingleQ(SAC):
    """Q_1 alone, as in DDPG: expect Q above the return that it predicts."""

    def combine(self, q):
        return q[0]


class MeanQ(SAC):
    """The mean of both critics: less noise, but nothing leans against overestimation."""

    def combine(self, q):
        return q.mean(0)


class DoubleQ(MeanQ):
    """y_1 looks ahead with Q'_2 and back (van Hasselt 2010): less bias than mean-q."""

    def backup(self, q):
        return q.flip(0)  # (2,B)


class Reinforce(SAC):
    """log pi(a) times how bad K actions were (Williams 1992, no baseline): noisy."""

    def actor_loss(self, obs):
        """A surrogate whose gradient is the score-function estimate, and log_prob (K B,)."""
        obs = obs.repeat(self.config.actor_samples, 1)  # (K B,O)
        mean, log_std = self.actor(obs)
        noise = torch.randn(mean.shape, generator=self.generator, device=self.device)
        u = (mean + log_std.exp() * noise).detach()  # (K B,A)
        action, log_prob = squash(u, mean, log_std)
        cost = self.alpha * log_prob - self.combine(self.critic(obs, action))  # (K B,)
        return (log_prob * cost.detach()).mean(), log_prob


class HardTarget(SAC):
    """Copies every 1/tau updates (DQN, Mnih 2015): targets stand still, then jump."""

    def update_target(self):
        if self.updates % round(1 / self.config.tau) == 0:
            self.target_critic.load_state_dict(self.critic.state_dict())


class NoEntropy(SAC):
    """alpha = 0, plain actor-critic: expect the noise to vanish, often too early."""

    def __init__(self, obs_dim, action_dim, config):
        super().__init__(obs_dim, action_dim, replace(config, alpha=0.0))


class DDPG(NoEntropy):
    """SAC's ancestor (Lillicrap 2015): noise from outside, Q_1 alone, target actor."""

    def __init__(self, obs_dim, action_dim, config):
        super().__init__(obs_dim, action_dim, config)
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(False)

    def act(self, obs, deterministic=False):
        action = super().act(obs, deterministic=True)
        if not deterministic:  # noise of 0.1 as in Fujimoto 2018
            noise = torch.randn(action.shape, generator=self.generator, device=self.device)
            action = np.clip(action + 0.1 * noise.cpu().numpy(), -1, 1)
        return action

    def next_value(self, next_obs):
        next_action = torch.tanh(self.target_actor(next_obs)[0])  # (B,A)
        return self.target_critic(next_obs, next_action)[0]  # (B,)

    def actor_loss(self, obs):
        q = self.critic(obs, torch.tanh(self.actor(obs)[0]))[0]  # (B,)
        return -q.mean(), torch.zeros_like(q)  # no density: entropy is reported as 0

    def update_target(self):
        super().update_target()
        blend(self.target_actor, self.actor, self.config.tau)


VARIANTS = {"sac": SAC, "single-q": SingleQ, "double-q": DoubleQ, "mean-q": MeanQ, "ddpg": DDPG}
VARIANTS |= {"reinforce": Reinforce, "hard-target": HardTarget, "no-entropy": NoEntropy}


# 6. Replay buffer
class Batch(NamedTuple):
    """Transitions as the losses read them, float32."""

    obs: torch.Tensor  # (B,O)
    action: torch.Tensor  # (B,A) in [-1,1]
    reward: torch.Tensor  # (B,)
    next_obs: torch.Tensor  # (B,O)
    terminated: torch.Tensor  # (B,) 1 where the task itself ended, 0 where only time ran out


class ReplayBuffer:
    """The last `capacity` transitions, as rows of one float32 array: a batch is one gather."""

    def __init__(self, obs_dim, action_dim, capacity, seed, device="cpu"):
        self.widths = [obs_dim, action_dim, 1, obs_dim, 1]
        rows = np.zeros((capacity, sum(self.widths)), np.float32)  # takes memory as it is filled
        self.rows = torch.from_numpy(rows).to(device)
        self.generator = torch.Generator(device).manual_seed(seed)
        self.added = 0

    def __len__(self):
        return min(self.added, len(self.rows))

    def add(self, obs, action, reward, next_obs, terminated):
        """Stores (O,), (A,), float, (O,), bool in place of the oldest transition."""
        row = np.concatenate([obs, action, [reward], next_obs, [terminated]], dtype=np.float32)
        self.rows[self.added % len(self.rows)] = torch.from_numpy(row)
        self.added += 1

    def draw(self, batch_size):
        """Row numbers (B,) drawn uniformly, with replacement."""
        size, generator = (batch_size,), self.generator
        return torch.randint(len(self), size, generator=generator, device=self.rows.device)

    def __getitem__(self, index):
        """The Batch of these rows, one gather."""
        obs, action, reward, next_obs, d = self.rows.index_select(0, index).split(self.widths, 1)
        return Batch(obs, action, reward.squeeze(1), next_obs, d.squeeze(1))

    def sample(self, batch_size):
        """A random Batch; ValueError while there is none to draw."""
        if not self.added:
            raise ValueError("the replay buffer is empty: add a transition first")
        return self[self.draw(batch_size)]


# 7. Environments
class UsageError(ValueError):
    """A user's mistake: one line that says what was wrong and what to do."""


class UnitActions(gym.ActionWrapper):
    """Flat actions in [-1,1] for a Box of any shape and bounds."""

    def __init__(self, env):
        super().__init__(env)
        self.box = env.action_space
        self.action_space = gym.spaces.Box(-1, 1, (math.prod(self.box.shape),), np.float32)

    def action(self, action):
        a = np.asarray(action, np.float64).reshape(self.box.shape)
        scaled = 0.5 * (1 - a) * self.box.low + 0.5 * (1 + a) * self.box.high
        return np.clip(scaled, self.box.low, self.box.high).astype(self.box.dtype)


def make_env(env, render_mode=None):
    """A gymnasium id or zero-argument callable, made flat, actions in [-1,1]; or UsageError."""
    name = env if isinstance(env, str) else getattr(env, "__name__", "the environment")
    env = gym_make(env, render_mode) if isinstance(env, str) else env()
    box, obs = env.action_space, env.observation_space
    if not isinstance(box, gym.spaces.Box) or box.dtype.kind != "f":
        raise UsageError(f"{name} has the actions {box}; SAC needs continuous ones, a float Box")
    if not np.isfinite([box.low, box.high]).all():
        raise UsageError(f"{name} has infinite action bounds; give its Box a finite low and high")
    if box.low.size == 0 or (box.low >= box.high).any():
        raise UsageError(f"{name} has an action with low = high in {box}; take it out")
    if isinstance(obs, gym.spaces.Box) and obs.dtype == np.uint8 and len(obs.shape) > 1:
        raise UsageError(f"{name} observes images, {obs.shape}; these networks read flat vectors")
    if not obs.is_np_flattenable:
        raise UsageError(f"{name} observes {obs}, which gymnasium cannot flatten")
    env = gym.wrappers.FlattenObservation(UnitActions(env))
    flat = gym.spaces.Box(-np.inf, np.inf, env.observation_space.shape, np.float32)
    return gym.wrappers.TransformObservation(env, lambda obs: obs.astype(np.float32), flat)


def gym_make(env_id, render_mode):
    """gym.make without its noise; whatever goes wrong becomes a UsageError."""
    headless = sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    if headless and render_mode == "human":
        raise UsageError("there is no display for --render; --video FILE.gif needs none")
    if headless and render_mode:
        os.environ.setdefault("MUJOCO_GL", "egl")  # read when mujoco is first imported
    try:
        if importlib.util.find_spec("mujoco"):
            import mujoco  # left alone, it writes its warnings to MUJOCO_LOG.TXT right here

            mujoco.set_mju_user_warning(lambda text: warnings.warn(f"mujoco: {text}"))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="(?s).*(out of date|settotalmass)")
            return gym.make(env_id, render_mode=render_mode, disable_env_checker=True)
    except Exception as error:  # anything, from a third party's module or constructor
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(f"cannot make {env_id}: {reason}") from None


def evaluate(agent, env, episodes, seed):
    """Undiscounted returns (episodes,) of the mean action. Draws nothing from training's state."""
    returns = np.zeros(episodes)
    for i in range(episodes):
        obs, _ = env.reset(seed=None if i else seed)  # each evaluation meets the same starts
        terminated = truncated = False
        while not (terminated or truncated):
            obs, reward, terminated, truncated, _ = env.step(agent.act(obs, deterministic=True))
            returns[i] += reward
    return returns


# 8. Run: the loop, and what is kept of it
COLUMNS = """step episodes train_return train_length eval_return eval_min eval_max critic_loss
    actor_loss alpha_loss alpha entropy target_entropy q_mean steps_per_second seconds""".split()
COUNTERS = "step episodes seconds history last_return last_length evaluation".split()
MAY_CHANGE = "steps stop_at device threads".split()  # on --resume


class Diverged(RuntimeError):
    """NaN or infinity; the message names the quantity and the step."""


def check_ranges(config):
    """Raises UsageError for the first field of a Config that is out of its range."""
    choices = {"variant": VARIANTS, "matmul_precision": ("auto", "highest", "high", "medium")}
    for name, x in vars(config).items():
        if Config.__annotations__[name] is int:
            low = 0 if name in ("warmup", "seed", "threads") else 1
            valid, rule = isinstance(x, int) and x >= low, f"a whole number, {low} or more"
        elif name in choices:
            valid, rule = x in choices[name], "one of " + ", ".join(choices[name])
        elif name in ("gamma", "tau"):
            valid, rule = 0 <= x <= 1 and (x > 0 or name == "gamma"), "between 0 and 1"
        elif name in ("target_entropy", "stop_at"):
            valid, rule = x is None or math.isfinite(x), "finite"
        else:
            valid = isinstance(x, str | None) or 0 < x < math.inf or (x == 0 and name == "alpha")
            rule = "positive and finite"
        if not valid:
            raise UsageError(f"--{name.replace('_', '-')} must be {rule}, not {x}")


def pick_device(name):
    """The torch.device of that name, auto being the CPU; raises UsageError."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name not in ("auto", "cpu") and not there.get(name):
        raise UsageError(f"--device {name} is not to be had on this machine: try --device cpu")
    return torch.device("cpu" if name == "auto" else name)


def configure_torch(config):
    """Sets the process's threads and precision, before its first tensor operation."""
    # Numbers below 1e-38, as units that are never active leave in Adam's moments, are slow, a
    # tenth of a step in all: take them as 0. Threads inherit this if they start later.
    torch.set_flush_denormal(True)
    torch.set_num_threads(config.threads or min(torch.get_num_threads(), 4))
    precision = config.matmul_precision
    if precision == "auto":
        # On a CPU "medium" means oneDNN: on some faster, and exact; but with bfloat16 units it
        # keeps 3 digits. So try it. (On a GPU it would mean TF32.)
        torch.set_float32_matmul_precision("medium")
        a = torch.linspace(-1, 1, 256 * 256).view(256, 256)
        exact = ((a @ a) - a.double() @ a.double()).abs().max() < 1e-4
        precision = "medium" if exact and pick_device(config.device).type == "cpu" else "highest"
    torch.set_float32_matmul_precision(precision)
    # Once something large (just under 32 MiB) was freed, glibc keeps freed tensors' pages for the
    # next ones, instead of giving them back each time: a fifth of an update on two threads.
    torch.empty(7_900_000)


def graphed_updates(agent, buffer, config):
    """On a GPU: (batch, metrics) of each sample and update, from the fourth on as one CUDA graph.

    An update is some 200 small kernels, and launching them costs more than running them. A graph
    is one launch: it repeats what was recorded, on the same memory. So Python's numbers and
    branches stay as they were then, and each batch and metric is overwritten by the next.
    """
    side, adams = torch.cuda.Stream(), [x for x in vars(agent).values() if hasattr(x, "step")]
    eager = 0  # recorded is on another stream than the usual, and after Adam has made its moments
    while eager < 3 or isinstance(agent, HardTarget):  # its `if` cannot be recorded
        eager += 1
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            batch = buffer.sample(config.batch_size)
            metrics = agent.update(batch)
        torch.cuda.current_stream().wait_stream(side)
        yield batch, metrics
    index, graph = buffer.draw(config.batch_size), torch.cuda.CUDAGraph()
    graph.register_generator_state(agent.generator)  # torch 2.14 does this by itself
    for adam in adams:  # which refuses a recording without this, and warns of it elsewhere
        adam.param_groups[0]["capturable"] = True
    with torch.cuda.graph(graph):  # records kernels, runs none; Python runs, and counts one
        batch = buffer[index]
        metrics = agent.update(batch)
    for adam in adams:
        adam.param_groups[0]["capturable"] = False
    while True:
        graph.replay()
        yield batch, metrics
        agent.updates += 1  # for the next, which Python does not see
        index.copy_(buffer.draw(config.batch_size))


def versions(device):
    """What the numbers of a run depend on besides its config."""
    names = [name for name in ("torch", "gymnasium", "numpy", "mujoco") if name in sys.modules]
    found = {name: str(sys.modules[name].__version__) for name in names}
    found |= {"python": sys.version.split()[0], "device": str(device)}
    found |= {"sac.py": f"{zlib.crc32(Path(__file__).read_bytes()):08x}"}
    precision = torch.get_float32_matmul_precision()
    return found | {"threads": torch.get_num_threads(), "matmul_precision": precision}


def free_memory():
    """Bytes that the machine can still give, where the system tells (Linux), else infinity."""
    try:
        return 1024 * int(re.search(r"MemAvailable:\D*(\d+)", Path("/proc/meminfo").read_text())[1])
    except OSError:
        return math.inf


def restore(generator, state):
    """Sets a generator's state, unless it comes from another kind of device."""
    if state.shape == generator.get_state().shape:
        generator.set_state(state)


def write(path, content):
    """Calls content(file); then `path` holds all of it or, if interrupted, what it held before."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            content(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError when a disk is full
        temporary.unlink(missing_ok=True)
        raise OSError(f"cannot write {path}: {error}") from None


def as_text(row):
    """A row as a line of progress.csv."""
    return ",".join(f"{x:.10g}" for x in row.values()) + "\n"


def read_checkpoint(folder):
    """The state that Run.save wrote, with a Config; runs no code of it. Raises UsageError."""
    path = Path(folder, "checkpoint.pt")
    if not path.is_file():
        raise UsageError(f"{folder} is not the folder of a saved run: it has no checkpoint.pt")
    try:
        with zipfile.ZipFile(path) as archive:
            # A wrong checksum; or an attribute, which has none, and could turn a tensor to nothing
            if archive.testzip() or any(entry.external_attr for entry in archive.infolist()):
                raise ValueError
        state = torch.load(path, map_location="cpu", weights_only=True)
        state["counters"] = {name: state["counters"][name] for name in COUNTERS}
        return state | {"config": Config(**state["config"]), "agent": dict(state["agent"])}
    except Exception:  # there is no end to the ways in which a file can be broken
        raise UsageError(f"{path} is damaged, or not of this version of sac.py") from None


def make_agent(env, config, state=None):
    """The agent that config.variant names, for a made env; with the `state` of a checkpoint."""
    agent = VARIANTS[config.variant](*env.observation_space.shape, *env.action_space.shape, config)
    try:
        if state:
            agent.load_state_dict(state)
    except (KeyError, ValueError, RuntimeError, TypeError):
        raise UsageError("the networks in sac.py are not like those that were saved") from None
    return agent


class Run:
    """Training: iterate over it; it yields a row (COLUMNS), a dict of floats, at each report.

    Break off and iterate again: it goes on where it stood. `env`, a zero-argument callable, takes
    the place of config.env. In `folder`, which must be new, it keeps its rows and saves itself.
    """

    save_replay = True  # False: smaller folders, but a resumed run has to fill its replay again
    graphed = None  # see graphed_updates

    def __init__(self, config, env=None, folder=None):
        if env is not None:
            config = replace(config, env=getattr(env, "__name__", "custom"))
        self.config = config
        self.env, self.eval_env = make_env(env or config.env), make_env(env or config.env)
        self.agent = make_agent(self.env, config)
        size = min(config.buffer_size, config.steps)
        dims, device = (self.agent.obs_dim, self.agent.action_dim), self.agent.device
        self.buffer = ReplayBuffer(*dims, size, config.seed, device)
        if (need := self.buffer.rows.nbytes) > (free := free_memory()):
            text = f"the replay grows to {need / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free"
            warnings.warn(f"{text}: give a smaller --buffer-size")
        self.rng = np.random.default_rng(config.seed)  # of warm-up actions
        self.step = self.episodes = self.saved_at = 0
        self.seconds, self.history, self.metrics = 0.0, [], {}
        self.loss_sum = 0.0  # not finite once any loss was not: no need to look at each
        self.obs = None  # None between two episodes
        self.last_return = self.last_length = math.nan  # of the last whole episode
        self.evaluation = (math.nan, math.nan, math.nan)  # mean, lowest, highest return
        self.stop_by = math.inf  # if finite: stop when an episode ends, at that time at the latest
        self.folder = self.replay_file = None  # the name of the replay that the last save refers to
        if folder is not None:
            self.save(folder)

    @property
    def finished(self):
        """Whether all steps are done, or an evaluation has reached stop_at."""
        goal = math.inf if self.config.stop_at is None else self.config.stop_at
        return self.step >= self.config.steps or self.evaluation[0] >= goal

    def __iter__(self):
        c = self.config
        self.graphed = None  # record anew what may have been changed, or interrupted
        self._attempt(self._describe)
        self._attempt(self._tidy)
        clock, start = time.perf_counter(), self.step
        while not self.finished:
            if time.monotonic() >= self.stop_by or (self.obs is None and self.stop_by < math.inf):
                self.stop_by = math.inf
                return self._attempt(self.save)
            self.advance()
            row = None
            evaluating = self.step % c.eval_every == 0 or self.step == c.steps
            if evaluating or self.step % c.log_every == 0:
                speed = (self.step - start) / (time.perf_counter() - clock)
                if evaluating:
                    returns = evaluate(self.agent, self.eval_env, c.eval_episodes, c.seed + 1)
                    self.evaluation = tuple(float(f(returns)) for f in (np.mean, np.min, np.max))
                self.seconds += time.perf_counter() - clock
                row = self._row(speed)
            if self.finished or (self.obs is None and self.step - self.saved_at >= c.save_every):
                self._attempt(self.save)
            if row:
                yield row
                clock, start = time.perf_counter(), self.step

    def advance(self):
        """One environment step of Algorithm 1."""
        if self.obs is None:
            self.obs, _ = self.env.reset(seed=None if self.step else self.config.seed)
            self.episode_return, self.episode_length = 0.0, 0

        # Act
        if self.step < self.config.warmup:
            action = self.rng.uniform(-1, 1, self.agent.action_dim).astype(np.float32)
        else:
            action = self.agent.act(self.obs)

        # Step the environment
        next_obs, reward, terminated, truncated, _ = self.env.step(action)
        self.step += 1
        seen = ("observation", self.obs), ("action", action), ("observation", next_obs)
        for name, value in (*seen, ("reward", reward)):
            if not np.isfinite(value).all():
                raise Diverged(f"NaN or infinity in the {name} at step {self.step}")

        # Store. Only `terminated` ends the future: after a time limit, more would have come
        self.buffer.add(self.obs, action, reward, next_obs, terminated)

        # Learn
        if self.buffer.added > self.config.warmup:
            for _ in range(self.config.updates_per_step):
                if self.agent.device.type == "cuda":
                    if self.graphed is None:
                        self.graphed = graphed_updates(self.agent, self.buffer, self.config)
                    self.batch, self.metrics = next(self.graphed)
                else:
                    self.batch = self.buffer.sample(self.config.batch_size)
                    self.metrics = self.agent.update(self.batch)
                for name in ("critic_loss", "actor_loss"):
                    self.loss_sum = self.loss_sum + self.metrics[name]

        self.obs = None if terminated or truncated else next_obs
        self.episode_return += float(reward)
        self.episode_length += 1
        if self.obs is None:
            self.last_return, self.last_length = self.episode_return, self.episode_length
            self.episodes += 1

    def _row(self, speed):
        names = "eval_return eval_min eval_max train_return train_length".split()
        row = dict.fromkeys(COLUMNS, math.nan)
        row |= dict(zip(names, (*self.evaluation, self.last_return, self.last_length)))
        row |= {"step": self.step, "episodes": self.episodes, "seconds": self.seconds}
        row |= {"alpha": self.agent.alpha.item(), "target_entropy": self.agent.target_entropy}
        row |= {"steps_per_second": speed} | self.metrics
        if self.metrics:
            with torch.no_grad():
                q = self.agent.critic(self.batch.obs, self.batch.action)
                row["q_mean"] = self.agent.combine(q).mean()
            for name in ("alpha", "q_mean", *self.metrics):
                if not math.isfinite(row[name] + self.loss_sum):
                    name = "a loss" if math.isfinite(row[name]) else name
                    raise Diverged(f"NaN or infinity in {name} at step {self.step}")
            if abs(row["q_mean"]) > 1e5:
                advice = "lower --critic-lr or --tau, or large rewards by --reward-scale"
                warnings.warn(f"mean |Q| has passed 100,000, the critics may diverge: {advice}")
            if row["alpha"] > 1e3:
                advice = "the policy cannot reach its target entropy: lower --target-entropy"
                warnings.warn(f"alpha has passed 1,000 and may grow for ever: {advice}")
        self.history.append({name: float(value) for name, value in row.items()})
        self._attempt(self._append, self.history[-1])
        return self.history[-1]

    def _describe(self):
        about = {"config": asdict(self.config), "versions": versions(self.agent.device)}
        text = (json.dumps(about, indent=2) + "\n").encode()
        write(self.folder / "config.json", lambda file: file.write(text))
        # After a resume without the rows that come again, after a full disk with those it refused
        table = (",".join(COLUMNS) + "\n" + "".join(map(as_text, self.history))).encode()
        write(self.folder / "progress.csv", lambda file: file.write(table))

    def _tidy(self):  # earlier replays, and what an interrupted save left
        for path in (*self.folder.glob("replay-*"), *self.folder.glob("*.tmp")):
            if path.name != self.replay_file:
                path.unlink()

    def _append(self, row):
        with open(self.folder / "progress.csv", "a") as file:
            file.write(as_text(row))

    def _attempt(self, action, *arguments):
        try:
            if self.folder:
                action(*arguments)
        except OSError as error:
            warnings.warn(f"step {self.step}: could not write to {self.folder}: {error}")

    def save(self, folder=None):
        """Saves all that --resume needs; if interrupted, the save before stays.

        A new `folder` becomes the run's own; UsageError if it is not new. Raises OSError, and
        Diverged if any loss was NaN or infinite: what was saved before is worth more then.
        """
        if not math.isfinite(self.loss_sum):
            raise Diverged(f"NaN or infinity in a loss by step {self.step}")
        if folder is not None and Path(folder) != self.folder:
            if Path(folder).exists():
                raise UsageError(f"{folder} exists; --resume {folder} continues a run")
            Path(folder).mkdir(parents=True)
            self.folder = Path(folder)
        self.saved_at = self.step  # also where it fails, or each episode's end would try again
        rows = self.buffer.rows[: len(self.buffer)].cpu().numpy()
        replay = self.folder / f"replay-{self.step}.npy"
        state = {
            "config": asdict(self.config),
            "versions": versions(self.agent.device),
            "counters": {name: getattr(self, name) for name in COUNTERS},
            "between_episodes": self.obs is None,
            "agent": self.agent.state_dict(),
            "added": self.buffer.added,
            "replay": self.save_replay and {"file": replay.name, "crc32": zlib.crc32(rows)},
            "replay_rng": self.buffer.generator.get_state(),
            "warmup_rng": self.rng.bit_generator.state,
            "env_rng": self.env.unwrapped.np_random.bit_generator.state,
        }
        if self.save_replay:
            write(replay, lambda file: np.save(file, rows))
        write(self.folder / "checkpoint.pt", lambda file: torch.save(state, file))
        self.replay_file = replay.name if self.save_replay else None
        self._tidy()
        self._describe()
        if self.history:
            write(self.folder / "learning_curve.png", plot_runs([self]).savefig)

    @classmethod
    def load(cls, folder, env=None, **changes):
        """The run saved in `folder`; `changes` enter its config, if they are among MAY_CHANGE.

        Saved between two episodes it goes on, bit for bit, as if it had never stopped: on the
        same machine, threads and versions. Where that cannot be, it warns. Raises UsageError.
        """
        state = read_checkpoint(folder)
        if stray := changes.keys() - MAY_CHANGE:
            raise UsageError(f"{', '.join(stray)} cannot change in a run: begin another")
        config, done = replace(state["config"], **changes), state["counters"]["step"]
        if done > config.steps:
            raise UsageError(f"{folder} has done {done} steps already: give more --steps")
        run = cls(config, env)
        run.agent = make_agent(run.env, run.config, state["agent"])
        vars(run).update(state["counters"])
        try:
            run.rng.bit_generator.state = state["warmup_rng"]
            run.env.unwrapped.np_random.bit_generator.state = state["env_rng"]
            restore(run.buffer.generator, state["replay_rng"])
            old, whole, replay = state["versions"], state["between_episodes"], state["replay"]
            if replay:
                rows = np.load(Path(folder, replay["file"]), mmap_mode="c", allow_pickle=False)
                if rows.dtype != np.float32 or zlib.crc32(rows) != replay["crc32"]:
                    raise ValueError(f"{replay['file']} is not that of checkpoint.pt")
                run.buffer.rows[: len(rows)] = torch.from_numpy(rows)
                run.buffer.added = state["added"]
            changed = [k for k, v in versions(run.agent.device).items() if v != old.get(k)]
        except Exception as error:  # as above
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UsageError(f"the save in {folder} is incomplete or damaged: {reason}") from None
        run.folder, run.saved_at, run.save_replay = Path(folder), run.step, bool(replay)
        run.replay_file = replay["file"] if replay else None
        if not replay:
            warnings.warn("saved without its replay: it fills again before learning goes on")
        if not whole:
            warnings.warn(f"saved inside an episode: after step {run.step} a new one begins")
        if changed:
            warnings.warn(f"not exactly the saved run any more: other {', '.join(changed)}")
        return run


# 9. Pictures and the command line
PANELS = {"eval_return": "evaluation return", "q_mean": "mean Q of a batch"}
PANELS |= {"entropy": "entropy of the policy (nats)", "alpha": "temperature alpha"}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito's


def plot_runs(runs):
    """A matplotlib Figure of Runs, or of folders of runs: return, Q, entropy, alpha over steps.

    Runs that differ in their seed alone become one line, the mean, in a band from lowest to
    highest; others get lines of their own, named by what differs. Raises UsageError.
    """
    from matplotlib.figure import Figure  # pyplot would take a second to import

    pairs, groups = [], {}
    for run in runs:
        try:
            if isinstance(run, Run):
                config, table = run.config, [list(row.values()) for row in run.history]
            else:
                config = Config(**json.loads(Path(run, "config.json").read_text())["config"])
                table = np.loadtxt(Path(run, "progress.csv"), delimiter=",", skiprows=1, ndmin=2)
            pairs.append((asdict(config), dict(zip(COLUMNS, np.transpose(table), strict=True))))
        except (OSError, ValueError, KeyError, TypeError):
            raise UsageError(f"{run} is not the folder of a run that has begun") from None
    names = pairs[0][0].keys() - {"seed", *MAY_CHANGE}
    names = sorted(name for name in names if len({config[name] for config, _ in pairs}) > 1)
    for config, columns in pairs:
        label = ", ".join(f"{name} {config[name]}" for name in names)
        label = label or f"{config['env']}, {config['variant']}"
        groups.setdefault(label, []).append((columns, config))
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    for panel, (name, title) in zip(figure.subplots(2, 2, sharex=True).flat, PANELS.items()):
        for i, (label, seeds) in enumerate(groups.items()):
            curves = []
            for columns, config in seeds:
                at = columns["step"] % (config["eval_every"] if name == "eval_return" else 1) == 0
                at[-1] = True
                curves.append(dict(zip(columns["step"][at], columns[name][at])))
            steps = sorted(set.intersection(*map(set, curves)))
            values = np.array([[curve[step] for step in steps] for curve in curves])
            style = {"color": COLOURS[i % 6], "ls": ("-", "--", "-.", ":")[i % 4]}
            label += f" ({len(seeds)} seeds)" if len(seeds) > 1 else ""
            panel.plot(steps, values.mean(0), label=label, **style)
            panel.fill_between(steps, values.min(0), values.max(0), alpha=0.2, fc=COLOURS[i % 6])
        panel.set_title(title)
        panel.grid(alpha=0.3)
    if all((columns["alpha"] > 0).all() for _, columns in pairs):
        panel.set_yscale("log")
    figure.axes[0].legend()
    figure.supxlabel("environment steps")
    return figure


def parse(argv):
    """The flags that were given, as a dict; those of Config are read from its source."""
    lines = (f"  {name:13}{kind.__doc__.splitlines()[0]}" for name, kind in VARIANTS.items())
    parser = argparse.ArgumentParser(
        usage="python sac.py [flags]",
        epilog="\n".join(("variants:", *lines)),
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, 2, 29, 100),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for line in inspect.getsource(Config).splitlines():
        if title := re.fullmatch(r"    # (\w+)", line):
            group = parser.add_argument_group(title[1])
        elif field := re.fullmatch(r"    (\w+): (\w+).* = (.*)  # (.*)", line):
            name, kind, default, text = field.groups()
            text += "" if default == "None" else " (" + default.strip('"') + ")"
            kind = {"int": int, "float": float, "str": str}[kind]
            group.add_argument("--" + name.replace("_", "-"), type=kind, metavar="X", help=text)
    add = parser.add_argument_group("Files").add_argument
    add("--out", metavar="DIR", help="run folder (runs/ENV/VARIANT-seedN, then -2, -3)")
    add(
        "--resume", metavar="DIR", nargs="?", const="", help="go on; no DIR: the run of these flags"
    )
    add("--no-save-replay", action="store_true", help="small folders, whose resume is not exact")
    add("--tensorboard", action="store_true", help="write event files too")
    add("--plot", metavar="DIR", nargs="+", help="draw runs side by side into a new --out FILE")
    add("--play", metavar="DIR", help="play the policy saved there and print the returns")
    add("--episodes", metavar="X", type=int, help="of --play (10)")
    add("--render", action="store_true", help="--play in a window")
    add("--video", metavar="FILE", help="film the first episode of --play: .gif, .webp or .mp4")

    def refuse(message):
        raise UsageError(f"{message} (--help lists the flags)")

    parser.error = refuse
    return vars(parser.parse_args(argv))


def open_run(flags, out=None, resume=None, no_save_replay=False):
    """The Run that the command line asks for: a new one, or one that goes on."""
    if out and resume:
        raise UsageError("--out is for a new run, --resume DIR for an old one: choose")
    config = Config(**flags)
    place = Path("runs", re.sub(r"[^\w.-]", "-", config.env), f"{config.variant}-seed{config.seed}")
    folder, n = Path(out or place), 1
    while folder.exists():  # a bare --resume goes on with the first of these that was saved
        if resume == "" and (folder / "checkpoint.pt").exists():
            resume = folder
        if out:
            break
        folder = Path(f"{place}-{(n := n + 1)}")
    if resume:
        saved = read_checkpoint(resume)["config"]
        changes = {name: x for name, x in flags.items() if x != getattr(saved, name)}
        for name in changes.keys() - MAY_CHANGE:
            was = getattr(saved, name)
            raise UsageError(f"{resume} has {name} {was}, not {flags[name]}: begin another run")
        configure_torch(replace(saved, **changes))
        run = Run.load(resume, **changes)
    else:
        configure_torch(config)
        run = Run(config, folder=folder)
    run.save_replay = run.save_replay and not no_save_replay
    return run


def describe(run, row):
    """A row in one line."""
    left = int((run.config.steps - run.step) / row["steps_per_second"])
    left = f"{left // 60}:{left % 60:02} left" if run.metrics else "warm-up"
    return (
        f"{run.step:>9,}/{run.config.steps:,} {run.step / run.config.steps:4.0%} {left:>11} "
        f"{row['steps_per_second']:6.0f} steps/s  return {row['train_return']:.1f}  "
        f"evaluation {row['eval_return']:.1f}  alpha {row['alpha']:.3g}  "
        f"entropy {row['entropy']:.2f} ({row['target_entropy']:g})  Q {row['q_mean']:.1f}"
    )


def train(run, tensorboard=False):
    """Trains, with a line for each row; returns the exit code."""
    c, agent, signals = run.config, run.agent, []
    weights = sum(p.numel() for net in (agent.actor, agent.critic) for p in net.parameters())
    megabytes, dims = run.buffer.rows.nbytes / 1e6, (agent.obs_dim, agent.action_dim)
    print(f"{c.env}, {c.variant}, seed {c.seed}: %d observations, %d actions, " % dims, end="")
    print(f"{weights:,} parameters, {megabytes:.1f} MB of replay")
    print(f"{agent.device}, {torch.get_num_threads()} threads; writing to {run.folder}")
    if tensorboard:
        from torch.utils.tensorboard import SummaryWriter

        events = SummaryWriter(run.folder)

    def stop(number, _):
        if signals:
            os._exit(128 + number)
        signals.append(number)
        run.stop_by = time.monotonic() + (8 if number == signal.SIGTERM else 600)
        os.write(1, b"\nstopping at the end of the episode; once more: at once\n")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    width = os.get_terminal_size().columns - 1 if sys.stdout.isatty() else 0
    try:
        for row in run:
            line = describe(run, row)
            if width:  # a terminal: rewrite the line, and keep it where there was an evaluation
                line = "\r" + line[:width].ljust(width)
            keep = not width or run.step % c.eval_every == 0 or run.finished
            print(line, end="\n" if keep else "", flush=True)
            for name in row if tensorboard else ():
                events.add_scalar(name, row[name], run.step)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if tensorboard:
            events.close()
    if run.finished:
        mean, low, high = run.evaluation
        print(f"final evaluation {mean:.1f} ({low:.1f} to {high:.1f}), {c.eval_episodes} episodes")
        print(f"watch it:  python sac.py --play {run.folder} --render   (or --video FILE.gif)")
    else:
        print(f"\ngo on:  python sac.py --resume {run.folder}")
    return 128 + signals[0] if signals else 0


def play(folder, flags, episodes=10, render=False, video=None):
    """Plays a saved policy with its mean action, prints the returns, may film the first episode."""
    if video and (Path(video).exists() or Path(video).suffix not in (".gif", ".webp", ".mp4")):
        raise UsageError(f"--video needs a new file ending in .gif, .webp or .mp4, not {video}")
    if video and video.endswith(".mp4") and not importlib.util.find_spec("imageio_ffmpeg"):
        raise UsageError("--video FILE.mp4 needs: pip install imageio-ffmpeg; .gif needs nothing")
    if video and render:
        raise UsageError("--render and --video do not go together: choose one")
    if episodes < 1:
        raise UsageError(f"--episodes must be 1 or more, not {episodes}")
    saved = read_checkpoint(folder)
    config = replace(saved["config"], **flags)
    configure_torch(config)
    env = stage = make_env(config.env, "human" if render else "rgb_array" if video else None)
    agent, returns = make_agent(env, config, saved["agent"]), []
    if video and hasattr(env.unwrapped, "mujoco_renderer"):
        env.unwrapped.model.vis.quality.offsamples = 0  # smooth edges are slow without a GPU
        if env.unwrapped.model.ncam:
            env.unwrapped.mujoco_renderer.camera_id = 0  # the one that follows the runner
    if video:
        stage = gym.wrappers.RenderCollection(env)
    for i in range(episodes):
        returns += list(evaluate(agent, env if i else stage, 1, config.seed + 1 + i))
        print(f"episode {i + 1}: return {returns[-1]:.1f}", flush=True)
    print(f"mean {np.mean(returns):.1f} ({min(returns):.1f} to {max(returns):.1f})")
    if video:
        import imageio.v3 as imageio  # comes with gymnasium[mujoco]

        rate = env.metadata.get("render_fps", 30)
        timing = {"fps": rate} if video.endswith(".mp4") else {"duration": 1000 / rate, "loop": 0}
        imageio.imwrite(video, [frame[::2, ::2] for frame in stage.render()], **timing)
        print(f"wrote {video}")


def main(argv=None):
    """The command line. Returns the exit code: 0; 1 diverged; 2 usage or files; 128 + signal."""
    warnings.showwarning = lambda message, *_: print(f"sac.py: {message}", file=sys.stderr)
    try:
        given = parse(argv)
        flags = {f.name: given.pop(f.name) for f in fields(Config) if f.name in given}
        fits = {"plot": ["out"], "play": ["episodes", "render", "video", *MAY_CHANGE]}
        fits["train"] = ["out", "resume", "no_save_replay", "tensorboard", *flags]
        mode = next((mode for mode in fits if mode in given), "train")
        if stray := [name for name in (*given, *flags) if name not in (mode, *fits[mode])]:
            raise UsageError(f"--{stray[0].replace('_', '-')} does not go with what {mode} does")
        if mode == "train":
            if (tensorboard := given.pop("tensorboard", False)) and not importlib.util.find_spec(
                "tensorboard"
            ):
                raise UsageError("--tensorboard needs one package more: pip install tensorboard")
            return train(open_run(flags, **given), tensorboard)
        if mode == "play":
            play(given.pop("play"), flags, **given)
        elif (out := Path(given.get("out", "comparison.png"))).exists():
            raise UsageError(f"{out} exists; name another picture with --out FILE")
        else:
            plot_runs(given["plot"]).savefig(out)
            print(f"wrote {out}")
        return 0
    except (UsageError, Diverged, OSError, MemoryError) as error:
        print(f"sac.py: {error}", file=sys.stderr)
        return 1 if isinstance(error, Diverged) else 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
