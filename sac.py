"""Soft Actor-Critic (SAC) in one file, written to be read from top to bottom.

    python sac.py --env HalfCheetah-v4                      train; results go to runs/
    python sac.py --resume runs/HalfCheetah-v4/sac-seed1    continue after Ctrl-C
    python sac.py --play runs/HalfCheetah-v4/sac-seed1      play the trained policy
    python sac.py --plot runs/HalfCheetah-v4/*              compare runs in one figure
    python sac.py --env Hopper-v4 --variant single-q        train a variant (--help lists them)

Source: Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", arXiv 1812.05905. Equation
numbers refer to it. Algorithm 1, as implemented by `Run.advance` and `SAC.update`:

    initialise the policy phi and two critics theta; copy the critics into the targets theta'
    for each environment step:
        a ~ pi(.|s)                                             act
        s', r, d ~ p(.|s, a)                                    step
        D <- D + (s, a, r, s', d)                               store
        for each gradient step, on a batch from D:              learn (with Adam)
            theta  <- theta - lr grad J_Q(theta)                    critics (Eq. 5)
            phi    <- phi - lr grad J_pi(phi)                       policy (Eq. 9)
            log alpha <- log alpha - lr grad J(alpha)               temperature (Eq. 18)
            theta' <- tau theta + (1 - tau) theta'                  targets

Symbols: s, a, r, s' (obs, action, reward, next_obs), d (terminated), D (replay buffer), u (action
before tanh), alpha (temperature: how much reward one nat of entropy is worth), gamma (discount),
tau (how far the targets move per update). Shapes: B batch, O observation, A action, 2 critics.

Differences from the paper, and why. The return after 100,000 steps of HalfCheetah-v4 is
6,194 +- 498 (mean +- sd, eight runs). In parentheses is the return without that one change (three
runs, unless stated). A gap below about 1,000 may be chance.
- All learning rates are 1e-3, not 3e-4: the critics then follow their targets faster (critics at
  3e-4: 4,819 +- 648, six runs). For policy and temperature, there is no clear gain (both at 3e-4:
  6,017 +- 656, eight runs), except perhaps on Hopper-v4 (956 +- 247; at 1e-3, 1,841 +- 703, six).
- Learning starts after 5,000 random actions: early batches are diverse (with 1,000: 5,809 +- 202).
- log_std is clamped softly, since a hard clamp has zero gradient outside (6,314 +- 691).
- Actions are rescaled to [-1,1] and entropy is measured there, so that the target entropy -A means
  the same in every environment (no effect here: HalfCheetah's bounds are [-1,1] already).
- log alpha is learned, to keep alpha positive (alpha itself fell below 0 in 2 of 3 short runs).
- The critics' target does not bootstrap from terminal states, which the paper's equations omit.
"""
import argparse, contextlib, copy, inspect, itertools, json, math, os, re, shlex, shutil, signal
import sys, time, timeit, traceback, warnings, zipfile, zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.adam import adam

# 1. Config: everything that defines a run
@dataclass(frozen=True)
class Config:
    """Every field is also a flag; its comment is the help text. Bad values raise UsageError."""
    env: str = "HalfCheetah-v4"  # gymnasium id with continuous actions, or module:Name-v0
    variant: str = "sac"  # which variant of SAC to train
    seed: int = 1  # seed for all randomness
    steps: int = 100_000  # environment steps in total
    stop_at: float | None = None  # stop early once an evaluation's mean return reaches this
    # The algorithm
    warmup: int = 5_000  # initial steps with uniformly random actions and no learning
    batch_size: int = 256  # transitions per gradient step
    buffer_size: int = 1_000_000  # most recent transitions kept for replay
    hidden: int = 256  # units in each of the two hidden layers
    gamma: float = 0.99  # discount factor
    tau: float = 0.005  # fraction by which the targets move towards the critics per update
    actor_lr: float = 1e-3  # learning rate of the policy
    critic_lr: float = 1e-3  # learning rate of the critics
    alpha_lr: float = 1e-3  # learning rate of the temperature
    alpha: float | None = None  # fixed temperature (default: learned)
    target_entropy: float | None = None  # entropy target in nats (default: minus action_dim)
    reward_scale: float = 1.0  # multiplies the rewards the critics learn from
    updates_per_step: int = 1  # gradient steps per environment step
    actor_samples: int = 1  # actions sampled per state (variant reinforce only)
    # Logging and hardware
    log_every: int = 500  # steps between rows of progress.csv
    eval_every: int = 5_000  # steps between evaluations
    eval_episodes: int = 10  # episodes per evaluation, of at most 10,000 steps each
    save_every: int = 50_000  # approximate steps between saves (each waits for an episode's end)
    device: str = "cpu"  # cpu, cuda or mps
    threads: int = 0  # CPU threads; 0 picks 1, or up to 4 if clearly faster
    matmul_precision: str = "auto"  # highest, high or medium; auto: medium if just as exact

    def __post_init__(self):
        for name, kind in Config.__annotations__.items():  # converts text and numpy values
            object.__setattr__(self, name, check(name, kind, getattr(self, name)))
        if self.actor_samples > 1 and self.variant != "reinforce":
            raise UsageError("--actor-samples only applies to --variant reinforce")
        if self.alpha and self.variant in ("no-entropy", "ddpg"):
            raise UsageError(f"--variant {self.variant} fixes alpha at 0: drop --alpha")
        if self.alpha is not None and self.target_entropy is not None:
            raise UsageError("alpha is fixed, so --target-entropy has no effect: drop it")

# 2. Actor: a Gaussian squashed by tanh
def mlp(layer, inputs, hidden, outputs):
    """Two hidden layers with ReLU. `layer` is nn.Linear, or TwinLinear for both critics at once."""
    return nn.Sequential(layer(inputs, hidden), nn.ReLU(inplace=True),
                         layer(hidden, hidden), nn.ReLU(inplace=True), layer(hidden, outputs))

def squash(u, mean, log_std):
    """u (...,A) ~ N(mean, exp(log_std)^2) -> action tanh(u) (...,A) and its log-density (...).

    Change of variables: log pi(a) = log N(u) - log |da/du|, summed over A (Appendix C), where
    da/du = 1 - tanh(u)^2. In float32, this rounds to 0 once |u| exceeds about 9, so we use the
    equivalent 4 e^-2u / (1 + e^-2u)^2, whose logarithm is accurate for every u, as is its gradient.
    """
    log_normal = -0.5 * ((u - mean) / log_std.exp()) ** 2 - log_std - 0.5 * math.log(2 * math.pi)
    log_slope = 2 * (math.log(2) - u - F.softplus(-2 * u))  # log |da/du| (...,A)
    return torch.tanh(u), (log_normal - log_slope).sum(-1)

class Actor(nn.Module):
    """The policy pi(a|s)."""
    def __init__(self, obs_dim, action_dim, hidden, generator):
        super().__init__()
        self.generator = generator
        self.net = mlp(nn.Linear, obs_dim, hidden, 2 * action_dim)

    def forward(self, obs):
        """obs (B,O) -> mean (B,A) and log_std (B,A) of the Gaussian before tanh."""
        mean, raw_log_std = self.net(obs).chunk(2, -1)
        return mean, -20 + F.softplus(22 - F.softplus(2 - raw_log_std))  # a smooth clamp(-20, 2)

    def sample(self, obs):
        """obs (B,O) -> action (B,A) and log_prob (B,); gradients flow through both."""
        mean, log_std = self(obs)
        u = mean + log_std.exp() * self.noise(mean.shape)  # the reparameterisation trick
        return squash(u, mean, log_std)

    def noise(self, shape):
        """Standard normal noise from the agent's own generator."""
        return torch.randn(shape, generator=self.generator, device=self.generator.device)

# 3. TwinCritic: both Q-functions as one batched network
class TwinLinear(nn.Module):
    """One linear layer per critic, in one batched product: x (2,B,inputs) -> (2,B,outputs)."""
    critics = 2

    def __init__(self, inputs, outputs):
        super().__init__()
        layers = [nn.Linear(inputs, outputs) for _ in range(self.critics)]  # as initial weights
        self.weight = nn.Parameter(torch.stack([layer.weight.T for layer in layers]))  # (2,in,out)
        self.bias = nn.Parameter(torch.stack([layer.bias[None] for layer in layers]))  # (2,1,out)

    def forward(self, x):
        return torch.baddbmm(self.bias, x, self.weight)

class TwinCritic(nn.Module):
    """Q_1(s,a) and Q_2(s,a), which share no weights."""
    def __init__(self, obs_dim, action_dim, hidden):
        super().__init__()
        self.net = mlp(TwinLinear, obs_dim + action_dim, hidden, 1)

    def forward(self, obs, action):
        """obs (B,O), action (B,A) -> q (2,B)."""
        x = torch.cat([obs, action], -1).expand(TwinLinear.critics, -1, -1)  # (2,B,O+A)
        return self.net(x).squeeze(-1)

# 4. SAC: optimiser, losses, update
class Adam:
    """Adam (Kingma and Ba 2015): the same steps as torch.optim.Adam(fused=True), but without
    importing torch's compiler, which costs a second and 70 MB."""
    def __init__(self, weights, lr):
        self.weights, self.lr = list(weights), lr
        self.means = [torch.zeros_like(w) for w in self.weights]  # running means of the gradients
        self.squares = [torch.zeros_like(w) for w in self.weights]  # and of their squares
        self.steps = [torch.zeros((), device=w.device) for w in self.weights]

    @torch.no_grad()
    def descend(self, loss):
        """One Adam step on the loss; only this optimiser's weights change."""
        gradients = torch.autograd.grad(loss, self.weights)  # backward() would fill others' .grad
        adam(self.weights, gradients, self.means, self.squares, max_exp_avg_sqs=[],
             state_steps=self.steps, lr=self.lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0,
             amsgrad=False, maximize=False, fused=True)  # fused: one call for all weights

    def state_dict(self):
        return {"lr": self.lr, "means": self.means, "squares": self.squares, "steps": self.steps}

    def load_state_dict(self, state):
        self.lr = float(state["lr"])
        for name in ("means", "squares", "steps"):
            for old, new in zip(getattr(self, name), state[name], strict=True):
                old.copy_(new.view_as(old))  # copy_ alone would broadcast

@torch.no_grad()
def blend(target, online, tau):
    """target <- tau online + (1 - tau) target, for every weight."""
    for old, new in zip(target.parameters(), online.parameters()):
        old.lerp_(new, tau)

class SAC:
    """Soft Actor-Critic itself."""
    def __init__(self, obs_dim, action_dim, config):
        self.obs_dim, self.action_dim, self.config = obs_dim, action_dim, config
        self.generator = torch.Generator(config.device).manual_seed(config.seed + 1000)  # for noise
        with torch.random.fork_rng(devices=[]):  # leaves the global generator alone
            torch.default_generator.manual_seed(config.seed)
            self.actor = Actor(obs_dim, action_dim, config.hidden, self.generator).to(config.device)
            self.critic = self.make_critic().to(config.device)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)

        alpha = torch.tensor(1.0 if config.alpha is None else config.alpha, device=config.device)
        self.log_alpha = alpha.log().requires_grad_()  # log 0 = -inf is fine: exp gives 0
        target = config.target_entropy
        self.target_entropy = -float(action_dim) if target is None else target

        self.critic_optimizer = Adam(self.critic.parameters(), config.critic_lr)
        self.actor_optimizer = Adam(self.actor.parameters(), config.actor_lr)
        self.alpha_optimizer = Adam([self.log_alpha], config.alpha_lr)
        self.updates = 0

    def make_critic(self):
        """Both critics; override this to change their networks."""
        return TwinCritic(self.obs_dim, self.action_dim, self.config.hidden)

    @property
    def alpha(self):
        """The temperature, a scalar. To set it: agent.log_alpha.data.fill_(math.log(0.2))."""
        return self.log_alpha.exp()

    @torch.no_grad()
    def act(self, obs, deterministic=False):
        """obs (O,) or (B,O) -> action (A,) or (B,A), numpy in [-1,1]: a sample, or tanh(mean)."""
        obs = torch.as_tensor(obs, dtype=torch.float32, device=self.config.device)
        mean, log_std = self.actor(obs)
        u = mean if deterministic else mean + log_std.exp() * self.exploration_noise(mean.shape)
        return torch.tanh(u).cpu().numpy()

    def exploration_noise(self, shape):  # SmoothNoise overrides this
        return self.actor.noise(shape)

    def combine(self, q):
        """q (2,B) -> (B,). Target and actor both use the smaller Q, to curb overestimation."""
        return q.min(0).values

    def next_value(self, next_obs):
        """V(s') = Q'(s',a') - alpha log pi(a'|s') with a' ~ pi(.|s') (Eq. 3)."""
        next_action, log_prob = self.actor.sample(next_obs)  # (B,A), (B,)
        return self.combine(self.target_critic(next_obs, next_action)) - self.alpha * log_prob

    @torch.no_grad()
    def td_target(self, batch):
        """y = r + gamma (1 - d) V(s'), without gradient: (B,), or (2,B) in `double-q`."""
        r = self.config.reward_scale * batch.reward
        return r + self.config.gamma * (1 - batch.terminated) * self.next_value(batch.next_obs)

    def critic_loss(self, batch):
        """J_Q = 1/2 E[(Q_1 - y)^2] + 1/2 E[(Q_2 - y)^2], a scalar (Eq. 5)."""
        y = self.td_target(batch)  # (B,) or (2,B)
        q = self.critic(batch.obs, batch.action)  # (2,B)
        self.q_mean = q.detach().mean()  # `update` logs it, so an override must set it too
        return 0.5 * ((q - y.expand_as(q)) ** 2).mean(1).sum()  # expand_as catches q (2,B,1)

    def actor_loss(self, obs):
        """J_pi = E[alpha log pi(a|s) - Q(s,a)], a scalar (Eqs. 7 and 9), and log_prob (B,)."""
        action, log_prob = self.actor.sample(obs)  # (B,A), (B,)
        q = self.combine(self.critic(obs, action))  # (B,)
        return (self.alpha.detach() * log_prob - q).mean(), log_prob

    def alpha_loss(self, log_prob):
        """J(alpha) = E[-alpha (log pi(a|s) + target entropy)], a scalar (Eq. 18)."""
        return -(self.alpha * (log_prob + self.target_entropy).detach()).mean()

    def update_target(self):
        """Moves the targets towards the critics; some variants override it."""
        blend(self.target_critic, self.critic, self.config.tau)

    def update(self, batch):
        """Algorithm 1: a gradient step on each loss, then the targets. Returns what to log."""
        critic_loss = self.critic_loss(batch)
        self.critic_optimizer.descend(critic_loss)

        actor_loss, log_prob = self.actor_loss(batch.obs)
        self.actor_optimizer.descend(actor_loss)  # the critics' weights get no gradient

        alpha_loss = self.alpha_loss(log_prob)
        if self.config.alpha is None:  # otherwise alpha is fixed, and its loss only logged
            self.alpha_optimizer.descend(alpha_loss)

        self.updates += 1
        self.update_target()
        return {"critic_loss": critic_loss.detach(), "actor_loss": actor_loss.detach(),
                "alpha_loss": alpha_loss.detach(), "entropy": (-log_prob.detach()).mean(),
                "q_mean": self.q_mean}

    parts = ("actor", "critic", "target_critic",  # saved by their own state_dict
             "actor_optimizer", "critic_optimizer", "alpha_optimizer")

    def state_dict(self):
        state = {name: getattr(self, name).state_dict() for name in self.parts}
        return {**state, "log_alpha": self.log_alpha.detach(), "updates": self.updates,
                "generator": self.generator.get_state()}

    def load_state_dict(self, state):
        for name in self.parts:
            getattr(self, name).load_state_dict(state[name])
        self.log_alpha.data.copy_(state["log_alpha"])
        self.updates = state["updates"]
        self.generator.set_state(state["generator"])

# 5. Replay buffer
class Batch(NamedTuple):
    """A batch of transitions, all float32."""
    obs: torch.Tensor  # (B,O)
    action: torch.Tensor  # (B,A) in [-1,1]
    reward: torch.Tensor  # (B,)
    next_obs: torch.Tensor  # (B,O)
    terminated: torch.Tensor  # (B,) 1 if the task itself ended; 0 otherwise, even at a time limit

class ReplayBuffer:
    """The last `capacity` transitions, each a row of one array, so that a batch is one lookup."""
    def __init__(self, obs_dim, action_dim, capacity, seed, device="cpu"):
        self.widths = [obs_dim, action_dim, 1, obs_dim, 1]
        self.rows = torch.empty(capacity, sum(self.widths), device=device)  # uses RAM as it fills
        self.generator = torch.Generator(device).manual_seed(seed)
        self.added = 0

    def __len__(self):
        return min(self.added, len(self.rows))

    def add(self, obs, action, reward, next_obs, terminated):
        """Stores (O,), (A,), float, (O,), bool; when full, it overwrites the oldest."""
        row = np.hstack([obs, action, reward, next_obs, terminated], dtype=np.float32)
        self.rows[self.added % len(self.rows)] = torch.from_numpy(row)
        self.added += 1

    def sample(self, batch_size):
        """A Batch drawn uniformly, with replacement. RuntimeError if the buffer is empty."""
        g = self.generator
        index = torch.randint(len(self), (batch_size,), generator=g, device=g.device)
        obs, action, reward, next_obs, d = self.rows.index_select(0, index).split(self.widths, 1)
        return Batch(obs, action, reward.squeeze(1), next_obs, d.squeeze(1))

    def state_dict(self):
        filled = torch.from_numpy(self.rows[: len(self)].cpu().numpy())  # else all rows are saved
        return {"rows": filled, "added": self.added, "generator": self.generator.get_state()}

    def load_state_dict(self, state):
        self.added = state["added"]
        if not state["rows"].is_contiguous():  # forged strides could claim huge memory
            raise ValueError("the saved replay buffer is not contiguous: was it altered?")
        self.rows[: len(self)] = state["rows"].view(len(self), sum(self.widths))
        self.generator.set_state(state["generator"])

# 6. Run: the training loop
class Run:
    """The training loop. Iterating yields a row (a dict) every `log_every` steps and at each
    evaluation; break out and iterate again to continue. `env`, an id or a function that
    makes a new environment, overrides config.env. With a new or empty `folder`, the run is saved
    there at once, about every `save_every` steps, and when the loop ends (but not after NaN)."""
    def __init__(self, config, env=None, folder=None):
        path = None if folder is None else Path(folder).absolute()  # env may call os.chdir
        env = env or config.env
        name = env if isinstance(env, str) else getattr(env, "__name__", "custom")
        self.config = config = replace(config, env=name)
        self.env = gym.wrappers.RecordEpisodeStatistics(make_env(env), stats_key="ep")
        self.eval_env = make_env(env)
        if self.env.unwrapped is self.eval_env.unwrapped:
            raise UsageError("env must return a new environment on every call")
        dims = self.env.observation_space.shape + self.env.action_space.shape  # (O, A)
        self.agent = VARIANTS[config.variant](*dims, config)
        capacity = min(config.buffer_size, config.steps)
        # The environment gets the bare seed: offsets keep the other random streams apart
        with refusing("the replay buffer does not fit in memory: lower --buffer-size"):
            self.buffer = ReplayBuffer(*dims, capacity, config.seed + 2000, config.device)
        self.rng = np.random.default_rng(config.seed + 3000)  # for warm-up actions
        self.step = 0
        self.obs = None  # None: the next step starts an episode
        self.between_episodes = True  # only then can a saved run resume exactly
        self.stopping = 0  # the signal that asked to stop after this episode, or 0
        self.ending = False  # True once the last save begins
        self.row = dict.fromkeys(COLUMNS, math.nan)
        self.row.update(step=0, episodes=0, seconds=0)
        self.history = []  # a copy of the row at each report
        self.folder, self.saved_at = None, 0
        if path:
            self.save(path)

    def __iter__(self):
        self.ending = False  # also when iterated again
        try:
            while True:
                row = self.report()  # comes first: a resumed run may have a row left to report
                if self.folder:
                    self.save_if_due(row)
                if row:
                    yield row
                if self.finished or (self.stopping and self.between_episodes):
                    break
                self.advance()
        finally:  # however the loop ended: finished, break, an interrupt, an error
            self.ending = True
            if self.folder:
                self.save()

    def advance(self):
        """One environment step of Algorithm 1, with the gradient steps that follow it."""
        start = time.perf_counter()
        c, obs = self.config, self.obs
        self.obs = None  # if this step is interrupted, the next one resets
        self.between_episodes = False
        if obs is None:
            obs, _ = self.env.reset(seed=c.seed if self.step == 0 else None)

        # Act
        if self.step < c.warmup:
            action = self.rng.uniform(-1, 1, self.agent.action_dim).astype(np.float32)
        else:
            action = self.agent.act(obs)

        # Step
        next_obs, reward, terminated, truncated, info = self.env.step(action)
        self.step += 1
        self.check_finite(observation=np.abs([obs, next_obs]).max(), reward=np.float32(reward))

        # Store. A time limit does not end the task, so only `terminated` stops bootstrapping
        self.buffer.add(obs, action, reward, next_obs, terminated)

        # Learn
        if self.step > c.warmup:
            for _ in range(c.updates_per_step):
                metrics = self.agent.update(self.buffer.sample(c.batch_size))
                self.check_finite(**metrics)
                self.row.update(metrics)

        if terminated or truncated:
            self.row["episodes"] += 1
            self.row.update(train_return=info["ep"]["r"], train_length=info["ep"]["l"])
            self.between_episodes = True
        else:
            self.obs = next_obs
        self.row["seconds"] += time.perf_counter() - start

    def check_finite(self, **numbers):
        for name, x in numbers.items():
            if not math.isfinite(x):
                self.folder = None  # so that nothing replaces the last save
                raise FloatingPointError(f"NaN or infinity in the {name} at step {self.step}")

    def report(self):
        """Adds a row to the history if one is due, evaluating if needed. Returns it or None."""
        c, row = self.config, self.row
        last = self.history[-1] if self.history else {"step": 0, "seconds": 0}
        evaluating = self.step % c.eval_every == 0 or self.step == c.steps
        due = evaluating or self.step % c.log_every == 0
        if not due or self.step == last["step"]:
            return None
        if evaluating:
            returns = evaluate(self.agent, self.eval_env, c.eval_episodes, c.seed + 1)
            self.check_finite(evaluation=returns.sum())
            row.update(eval_step=self.step, eval_return=returns.mean(), eval_min=returns.min(),
                       eval_max=returns.max())
        seconds = max(row["seconds"] - last["seconds"], 1e-9)
        row.update(step=self.step, steps_per_second=(self.step - last["step"]) / seconds,
                   alpha=self.agent.alpha.item(), target_entropy=self.agent.target_entropy)
        self.history.append({name: float(x) for name, x in row.items()})
        return dict(self.history[-1])

    @property
    def evaluation(self):
        """Mean, lowest and highest return of the latest evaluation."""
        return self.row["eval_return"], self.row["eval_min"], self.row["eval_max"]

    @property
    def finished(self):
        """Whether every step is done and reported, or an evaluation has reached `stop_at`."""
        goal = math.inf if self.config.stop_at is None else self.config.stop_at
        return self.row["step"] == self.config.steps or self.row["eval_return"] >= goal

    def save_if_due(self, row):
        """Saves when due, at an episode's end or LONGEST steps late. Otherwise, writes the row."""
        patience = 0 if self.between_episodes else LONGEST
        try:
            if self.step - self.saved_at >= self.config.save_every + patience:
                self.save()
            elif row:
                write_reports(self)
        except OSError as error:
            warnings.warn(f"step {self.step}: {error}; training continues")

    def save(self, folder=None):
        """Saves all that `load` needs. OSError if that fails, UsageError if `folder` has files."""
        path = Path(folder or self.folder).absolute()
        if path != self.folder and any(x.suffix != ".tmp" for x in path.glob("*")):
            name = os.path.relpath(path)
            raise UsageError(f"{name} has files in it: use another folder, or --resume {name}")
        learned = [*self.agent.actor.parameters(), *self.agent.critic.parameters()]
        self.check_finite(weights=sum(x.detach().sum() for x in learned))
        self.folder, self.saved_at = path, self.step  # first, or a failure is retried each step
        path.mkdir(parents=True, exist_ok=True)
        generator = getattr(self.env.np_random, "bit_generator", None)
        state = {
            "config": asdict(self.config), "versions": versions(), "history": self.history,
            "row": self.row, "step": self.step, "between_episodes": self.between_episodes,
            "rng": self.rng.bit_generator.state, "env_rng": getattr(generator, "state", None)}
        state = json.loads(json.dumps(state, default=lambda x: x.tolist()))  # no NumPy types
        state.update(agent=self.agent.state_dict(), buffer=self.buffer.state_dict())
        write(path / "checkpoint.pt", lambda file: torch.save(state, file))
        write_reports(self, picture=True)

    @classmethod
    def load(cls, folder, env=None, **changes):
        """Loads a saved run, with `changes` to the settings in MAY_CHANGE. UsageError on failure.
        On the same machine, the run continues bit for bit as if it had never stopped, if np_random
        is all that the environment keeps between episodes. It warns if the run may differ."""
        state = read_checkpoint(folder, env)
        if isinstance(env, str):
            changes["env"] = env
        config = replace(state["config"], **changes)
        for name, saved in asdict(state["config"]).items():
            if name not in MAY_CHANGE and getattr(config, name) != saved:
                raise UsageError(f"{folder} uses {name} {saved}; to change it, start a new run")
        steps_done = state.get("step")
        if type(steps_done) is not int or not 0 <= steps_done <= config.steps:
            raise UsageError(f"{folder} has already done {steps_done} steps: raise --steps")
        path = Path(folder).absolute()
        run = cls(config, env)
        with refusing(f"{folder} is not compatible with this sac.py"):
            run.step = steps_done
            run.history = [row for row in state["history"]  # a last row needs an evaluation
                           if row["step"] < config.steps or row["eval_step"] == row["step"]]
            run.row = {x: state["row"][x] for x in (*COLUMNS, *state["row"])}  # KeyError if missing
            run.agent.load_state_dict(state["agent"])
            run.buffer.load_state_dict(state["buffer"])
            run.rng.bit_generator.state = state["rng"]
            run.env.reset(seed=config.seed)  # creates np_random, whose state is set next
            if steps_done and state["env_rng"]:  # at step 0 there may be none yet
                run.env.np_random.bit_generator.state = state["env_rng"]
            now, old = versions(), state["versions"]
            reasons = [f"different {name}" for name in now if now[name] != old.get(name)]
            if not state["env_rng"]:
                reasons.append("the environment's np_random is not a NumPy Generator")
            run.between_episodes = state["between_episodes"]
            if not run.between_episodes:
                reasons.append("saved inside an episode, so a new one begins")
        run.folder, run.saved_at = path, run.step
        if reasons:
            warnings.warn(f"the run may differ from one that never stopped: {', '.join(reasons)}")
        return run

def evaluate(agent, env, episodes, seed):
    """Undiscounted returns (episodes,) of the noise-free policy: each action is tanh(mean)."""
    returns = np.zeros(episodes)
    for i in range(episodes):
        obs, _ = env.reset(seed=seed if i == 0 else None)
        for _ in range(LONGEST):
            obs, reward, terminated, truncated, _ = env.step(agent.act(obs, deterministic=True))
            returns[i] += reward
            if terminated or truncated:
                break
    return returns

# 7. Variants: SAC with one idea changed or removed
class SingleQ(SAC):
    """Uses only the first critic, as in DDPG: expect Q to overestimate the return."""
    def combine(self, q):
        return q[0]

class MeanQ(SAC):
    """Averages both critics: less noisy than one, but overestimates more than the min."""
    def combine(self, q):
        return q.mean(0)

class DoubleQ(MeanQ):
    """Critics learn from each other's target (van Hasselt 2010); the actor uses their mean."""
    def next_value(self, next_obs):
        next_action, log_prob = self.actor.sample(next_obs)  # (B,A), (B,)
        return self.target_critic(next_obs, next_action).flip(0) - self.alpha * log_prob  # (2,B)

class Reinforce(SAC):
    """Score-function gradient (Williams 1992), no baseline: noisy. Takes --actor-samples."""
    def actor_loss(self, obs):
        """A loss whose expected gradient is J_pi's (its value means nothing), and log_prob."""
        obs = obs.repeat(self.config.actor_samples, 1)  # (K B,O), K actions per state
        mean, log_std = self.actor(obs)
        u = (mean + log_std.exp() * self.actor.noise(mean.shape)).detach()  # (K B,A)
        action, log_prob = squash(u, mean, log_std)
        cost = self.alpha * log_prob - self.combine(self.critic(obs, action))  # (K B,)
        return (log_prob * cost.detach()).mean(), log_prob

class HardTarget(SAC):
    """Copies the critics every 1/tau updates (Mnih 2015): targets stand still, then jump."""
    def update_target(self):
        if self.updates % round(1 / self.config.tau) == 0:
            blend(self.target_critic, self.critic, 1.0)

class NoEntropy(SAC):
    """alpha = 0, no entropy bonus: expect exploration to die out, often too soon."""
    def __init__(self, obs_dim, action_dim, config):
        super().__init__(obs_dim, action_dim, replace(config, alpha=0.0))

class DDPG(NoEntropy):
    """SAC's ancestor (Lillicrap 2015): a deterministic policy with added noise, one critic."""
    parts = (*SAC.parts, "target_actor")

    def __init__(self, obs_dim, action_dim, config):
        super().__init__(obs_dim, action_dim, config)
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(False)

    def act(self, obs, deterministic=False):
        action = super().act(obs, deterministic=True)
        if not deterministic:  # standard deviation 0.1, as in Fujimoto 2018
            action = action + 0.1 * self.actor.noise(action.shape).cpu().numpy()
        return np.clip(action, -1, 1)

    def next_value(self, next_obs):
        next_action = torch.tanh(self.target_actor(next_obs)[0])  # (B,A)
        return self.target_critic(next_obs, next_action)[0]  # (B,)

    def actor_loss(self, obs):
        q = self.critic(obs, torch.tanh(self.actor(obs)[0]))[0]  # (B,)
        return -q.mean(), torch.zeros_like(q)  # no density: its entropy shows as 0

    def update_target(self):
        super().update_target()
        blend(self.target_actor, self.actor, self.config.tau)

class SmoothNoise(SAC):
    """Time-correlated exploration noise: it pushes in one direction for a while."""
    # Like DDPG's Ornstein-Uhlenbeck noise, or pink noise (Eberhard 2023). Each eps is still N(0,1)
    rho = 0.95

    def __init__(self, obs_dim, action_dim, config):
        super().__init__(obs_dim, action_dim, config)
        self.actor.register_buffer("eps", self.actor.noise((action_dim,)))  # saved with the weights

    def exploration_noise(self, shape):  # only `act` calls this: gradient steps draw fresh noise
        fresh = self.actor.noise(self.actor.eps.shape)
        self.actor.eps = self.rho * self.actor.eps + math.sqrt(1 - self.rho**2) * fresh
        return self.actor.eps

VARIANTS = {"sac": SAC, "single-q": SingleQ, "double-q": DoubleQ, "mean-q": MeanQ,
            "reinforce": Reinforce, "hard-target": HardTarget, "no-entropy": NoEntropy,
            "ddpg": DDPG, "smooth-noise": SmoothNoise}

# 8. Environments and settings
class UsageError(ValueError):
    """A user's mistake. The message says what is wrong and how to fix it."""

@contextlib.contextmanager
def refusing(what):
    """Turns any error into a UsageError, since third-party code and files may raise anything."""
    try:
        yield
    except Exception as error:
        raise UsageError(f"{what}: {error!r}") from None

def make_env(env, render_mode=None):
    """Makes an environment with flat observations and actions in [-1,1]. UsageError if unfit."""
    name = getattr(env, "__name__", env)
    if isinstance(env, str) and not re.search(r"-v\d+$", env):
        raise UsageError(f"{env} is not a full id like Hopper-v4 (to resume a run of a "
                         f"Python function, use sac.Run.load(folder, env={env}))")
    mode = {"render_mode": render_mode} if render_mode else {}
    if render_mode == "rgb_array" and sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")  # read when mujoco is first imported
    with refusing(f"cannot make {name}"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*(out of date|settotalmass|lowered by)")
        with contextlib.suppress(ImportError):
            import mujoco  # by default it logs warnings to MUJOCO_LOG.TXT
            mujoco.set_mju_user_warning(lambda text: warnings.warn(f"mujoco: {text}"))
        env = env() if callable(env) else gym.make(env, disable_env_checker=True, **mode)
        if render_mode and render_mode not in env.metadata.get("render_modes", ()):
            raise ValueError(f"it has no render_mode {render_mode}")
        box, obs_shape = env.action_space, env.observation_space.shape or ()
        env = gym.wrappers.DtypeObservation(gym.wrappers.FlattenObservation(env), np.float32)
    continuous = isinstance(box, gym.spaces.Box) and box.dtype.kind == "f" and box.low.size > 0
    if not continuous or not box.is_bounded() or (box.low >= box.high).any():
        raise UsageError(f"{name}: actions must be continuous, with finite low < high, not {box}")
    if len(obs_shape) > 2:
        raise UsageError(f"{name} has image observations; these networks take flat vectors")

    def rescale(action):
        a = np.asarray(action, np.float64).reshape(box.shape)
        a = 0.5 * (1 - a) * box.low + 0.5 * (1 + a) * box.high
        return np.clip(a, box.low, box.high).astype(box.dtype)  # rounding can overshoot

    env = gym.wrappers.TransformReward(env, lambda r: np.asarray(r, np.float64).item())
    return gym.wrappers.TransformAction(env, rescale, gym.spaces.Box(-1, 1, (box.low.size,)))

LONGEST = 10_000  # steps: the longest episode of an evaluation, and the longest a due save waits
COLUMNS = """step episodes train_return train_length eval_step eval_return eval_min eval_max
    critic_loss actor_loss alpha_loss alpha entropy target_entropy q_mean steps_per_second
    seconds""".split()
MAY_CHANGE = ("steps", "stop_at", "save_every", "threads")  # on --resume
LOG_SETTINGS = ("log_every", "eval_every", "eval_episodes")  # these do not affect learning
LIMITS = {"variant": VARIANTS, "matmul_precision": ("auto", "highest", "high", "medium"),
          "device": ("cpu", "cuda", "mps"), "seed": (0, 2**32 - 1), "warmup": (0, 1e9),
          "threads": (0, 1024), "hidden": (1, 1e4), "gamma": (0, 1), "tau": (1e-9, 1),
          "alpha": (0, 1e9), "target_entropy": (-1e9, 1e9), "stop_at": (-1e9, 1e9)}

def check(name, kind, x):
    """A Config field's value as a plain str, int, float or None. UsageError if it is not valid."""
    flag, limits = "--" + name.replace("_", "-"), LIMITS.get(name)
    if kind is str:
        if limits and str(x) not in limits:
            raise UsageError(f"{flag} must be one of {', '.join(limits)}, not {x}")
        return str(x)
    if x is None and kind == float | None:
        return None
    noun, lowest = ("whole number", 1) if kind is int else ("number", 1e-9)
    low, high = limits or (lowest, 1e9)
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        value = float(x)
        if low <= value <= high and (value.is_integer() or kind is not int):
            return int(value) if kind is int else value
    raise UsageError(f"{flag} must be a {noun} from {low:.10g} to {high:.10g}, not {x}")

def configure_torch(config):
    """Sets this process's threads and precision; call it before making a Run. Returns the config
    with the number of threads filled in. UsageError if the device is not available."""
    if config.device != "cpu" and not getattr(torch, config.device).is_available():
        raise UsageError(f"--device {config.device} is not available here: try --device cpu")
    torch.set_flush_denormal(True)  # Adam's moments of dead units become denormal, which is slow
    torch.set_float32_matmul_precision("medium")  # faster, but some CPUs round to bfloat16
    probe = torch.linspace(-1, 1, 256 * 256).view(256, 256)
    exact = config.device == "cpu" and (probe @ torch.eye(256)).equal(probe)  # GPUs may round
    auto = "medium" if exact else "highest"
    torch.set_float32_matmul_precision(config.matmul_precision.replace("auto", auto))

    def seconds(threads):
        torch.set_num_threads(threads)
        return timeit.timeit(lambda: probe @ probe, number=300)

    several = min(torch.get_num_threads(), 4)  # only if clearly faster: others may need the cores
    threads = config.threads or (several if seconds(several) < 0.8 * seconds(1) else 1)
    torch.set_num_threads(threads)
    torch.empty(7_900_000)  # freeing it makes glibc reuse blocks of up to 32 MB: 20% faster
    return replace(config, threads=threads)

# 9. Checkpoints
NAME = Path(__file__).name  # sac.py, or what your copy is called
SOURCE = f"{zlib.crc32(Path(__file__).read_bytes()):08x}"  # checksum of the running code

def versions():
    """What affects a run's numbers besides its config and the hardware."""
    packages = {name: str(sys.modules[name].__version__)
                for name in ("torch", "gymnasium", "numpy", "mujoco") if name in sys.modules}
    return {**packages, "python": sys.version.split()[0], "sac.py": SOURCE,
            "threads": torch.get_num_threads(),
            "matmul_precision": torch.get_float32_matmul_precision()}

def write(path, content):
    """Writes `path` atomically: content(file) fills a temporary file, which then replaces it."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb") as file:  # x: refuses an existing link
            content(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except Exception as error:  # on a full disk, torch raises RuntimeError
        temporary.unlink(missing_ok=True)
        raise OSError(f"cannot write {path}: {error}") from None

def read_checkpoint(folder, env=None):
    """Loads what `Run.save` wrote, without running any code in it. UsageError on failure."""
    path = Path(folder, "checkpoint.pt")
    if not path.is_file():
        raise UsageError(f"no run is saved in {folder}: it has no {path.name}")
    with refusing(f"{path} is damaged or from another sac.py"), zipfile.ZipFile(path) as archive:
        # torch.save leaves both at 0; a compressed file could expand to fill the memory
        if any(x.compress_type or x.external_attr for x in archive.infolist()) or archive.testzip():
            raise ValueError("its contents have been altered")
        state = torch.load(path, map_location="cpu", weights_only=True)
        state["config"] = Config(**state["config"])
    name = state["config"].env
    if ":" in name and not env:
        raise UsageError(f"loading {folder} would import {name}: if you trust it, add --env {name}")
    return state

# 10. Plots and the command line
PANELS = {"eval_return": "evaluation return", "q_mean": "mean Q of a batch",
          "entropy": "entropy of the policy (nats)", "alpha": "temperature alpha"}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe-Ito palette

def write_reports(run, picture=False):
    """Writes config.json and progress.csv for --plot and, if asked, learning_curve.png."""
    about = json.dumps({"config": asdict(run.config), "versions": versions()}, indent=2)
    write(run.folder / "config.json", lambda file: file.write(f"{about}\n".encode()))
    table = [[row.get(name, math.nan) for name in run.row] for row in run.history]
    write(run.folder / "progress.csv", lambda file: np.savetxt(
        file, table, "%.10g", ",", header=",".join(run.row), comments=""))
    if picture and run.history:
        write(run.folder / "learning_curve.png", lambda file: plot_runs([run]).savefig(file))

def read_reports(run):
    """The Config and the rows of a Run, or of a run's folder. UsageError if it is neither."""
    if isinstance(run, Run):
        return run.config, run.history
    with refusing(f"{run} is not the folder of a run"):
        about = json.loads(Path(run, "config.json").read_text())
        rows = np.genfromtxt(Path(run, "progress.csv"), delimiter=",", names=True, ndmin=1)
        return Config(**about["config"]), rows[COLUMNS]

def plot_runs(runs):
    """A matplotlib Figure of Runs or their folders: for each setting, mean and range over seeds."""
    from matplotlib.figure import Figure  # pyplot would take a second to import
    read = [(run, *read_reports(run)) for run in runs]
    differing = [x for x in Config.__annotations__ if x not in ("seed", *LOG_SETTINGS, *MAY_CHANGE)
                 and len({getattr(config, x) for _, config, _ in read}) > 1]
    groups = {}  # label -> seed -> rows
    for run, config, rows in read:
        label = ", ".join(f"{x} {getattr(config, x)}" for x in differing)
        label = label or f"{config.variant} on {config.env}"
        alpha = "alpha 0.0" if issubclass(VARIANTS[config.variant], NoEntropy) else "alpha learned"
        label = label.replace("alpha None", alpha)
        if config.seed in groups.get(label, {}):  # the same settings and seed: keep them apart
            label = f"{label}, {run}"
        if len(rows):
            groups.setdefault(label, {})[config.seed] = rows
        else:
            warnings.warn(f"{run} has no rows yet: skipped")
    if not groups:
        raise UsageError("nothing to plot: none of these runs has rows yet")
    figure = Figure(figsize=(8.5, 5), dpi=160, layout="constrained")  # for a slide
    for panel, (name, title) in zip(figure.subplots(2, 2, sharex=True).flat, PANELS.items()):
        panel.set_prop_cycle(color=COLOURS * 2, linestyle=("-", "--", "-.", ":") * 3)
        at, marker = ("eval_step", ".") if name == "eval_return" else ("step", "")
        for label, seeds in groups.items():
            curves = [{row[at]: row[name] for row in rows if math.isfinite(row[name])}
                      for rows in seeds.values()]
            steps = [step for step in curves[0] if all(step in curve for curve in curves)]
            values = np.array([[curve[step] for step in steps] for curve in curves])
            panel.plot(steps, values.mean(0), marker=marker, label=f"{label} (n = {len(seeds)})")
            panel.fill_between(steps, values.min(0), values.max(0), alpha=0.2)
        panel.set_title(title)
        panel.grid(alpha=0.3)
    alphas = figure.axes[3]
    alphas.set_yscale("symlog", linthresh=0.01, subs=[3])  # a log scale that can show 0
    low, high = alphas.get_ylim()
    alphas.set_ylim(min(low, 0.01), max(high, 1))
    alphas.yaxis.set(major_formatter="{x:g}", minor_formatter="{x:g}")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center")
    envs = ", ".join(sorted({config.env for _, config, _ in read}))
    figure.supxlabel(f"steps in {envs}\n(mean of n seeds; band: lowest to highest)")
    return figure

def open_run(flags, out=None, resume=None):
    """The Run to train: new, or from the folder `resume` ("": the run with these flags, if any)."""
    if out and resume:
        raise UsageError("--out is for a new run, --resume DIR for a saved one: give only one")
    if resume:
        saved = read_checkpoint(resume, flags.get("env"))["config"]
        flags["threads"] = configure_torch(replace(saved, **flags)).threads
        return Run.load(resume, **flags)
    config = Config(**flags)
    name = re.sub(r"[^\w.-]", "-", config.env) + f"/{config.variant}-seed{config.seed}"
    for i in itertools.count(1):
        folder = Path(out or f"runs/{name}-{i}".removesuffix("-1")).absolute()
        if resume == "" and (folder / "checkpoint.pt").exists():  # --resume without DIR
            saved = read_checkpoint(folder, config.env)["config"]
            if replace(saved, **{x: getattr(config, x) for x in MAY_CHANGE}) == config:
                flags.update(steps=config.steps, stop_at=config.stop_at)  # defaults too
                return open_run(flags, resume=folder)
        if out:
            return Run(configure_torch(config), folder=folder)
        if not folder.exists():
            run = Run(configure_torch(config))  # made first, so that a failure leaves no folder
            folder.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):  # another process took it: try the next
                folder.mkdir()
                run.save(folder)
                return run

def print_progress(run, row):
    """Prints one status line: as many of the known values as fit."""
    terminal = sys.stdout is not None and sys.stdout.isatty()
    width = shutil.get_terminal_size().columns - 1 if terminal else 1000
    total, rate = run.config.steps, row["steps_per_second"]
    line = f"{run.step:>9,}/{total:,} {run.step / total:4.0%}"
    minutes = (total - run.step) / rate / 60
    left = f"{minutes:.0f} min left" if run.step > run.config.warmup else "warm-up"
    for text in (f"{rate:.0f} steps/s", left, f"evaluation {row['eval_return']:.1f}",
                 f"last episode {row['train_return']:.1f}", f"alpha {row['alpha']:.3g}",
                 f"entropy {row['entropy']:.2f}", f"Q {row['q_mean']:.1f}"):
        if "nan" not in text and len(line + text) + 2 <= width:
            line += "  " + text
    end = "\r" if terminal and row["eval_step"] != run.step else "\n"
    print(line.ljust(width) if terminal else line, end=end, flush=True)

@contextlib.contextmanager
def stop_on_signals(run):
    """Within this block, a signal stops the run when its episode ends; a second, at once."""
    def stop(number, _):
        if run.ending:
            return  # already saving
        if run.stopping:
            raise KeyboardInterrupt(128 + run.stopping)  # main returns it as the exit code
        run.stopping = number
        endless = getattr(run.env.spec, "max_episode_steps", None) is None
        if hasattr(signal, "alarm") and (number != signal.SIGINT or endless):
            signal.alarm(7)  # SIGALRM then counts as the second: saved within 10 s
        with contextlib.suppress(OSError, RuntimeError):  # the signal may come mid-print
            print("\nstopping at the end of the episode; repeat to stop now", flush=True)

    caught = [x for x in signal.Signals if x.name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM")
              and signal.getsignal(x) != signal.SIG_IGN]  # nohup ignores SIGHUP: leave it so
    with contextlib.ExitStack() as after:  # calls these when the block ends, the last one first
        for number in caught:
            after.callback(signal.signal, number, signal.signal(number, stop))
        if hasattr(signal, "alarm"):  # not on Windows
            after.callback(signal.alarm, 0)
        yield

def train(out=None, resume=None, tensorboard=False, **flags):
    """Trains, and prints a line for each row. If a signal stops it, returns 128 + its number."""
    if tensorboard:
        from torch.utils.tensorboard import SummaryWriter
    cwd = os.getcwd()
    run = open_run(flags, out, resume)
    events = SummaryWriter(run.folder) if tensorboard else None
    c, place = run.config, shlex.quote(os.path.relpath(run.folder, cwd))
    again = f"{place} --env {c.env}" if ":" in c.env else place
    time_limit = run.env.spec.max_episode_steps
    length = f"at most {time_limit} steps" if time_limit else "no known time limit"
    print(f"{c.variant} on {c.env}, seed {c.seed}: steps {run.step:,} to {c.steps:,}, "
          f"random actions until step {c.warmup:,}\nepisodes: {length}; threads: {c.threads}; "
          f"replay: up to {run.buffer.rows.nbytes / 1e6:.1f} MB; results: {place}", flush=True)
    try:
        with stop_on_signals(run), contextlib.closing(iter(run)) as rows:  # closing it saves
            for row in rows:
                print_progress(run, row)
                if events:
                    for name, x in row.items():
                        events.add_scalar(name, x, run.step)
                    events.flush()
    finally:
        if not run.finished and run.folder:  # no folder after NaN
            print(f"\nto continue:  python {NAME} --resume {again}")
    if not run.finished:
        return 128 + run.stopping
    goal = f", which reached --stop-at {c.stop_at:g}" if run.step < c.steps else ""
    print("final evaluation {:.1f} ({:.1f} to {:.1f})".format(*run.evaluation) + goal)
    print(f"to watch it:  python {NAME} --play {again} --render   (or --video FILE.gif)")

def play(play, env=None, threads=1, episodes=10, render=None, video=None):
    """Plays the policy saved in the folder `play`, without noise; can film ten seconds of it."""
    from PIL import Image  # comes with matplotlib
    film, kinds = Path(video or "").absolute(), (".gif", ".webp")
    episodes = check("episodes", int, episodes)
    if render and video:
        raise UsageError("give --render or --video, not both")
    if video and (film.exists() or film.suffix not in kinds or not film.parent.is_dir()):
        raise UsageError(f"--video needs a new .gif or .webp in an existing folder, not {video}")
    if render and sys.platform == "linux" and {"DISPLAY", "WAYLAND_DISPLAY"}.isdisjoint(os.environ):
        raise UsageError("--render needs a display; --video FILE.gif does not")
    state = read_checkpoint(play, env)
    config = configure_torch(replace(state["config"], device="cpu", threads=threads))
    stage = make_env(env or config.env, "rgb_array" if video else render)
    dims = stage.observation_space.shape + stage.action_space.shape
    agent = VARIANTS[config.variant](*dims, config)
    with refusing(f"the policy in {play} does not fit {env or 'this sac.py'}"):
        agent.actor.load_state_dict(state["agent"]["actor"])
    frames, steps, returns = [], itertools.count(), []
    fps = stage.metadata.get("render_fps", 30)
    every = max(1, round(fps / 10))  # about ten frames a second

    def film_frame(obs):
        if not returns and next(steps) % every == 0 and len(frames) < 100:  # first episode only
            frames.append(Image.fromarray(stage.render()).reduce(2))  # half the size
        return obs

    if video:
        stage = gym.wrappers.TransformObservation(stage, film_frame, stage.observation_space)
        with contextlib.suppress(AttributeError, KeyError):  # MuJoCo only
            stage.unwrapped.model.vis.quality.offsamples = 0  # smooth edges are slow without a GPU
            stage.unwrapped.mujoco_renderer.camera_id = stage.unwrapped.model.camera("track").id
            stage.unwrapped.model.geom("floor").size *= 9  # so that no agent runs off its edge
            stage.unwrapped.model.mat_texrepeat *= 9
    for i in range(episodes):
        returns.extend(evaluate(agent, stage, 1, config.seed + 1 if i == 0 else None))
        print(f"episode {i + 1}: return {returns[i]:.1f}", flush=True)
    print(f"mean {np.mean(returns):.1f} ({min(returns):.1f} to {max(returns):.1f})")
    if video:
        options = {"save_all": True, "append_images": frames[1:], "loop": 0,
                   "duration": round(1000 * every / fps)}  # milliseconds a frame
        write(film, lambda file: frames[0].save(file, film.suffix[1:], **options))
        print(f"wrote {video}")

def plot(plot, out=None):
    """Plots the runs in the folders `plot`, and saves the figure to a new file."""
    names = (Path(f"comparison-{i}".removesuffix("-1") + ".png") for i in itertools.count(1))
    file = Path(out) if out else next(name for name in names if not name.exists())
    if file.exists() or file.suffix not in (".png", ".pdf", ".svg"):
        raise UsageError(f"--out needs a new .png, .pdf or .svg file, not {file}")
    figure = plot_runs(plot)
    write(file, lambda opened: figure.savefig(opened, format=file.suffix[1:]))
    print(f"wrote {file}")

def parse(argv):
    """The given flags, as a dict. Each `name: type = default  # help` in Config defines one."""
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS, argument_default=argparse.SUPPRESS, allow_abbrev=False,
        description=(__doc__ or "").split("Source")[0],
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, 2, 29, 100),
        epilog="variants:\n" + "\n".join(f"  {x:13}{VARIANTS[x].__doc__}" for x in VARIANTS))
    for name, default, text in re.findall(r"(\w+): .* = (.*)  # (.*)", inspect.getsource(Config)):
        text = f"{text} ({default})".replace('"', "").replace("%", "%%").removesuffix(" (None)")
        parser.add_argument("--" + name.replace("_", "-"), metavar="X", help=text)
    add = parser.add_argument_group("files").add_argument
    add("--out", metavar="DIR", help="folder for the run (runs/ENV/VARIANT-seedN, then -2, -3)")
    add("--resume", metavar="DIR", nargs="?", const="",
        help="resume DIR; without DIR, resume the run with these flags, or start it")
    add("--tensorboard", action="store_true", help="also write TensorBoard event files")
    add("--plot", metavar="DIR", nargs="+", action="extend", help="plot runs together (--out FILE)")
    add("--play", metavar="DIR", help="play the policy of a run and print the returns")
    add("--episodes", metavar="X", help="episodes to --play (10)")
    add("--render", action="store_const", const="human", help="with --play: show it in a window")
    add("--video", metavar="FILE", help="with --play: film the first ten seconds (.gif or .webp)")
    return vars(parser.parse_args(argv))

def main(argv=None):
    """The command line. Exit codes: 0 done, 1 NaN, 2 usage/file/memory, 3 other, 128 + signal."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda text, *_: print(f"{NAME}: {text}", file=sys.stderr)
        try:
            given = parse(argv)
        except SystemExit as end:  # argparse exits after --help or a mistake
            return end.code
        try:
            job = next((x for x in (play, plot) if x.__name__ in given), train)
            settings = Config.__annotations__ if job is train else {}
            known = {*inspect.signature(job).parameters, *settings}
            unknown = ["--" + name.replace("_", "-") for name in given if name not in known]
            if unknown:
                raise UsageError(f"{job.__name__} does not take {', '.join(unknown)}")
            return job(**given) or 0
        except KeyboardInterrupt as stop:
            return stop.args[0] if stop.args else 128 + signal.SIGINT
        except (FloatingPointError, UsageError, OSError, MemoryError, ImportError) as error:
            code = 1 if isinstance(error, FloatingPointError) else 2
            text = str(error) or repr(error)
        except BaseException as error:  # an environment may even call sys.exit()
            calls = traceback.extract_tb(error.__traceback__)
            here = ", ".join(str(x.lineno) for x in calls if x.filename.endswith(NAME))
            where = f"{calls[-1].filename}, line {calls[-1].lineno}, via lines {here} of {NAME}"
            code, text = 3, f"{error!r} in {where}"
        with contextlib.suppress(OSError):
            print(f"{NAME}:", text.partition("\n")[0], file=sys.stderr)
        return code

if __name__ == "__main__":
    code = main()
    with contextlib.suppress(OSError):
        print(end="", flush=True)
    sys.stdout = None  # else, if output was lost, Python would exit with 120
    sys.exit(code)
