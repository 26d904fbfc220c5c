"""Environments, evaluation and the training run."""

import functools
import importlib.util
import random
import signal
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import TINY, WALL_CLOCK, Clock, flat, learned
from hypothesis import given, settings
from hypothesis import strategies as st

import sac

PENDULUM = {"env": "Pendulum-v1", "steps": 450, "eval_every": 200, "device": "cpu", **TINY}


def train(env=None, folder=None, **config):
    """A finished Run with these settings."""
    run = sac.Run(sac.Config(**(PENDULUM | config)), env=env, folder=folder)
    for _ in run:
        pass
    return run


def outcome(run):
    """All that a run has learned and stored: two lists are equal if they are bit-identical."""
    return flat(run.agent.state_dict()), flat(list(run.buffer.sample(200)))


@pytest.fixture(scope="module")
def reference():
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    run = train()
    return learned(run.history), outcome(run)


# Environments


class Bounds(gym.Env):
    """Keeps the action it was given."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float64)

    def __init__(self, low, high):
        self.action_space = gym.spaces.Box(low, high, dtype=low.dtype)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2), {}

    def step(self, action):
        self.given = action
        return np.zeros(2), 0.0, False, False, {}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    pairs=st.lists(
        st.tuples(st.floats(-1e6, 1e6, width=32), st.floats(-1e6, 1e6, width=32)).filter(
            lambda pair: pair[0] != pair[1]
        ),
        min_size=1,
        max_size=6,
    ),
    unit=st.floats(-1, 1, width=32),
    dtype=st.sampled_from([np.float32, np.float64]),
    square=st.booleans(),
)
def test_unit_actions_reach_an_environments_own_bounds_and_never_leave_them(
    pairs, unit, dtype, square
):
    """Catches scaling by high[0] or by a symmetric range, a rounding that leaves the space by one
    bit (float32 -0.1 + 0.5 * 0.4 does), and an action that reaches the environment flat."""
    low, high = np.sort(np.array(pairs, dtype), axis=1).T
    if square:
        low, high = np.stack([low, low]), np.stack([high, high])
    env = sac.make_env(lambda: Bounds(low, high))
    inner, size = env.unwrapped, low.size
    assert env.action_space.shape == (size,) and env.observation_space.dtype == np.float32
    assert (env.action_space.low == -1).all() and (env.action_space.high == 1).all()
    env.reset()
    for action, right in ((-1, low), (1, high), (unit, None)):
        env.step(np.full(size, action, np.float32))
        assert inner.action_space.contains(inner.given)
        assert right is None or (inner.given == right).all()
    wide = low.astype(np.float64), high.astype(np.float64)
    right = wide[0] + (unit + 1) / 2 * (wide[1] - wide[0])
    largest = abs(np.array(wide)).max()
    np.testing.assert_allclose(inner.given, right, rtol=1e-6, atol=1e-6 * largest + 1e-44)


class Nested(gym.Env):
    """A Dict observation, an action of shape (2,1), float64 all over."""

    def __init__(self):
        tuple_space = gym.spaces.Tuple([gym.spaces.Box(-1, 1, (2, 2), np.float64)])
        self.observation_space = gym.spaces.Dict({"a": gym.spaces.Discrete(3), "b": tuple_space})
        low, high = np.array([[0.0], [-np.pi / 4]]), np.array([[5.0], [np.pi / 4]])
        self.action_space = gym.spaces.Box(low, high, dtype=np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.step(self.action_space.low)[0], {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.time += 1
        obs = {"a": 2, "b": (self.np_random.uniform(-1, 1, (2, 2)),)}
        return obs, -float(abs(action).sum()), self.time == 30, False, {}


def test_a_run_takes_an_environment_of_ones_own():
    """Catches a run that needs a registered id, flat Boxes or float32."""
    run = train(env=Nested, steps=120)
    batch = run.buffer.sample(300)
    assert run.config.env == "Nested" and run.history[-1]["train_length"] <= 30
    assert batch.obs.shape == (300, 7) and (batch.obs[:, :3] == torch.tensor([0, 0, 1])).all()
    assert batch.action.shape == (300, 2) and batch.action.abs().max() <= 1
    assert batch.action.min() < -0.9 and batch.action.max() > 0.9  # [-1,1], not [0,5]
    assert batch.terminated.sum() > 0
    unnamed = sac.Run(sac.Config(**PENDULUM), env=lambda: Nested())
    assert next(iter(unnamed))["step"] == 100


def test_an_environment_may_count_its_own_returns():
    """Catches a clash with an environment that reports its episodes as the run does."""
    counted = gym.wrappers.RecordEpisodeStatistics
    run = train(env=lambda: counted(gym.make("Pendulum-v1")), steps=250)
    assert run.history[-1]["train_length"] == 200 and run.history[-1]["train_return"] < 0


def test_evaluation_is_the_mean_actions_undiscounted_return():
    """Catches sampled actions, a discount, a return that leaks into the next episode."""
    agent = sac.SAC(1, 1, sac.Config(hidden=8))
    before = agent.generator.get_state()
    env = sac.make_env(lambda: Clock(limit=7))
    assert sac.evaluate(agent, env, 3, seed=1).tolist() == [7, 7, 7]
    assert torch.equal(agent.generator.get_state(), before)
    agent = sac.SAC(3, 1, sac.Config(hidden=8))
    pendulum = sac.make_env("Pendulum-v1")
    returns = sac.evaluate(agent, pendulum, 2, seed=1)
    assert returns.shape == (2,) and returns[0] != returns[1]
    assert (sac.evaluate(agent, pendulum, 2, seed=1) == returns).all()


# What is stored, and what ends a future


def test_transitions_are_stored_as_they_happened():
    """Catches a next observation that is the reset's, and a time limit stored as an end."""
    for ends in ("truncated", "terminated"):
        batch = train(env=lambda ends=ends: Clock(4, ends), steps=60, warmup=60).buffer.sample(500)
        assert torch.equal(batch.next_obs, batch.obs + 1)
        assert set(batch.obs.flatten().tolist()) == {0, 1, 2, 3} and (batch.reward == 1).all()
        over = (batch.next_obs[:, 0] == 4) & (ends == "terminated")
        assert torch.equal(batch.terminated, over.float())


@pytest.mark.parametrize("ends, value", [("truncated", 10.0), ("terminated", 1 / (1 - 0.9 * 0.8))])
def test_only_a_true_end_cuts_the_future(ends, value):
    """Catches a time limit taken as an end: with one state, reward 1 and gamma 0.9 the value is
    1/(1-gamma) = 10 under a limit of 5 steps, but 3.57 if each fifth step ends everything."""
    run = train(
        env=lambda: Clock(5, ends, blind=True),
        steps=700,
        alpha=0.0,
        gamma=0.9,
        tau=0.2,
        critic_lr=3e-3,
        buffer_size=700,
    )
    q = run.agent.critic(torch.zeros(9, 1), torch.linspace(-1, 1, 9)[:, None])
    assert q.shape == (2, 9)
    assert q.mean().item() == pytest.approx(value, rel=0.1)


# The same run again


def test_a_matrix_of_observations_is_flattened():
    """Catches one that is taken for an image."""

    class Grid(Clock):
        observation_space = gym.spaces.Box(0, 9, (2, 3), np.float32)

        def _observe(self):
            return np.full((2, 3), self.time, np.float32)

    assert sac.make_env(Grid).reset()[0].shape == (6,)


def test_no_two_generators_of_a_run_share_their_random_numbers():
    """Catches one seed for all: the warm-up's actions were the environment's own random numbers,
    shifted, and the replay drew what the weights had been drawn from."""

    class Noisy(Bounds):
        drawn, given = [], []

        def __init__(self):
            super().__init__(np.full(2, -1.0), np.full(2, 1.0))

        def step(self, action):
            self.drawn.append(self.np_random.uniform(-1, 1, 2))
            self.given.append(action)
            return np.zeros(2), 0.0, False, len(self.drawn) % 200 == 0, {}

    run = sac.Run(sac.Config(steps=200, warmup=200, eval_every=200, eval_episodes=1, seed=5), Noisy)
    for _ in range(200):
        run.advance()
    drawn, given = (np.concatenate(x).round(5) for x in (Noisy.drawn, Noisy.given))
    assert not set(drawn) & set(given)

    def words(state):  # the first words that a generator of torch makes
        generator = torch.Generator()
        generator.set_state(state)
        return torch.randint(2**31, (2000,), generator=generator)

    fresh = sac.SAC(3, 1, run.config).generator.get_state(), run.buffer.generator.get_state()
    weights = torch.Generator().manual_seed(run.config.seed).get_state()
    streams = [set(words(state).tolist()) for state in (*fresh, weights)]
    assert all(len(a & b) < 3 for a, b in zip(streams, streams[1:] + streams[:1]))


def test_same_seed_same_run_other_seed_other_run(reference):
    """Catches unseeded warm-up actions, environments, weights or noise."""
    run = train()
    assert (learned(run.history), outcome(run)) == reference
    other = train(seed=2)
    assert learned(other.history) != reference[0] and outcome(other) != reference[1]


@pytest.mark.parametrize(
    "reports", [{"eval_every": 60, "eval_episodes": 2}, {"log_every": 7}, {"log_every": 10_000}]
)
def test_reports_do_not_change_training(reference, reports):
    """Catches an evaluation in the training environment or from its noise, and rows that draw."""
    assert outcome(train(**reports)) == reference[1]


def test_two_runs_in_one_program_do_not_disturb_each_other(reference):
    """Catches global random state, and anything that two agents share."""
    one = sac.Run(sac.Config(**PENDULUM))
    two = sac.Run(sac.Config(**(PENDULUM | {"seed": 2, "log_every": 30, "gamma": 0.5})))
    rows = iter(two)
    for _ in one:
        torch.rand(3)
        np.random.rand()
        next(rows, None)
    assert (learned(one.history), outcome(one)) == reference


def test_a_run_can_be_left_and_taken_up_again(reference):
    """Catches state that lives in the loop and dies with a break, and a row lost or doubled."""
    run, rows = sac.Run(sac.Config(**PENDULUM)), []
    while not run.finished:
        for row in run:
            rows.append(row)
            break
    assert (learned(rows), outcome(run)) == reference and learned(run.history) == reference[0]
    assert list(run) == []


def test_a_run_leaves_the_global_state_alone():
    """Catches seeding, threads or precision set for the whole program by a run in a notebook."""

    def state():
        torches = torch.get_rng_state().tolist(), torch.get_num_threads()
        precision = torch.get_float32_matmul_precision()
        return torches, precision, repr(np.random.get_state()), random.getstate()

    before = state()
    train(steps=120)
    assert state() == before


# Rows


def test_rows_come_when_they_should_and_hold_what_exists():
    """Catches a missing last row, an evaluation that is forgotten at the next row, and numbers
    where there is nothing yet."""
    run = train(steps=530)
    rows = {int(row["step"]): row for row in run.history}
    assert list(rows) == [100, 200, 300, 400, 500, 530]
    names = "step episodes train_return train_length eval_return eval_min eval_max critic_loss "
    names += "actor_loss alpha_loss alpha entropy target_entropy q_mean steps_per_second seconds"
    assert all(set(names.split()) <= row.keys() for row in run.history)
    assert all(type(x) is float for row in run.history for x in row.values())
    assert np.isnan([rows[100]["train_return"], rows[100]["eval_return"]]).all()
    assert rows[200]["eval_return"] == rows[300]["eval_return"] != rows[400]["eval_return"]
    assert rows[200]["eval_return"] != rows[200]["train_return"]
    assert rows[530]["eval_return"] != rows[500]["eval_return"]
    assert [row["episodes"] for row in run.history] == [0, 1, 1, 2, 2, 2]
    assert rows[530]["train_length"] == 200 and rows[530]["target_entropy"] == -1
    early = train(steps=100, warmup=80, log_every=50)
    assert np.isnan([early.history[0][k] for k in ("critic_loss", "q_mean", "entropy")]).all()
    assert np.isfinite([early.history[1][k] for k in ("critic_loss", "q_mean", "entropy")]).all()


@pytest.mark.parametrize("per_step", [1, 3])
def test_learning_starts_after_the_warm_up(per_step):
    """Catches updates on an empty replay, a warm-up that is one off, a forgotten flag."""
    run = train(steps=80, updates_per_step=per_step)
    assert run.agent.updates == per_step * (80 - TINY["warmup"])


def test_the_policy_acts_from_the_end_of_the_warm_up_on():
    """Catches one random action too many."""
    run, steps = sac.Run(sac.Config(**PENDULUM)), []
    act = run.agent.act
    run.agent.act = lambda obs: steps.append(run.step) or act(obs)
    while run.step < 60:
        run.advance()
    assert steps == list(range(TINY["warmup"], 60))


def test_episodes_start_in_different_states():
    """Catches a reset that is given the same seed each time."""
    rows = train(warmup=450).buffer.rows
    assert not torch.equal(rows[0, :3], rows[200, :3])


def test_the_replay_is_as_large_as_asked_but_never_larger_than_the_run():
    """Catches a --buffer-size that is ignored."""
    sizes = [len(train(steps=60, buffer_size=size).buffer.rows) for size in (40, 10**6)]
    assert sizes == [40, 60]


def test_warm_up_actions_are_uniform():
    """Catches warm-up by the untrained policy, whose actions crowd around zero."""
    actions = train(steps=1000, warmup=1000).buffer.sample(4000).action
    counts = torch.histc(actions, 10, -1, 1)
    assert counts.min() > 250 and counts.max() < 550  # of 400 each, from 1000 rows drawn 4 times


def test_a_temperature_can_be_set_from_outside():
    """Catches a temperature that the agent has copied: a decaying one would change nothing."""
    run, rows = sac.Run(sac.Config(**(PENDULUM | {"alpha": 1.0}))), []
    for row in run:
        rows.append(row)
        run.agent.log_alpha.data.fill_(-float(len(rows)))
    decayed = [row["alpha"] for row in rows]
    assert decayed == pytest.approx([np.exp(-i) for i in range(len(rows))])
    steady = train(alpha=1.0)
    assert learned(steady.history[:1]) == learned(rows[:1])
    assert {row["alpha"] for row in steady.history} == {1.0}
    assert steady.history[-1]["q_mean"] > rows[-1]["q_mean"]  # entropy was worth more
    assert len({row["alpha"] for row in train().history[1:]}) > 1  # learned unless given


def test_a_run_stops_at_its_goal():
    """Catches a goal that is compared with a training return, the best episode, or never."""
    run = train(env=lambda: Clock(limit=20), stop_at=20.0, eval_every=150)
    assert run.finished and run.step == 150
    assert train(env=lambda: Clock(limit=20), stop_at=20.5, steps=160, eval_every=150).step == 160


def test_a_row_is_the_readers_own():
    """Catches a yielded row that is the history itself: what a reader adds would be saved."""
    run = sac.Run(sac.Config(**PENDULUM))
    for row in run:
        row.clear()
    assert [row["step"] for row in run.history] == [100, 200, 300, 400, 450]


def test_an_evaluation_is_the_mean_between_the_lowest_and_the_highest(monkeypatch):
    """Catches the median, a swap, and a goal that the best episode alone has reached."""
    monkeypatch.setattr(sac, "evaluate", lambda *_: np.array([9.0, 1.0, 2.0]))
    run = train(env=Clock, stop_at=5.0)
    assert run.step == 450 and run.evaluation == (4, 1, 9)


def test_a_training_return_is_the_sum_of_an_episodes_rewards():
    """Catches the mean reward, and the length in its place."""
    last = train(env=lambda: Clock(limit=7, reward=3.0)).history[-1]
    assert last["train_return"] == 21 and last["train_length"] == 7


def test_pendulum_is_learned():
    """Catches whatever keeps SAC from learning at all. Final evaluations of seeds 1 to 5 with
    these settings: -110, -122, -203, -137, -190
    (for s in 1 2 3 4 5: python sac.py --env Pendulum-v1 --steps 5000 --warmup 500 --hidden 64
    --batch-size 64 --actor-lr 1e-3 --critic-lr 1e-3 --alpha-lr 1e-3 --tau 0.01 --threads 1
    --matmul-precision highest --seed $s)."""
    rates = {"actor_lr": 1e-3, "critic_lr": 1e-3, "alpha_lr": 1e-3, "tau": 0.01}
    sizes = {"steps": 5000, "warmup": 500, "hidden": 64, "batch_size": 64, "eval_episodes": 10}
    run = train(seed=1, eval_every=5000, **rates, **sizes)
    assert run.history[-1]["eval_return"] > -250


# Saving and going on


@pytest.mark.parametrize(
    "env, boundary, warmup, steps",
    [("Pendulum-v1", 200, 250, 500), ("HalfCheetah-v4", 1000, 850, 1300)],
)
def test_a_resumed_run_equals_one_that_never_stopped(tmp_path, env, boundary, warmup, steps):
    """Catches anything that a save leaves out: generators, moments, counters, replay, evaluation,
    or the environment's own state."""
    config = {"env": env, "steps": steps, "eval_every": 350, "warmup": warmup}
    whole = train(**config, folder=tmp_path / "whole")
    run = sac.Run(sac.Config(**(PENDULUM | config)))
    for row in run:
        if row["step"] == boundary:
            break
    run.save(tmp_path / "part")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = sac.Run.load(tmp_path / "part")
    assert again.step == boundary and learned(again.history) == learned(run.history)
    rows = list(again)
    assert learned(rows) == learned(whole.history)[-len(rows) :] and len(rows) >= 3
    assert learned(again.history) == learned(whole.history) and outcome(again) == outcome(whole)
    tables = [
        np.genfromtxt(tmp_path / x / "progress.csv", delimiter=",", names=True)
        for x in ("whole", "part")
    ]
    for name in set(tables[0].dtype.names) - set(WALL_CLOCK):
        assert np.array_equal(tables[0][name], tables[1][name], equal_nan=True), name


def test_a_finished_run_can_be_extended(tmp_path):
    """Catches a replay that was sized for the shorter run, and a change of steps that is lost."""
    whole = train(steps=600)
    train(steps=400, folder=tmp_path / "run")
    longer = sac.Run.load(tmp_path / "run", steps=600)
    assert learned(longer) == learned(whole.history)[4:] and outcome(longer) == outcome(whole)


def test_a_run_can_be_ended_where_it_was_stopped(tmp_path):
    """Catches an end without an evaluation ("final evaluation nan"), and its last row twice."""
    whole = train(steps=200, eval_every=150)
    run = sac.Run(sac.Config(**PENDULUM | {"eval_every": 150}), folder=tmp_path / "run")
    for row in run:
        if row["step"] == 200:
            break
    run.save()
    ended = sac.Run.load(tmp_path / "run", steps=200)
    assert [row["eval_step"] for row in ended] == [200]
    assert learned(ended.history) == learned(whole.history) and outcome(ended) == outcome(whole)


def test_a_resumed_run_counts_on(tmp_path):
    """Catches seconds that begin again, and a save at once, with nothing new in it."""
    run = train(env=Clock, folder=tmp_path / "run", steps=100)
    again = sac.Run.load(tmp_path / "run", env=Clock, steps=200)
    assert again.row["seconds"] == run.row["seconds"] > 0 and again.saved_at == 100


def test_a_metric_of_ones_own_stays_in_the_log(tmp_path, monkeypatch):
    """Catches a column of an edited `update` that vanishes when a finished run is loaded."""

    class Logged(sac.SAC):
        def update(self, batch):
            return super().update(batch) | {"largest_reward": batch.reward.max()}

    monkeypatch.setitem(sac.VARIANTS, "sac", Logged)
    train(steps=200, folder=tmp_path / "run")
    before = (tmp_path / "run/progress.csv").read_text()
    for _ in sac.Run.load(tmp_path / "run"):
        pass
    assert "largest_reward" in before and (tmp_path / "run/progress.csv").read_text() == before


def test_a_run_saved_inside_an_episode_says_so_and_begins_a_new_one(tmp_path):
    """Catches a half episode that is glued to another one: the step between them never was."""
    run = sac.Run(sac.Config(**(PENDULUM | {"steps": 300})), env=Clock)
    next(iter(run))
    run.advance()  # 101 steps: one into an episode of five
    run.save(tmp_path / "run")
    with pytest.warns(UserWarning, match="episode"):
        again = sac.Run.load(tmp_path / "run", env=Clock)
    again.save(tmp_path / "copy")  # no step later
    with pytest.warns(UserWarning, match="inside an episode"):
        sac.Run.load(tmp_path / "copy", env=Clock)
    list(again)
    batch = again.buffer.sample(4000)
    assert torch.equal(batch.next_obs, batch.obs + 1)
    assert again.step == 300 and len(again.buffer) == 300


def test_saving_overwrites_nothing_and_keeps_one_save(tmp_path):
    """Catches a folder that loses another run, and files that pile up."""
    run = train(steps=100, folder=tmp_path / "run", save_every=1)
    with pytest.raises(sac.UsageError, match="has files"):
        sac.Run(run.config, folder=tmp_path / "run")
    (tmp_path / "other").mkdir()
    run.save(tmp_path / "other")  # an empty folder, as a full disk leaves it, is as good as none
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(sac.UsageError, match="has files"):
        run.save(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    run = train(env=Clock, steps=100, folder=tmp_path / "clock", save_every=30)
    names = {path.name for path in (tmp_path / "clock").iterdir()}
    kept = "config.json progress.csv checkpoint.pt learning_curve.png"
    assert names == set(kept.split())


def test_a_run_can_be_saved_before_its_first_row(tmp_path):
    """Catches a learning curve that cannot be drawn yet and takes the whole save with it."""
    run = sac.Run(sac.Config(**PENDULUM), env=Clock)
    for _ in range(10):
        run.advance()
    run.save(tmp_path / "run")
    assert sac.Run.load(tmp_path / "run", env=Clock).step == 10


# When it goes wrong


class Broken(Clock):
    """Goes wrong at step 95 of an episode that never ends."""

    def __init__(self, what, value):
        super().__init__(limit=10**6)
        self.what, self.value = what, value

    def step(self, action):
        obs, reward, *rest = super().step(action)
        if self.time == 95:
            obs = np.array([self.value], np.float32) if self.what == "observation" else obs
            reward = self.value if self.what == "reward" else reward
        return obs, reward, *rest


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("what", ["observation", "reward"])
def test_nan_and_infinity_stop_a_run_at_their_step(what, value):
    """Catches a NaN that is stored, learned, and seen thousands of steps later, if ever."""
    run = sac.Run(sac.Config(**PENDULUM), env=lambda: Broken(what, value))
    with pytest.raises(FloatingPointError, match=f"{what}.* step 95"):
        list(run)
    assert run.step == 95


def test_nan_in_the_first_observation_of_an_episode_is_named_too():
    """Catches a check of what step returns alone, which finds a NaN of reset as another thing."""

    class Bad(Clock):
        def reset(self, *, seed=None, options=None):
            obs, info = super().reset(seed=seed)
            return obs * np.nan, info

    with pytest.raises(FloatingPointError, match="observation"):
        list(sac.Run(sac.Config(**PENDULUM), env=Bad))


@pytest.mark.parametrize("log_every", [20, 300])
def test_an_infinite_loss_stops_the_run_at_its_step(log_every):
    """Catches a run that goes on after a loss overflowed, also if that was long before the row:
    Adam's moments then are infinite and nothing is learned any more, at losses that look right."""
    config = {"steps": 1000, "log_every": log_every, "eval_every": 1000, "buffer_size": 64}
    run = sac.Run(sac.Config(**(PENDULUM | config)), env=lambda: Broken("reward", 1e30))
    with pytest.raises(FloatingPointError, match="loss at step (9[5-9]|1[0-5][0-9])"):
        list(run)


def test_nan_in_an_evaluation_stops_the_run_too():
    """Catches "final evaluation nan" of a run that calls itself finished."""
    made = []

    def make():
        made.append(Broken("reward", np.nan) if made else Clock())
        return made[-1]

    with pytest.raises(FloatingPointError, match="evaluation at step 200"):
        list(sac.Run(sac.Config(**PENDULUM), env=make))


def test_a_reward_that_float32_cannot_hold_stops_the_run():
    """Catches a check of the float64 reward, while the replay stores infinity."""
    run = sac.Run(sac.Config(**PENDULUM), env=lambda: Broken("reward", 1e39))
    with pytest.raises(FloatingPointError, match="reward at step 95"), np.errstate(all="ignore"):
        list(run)


def test_nothing_is_saved_after_nan(tmp_path):
    """Catches a last good save that a poisoned one replaces."""
    run = sac.Run(sac.Config(**PENDULUM), env=lambda: Broken("reward", np.nan))
    for _ in range(60):
        run.advance()
    run.save(tmp_path / "run")
    for _ in range(2):
        with pytest.raises(FloatingPointError):
            list(run)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert sac.Run.load(tmp_path / "run", env=Clock).step == 60


def test_a_last_step_that_spoils_the_weights_is_not_saved(tmp_path):
    """Catches a save right after the step that diverged: its losses were those before the step."""
    run = sac.Run(sac.Config(**PENDULUM), env=Clock, folder=tmp_path / "run")
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    with torch.no_grad():
        next(run.agent.critic.parameters()).fill_(np.nan)
    with pytest.raises(FloatingPointError, match="weights"):
        run.save()
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


# At the edges


def test_names_of_numpy_are_saved_as_text(tmp_path):
    """Catches a numpy string in a Config, which no load would take."""
    config = sac.Config(**PENDULUM | {"env": np.str_("Pendulum-v1"), "variant": np.str_("ddpg")})
    sac.Run(config, folder=tmp_path / "run")
    assert sac.Run.load(tmp_path / "run").config == config


@pytest.mark.parametrize("kind", [np.random.MT19937, np.random.Philox, np.random.SFC64])
def test_settings_and_generators_of_numpy_are_saved_and_resumed(tmp_path, kind):
    """Catches a save that takes numpy's scalars or a generator's arrays, and cannot be read."""

    class Drawing(Nested):
        def reset(self, *, seed=None, options=None):
            if seed is not None:
                self.np_random = np.random.Generator(kind(seed))
            return super().reset(options=options)

    numbers = {"actor_lr": np.float64(1e-3), "steps": np.int64(180), "gamma": np.float32(0.5)}
    whole = train(env=Drawing, **numbers)
    run = sac.Run(sac.Config(**PENDULUM | numbers), env=Drawing)
    while run.step < 4 * 29:  # four episodes
        run.advance()
    run.save(tmp_path / "run")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = sac.Run.load(tmp_path / "run", env=Drawing)
    list(again)
    assert again.config.actor_lr == 1e-3 and type(again.config.steps) is int
    assert outcome(again) == outcome(whole)


def test_a_random_state_that_cannot_be_saved_is_told(tmp_path):
    """Catches a run that a legacy RandomState ends at its second save, and a resume that says
    nothing of it."""

    class Legacy(Nested):
        def reset(self, *, seed=None, options=None):
            if seed is not None:
                self.np_random = np.random.RandomState(seed)
            return super().reset(options=options)

    config = sac.Config(**PENDULUM | {"steps": 120})
    list(sac.Run(config, env=Legacy, folder=tmp_path / "run"))
    with pytest.warns(UserWarning, match="np_random"):
        again = sac.Run.load(tmp_path / "run", env=Legacy, steps=180)
    list(again)
    assert again.step == 180


def test_a_generator_made_in_reset_is_resumed_from_the_first_save(tmp_path):
    """Catches a state of the generator that gymnasium lends before the first reset."""

    class Late(Nested):
        def reset(self, *, seed=None, options=None):
            if seed is not None:
                self.np_random = np.random.Generator(np.random.MT19937(seed))
            return super().reset(options=options)

    config = sac.Config(**PENDULUM | {"steps": 120})
    sac.Run(config, env=Late, folder=tmp_path / "run")
    again = sac.Run.load(tmp_path / "run", env=Late)
    list(again)
    assert outcome(again) == outcome(train(env=Late, steps=120))


def test_a_stop_in_the_last_episode_still_ends_with_an_evaluation():
    """Catches a run whose every step is done, and that calls itself unfinished."""
    run = sac.Run(sac.Config(**PENDULUM | {"steps": 80}), env=lambda: Clock(20))
    for _ in range(70):
        run.advance()
    run.stopping = 2
    list(run)
    assert run.step == 80 and run.finished and run.row["eval_step"] == 80


def test_a_step_that_was_interrupted_is_no_transition():
    """Catches an observation that the interrupted step has left behind and the next one goes on
    from, and an evaluation that an interrupt has cost: an interrupt anywhere in env.step, update
    or evaluation (as in a notebook), then the loop again."""
    draw = np.random.default_rng(1)

    class Interrupted(Clock):
        def step(self, action):
            if draw.random() < 0.05:
                raise KeyboardInterrupt
            result = super().step(action)
            if draw.random() < 0.05:
                raise KeyboardInterrupt
            return result

    config = PENDULUM | {"steps": 300, "eval_every": 50, "eval_episodes": 2}
    run = sac.Run(sac.Config(**config), env=lambda: Interrupted(7))
    update, interrupts = run.agent.update, 0

    def interrupted_update(batch):
        metrics = update(batch)
        if draw.random() < 0.05:
            raise KeyboardInterrupt
        return metrics

    run.agent.update = interrupted_update
    while not run.finished:
        try:
            list(run)
        except KeyboardInterrupt:
            interrupts += 1
    assert interrupts > 40
    rows = run.buffer.rows[: len(run.buffer)]
    assert torch.equal(rows[:, 3], rows[:, 0] + 1)  # the next observation is one later
    assert [row["step"] for row in run.history] == [50, 100, 150, 200, 250, 300]
    assert all(row["eval_step"] == row["step"] for row in run.history)
    assert all(row["eval_return"] == 7 for row in run.history)


def test_an_interrupted_run_is_saved_and_marked(tmp_path):
    """Catches steps that Ctrl-C in a notebook costs a run that has a folder."""
    run = sac.Run(sac.Config(**PENDULUM), env=lambda: Clock(10**6), folder=tmp_path / "run")
    advance = run.advance

    def interrupted():
        if run.step == 77:
            raise KeyboardInterrupt
        advance()

    run.advance = interrupted
    with pytest.raises(KeyboardInterrupt):
        list(run)
    with pytest.warns(UserWarning, match="inside an episode"):
        assert sac.Run.load(tmp_path / "run", env=Clock).step == 77


def test_an_environment_that_never_ends_is_saved_and_evaluated(tmp_path, monkeypatch):
    """Catches saves that wait for ever for an episode's end, and an evaluation without one."""
    monkeypatch.setattr(sac, "LONGEST", 40)
    run = sac.Run(
        sac.Config(**PENDULUM | {"save_every": 100}),
        env=lambda: Clock(10**6),
        folder=tmp_path / "run",
    )
    for row in run:
        if row["step"] == 400:
            assert row["eval_return"] == 40
            with pytest.warns(UserWarning, match="inside an episode"):
                assert sac.Run.load(tmp_path / "run", env=Clock).step >= 200


def test_one_environment_for_training_and_evaluation_is_refused():
    """Catches evaluations that reset the episode which training is in."""
    env = Clock()
    with pytest.raises(sac.UsageError, match="new environment"):
        sac.Run(sac.Config(**PENDULUM), env=lambda: env)
    with pytest.raises(sac.UsageError, match="cannot make"):
        sac.Run(sac.Config(**PENDULUM), env=env)


def test_rewards_and_ends_of_shape_one_are_taken():
    """Catches a reward that makes the returns an array of arrays, and a float32 sum."""

    class Shaped(Clock):
        def step(self, action):
            obs, reward, terminated, truncated, info = super().step(action)
            return obs, np.float32([reward]), np.array([terminated]), np.array([truncated]), info

    for ends in ("truncated", "terminated"):
        run = train(env=lambda ends=ends: Shaped(5, ends, reward=0.1), steps=120)
        plain = train(env=lambda ends=ends: Clock(5, ends, reward=np.float32(0.1)), steps=120)
        assert outcome(run) == outcome(plain)
        assert run.history[-1]["eval_return"] == pytest.approx(0.5, abs=1e-7)


def test_a_constructor_without_render_mode_will_do():
    """Catches render_mode=None passed to an environment that was registered without it."""
    gym.register("Plain-v0", entry_point=Clock, max_episode_steps=9)
    try:
        assert train(env="Plain-v0", steps=60).step == 60
        with pytest.raises(sac.UsageError, match="render_mode"):
            sac.make_env("Plain-v0", "rgb_array")
        run = sac.Run(sac.Config(steps=60, hidden=8), env="Plain-v0")
        assert run.config.env == "Plain-v0"  # and so does its save, not Config's default
        made = functools.partial(gym.make, "Plain-v0")  # has no name, only an address
        assert sac.Run(sac.Config(steps=60, hidden=8), env=made).config.env == "custom"
    finally:
        gym.registry.pop("Plain-v0")


def test_the_checksum_is_of_the_code_that_runs(tmp_path):
    """Catches a checksum taken at a save: a file edited during a run would pass for its code."""
    path = tmp_path / "edited.py"
    path.write_text(Path(sac.__file__).read_text())
    spec = importlib.util.spec_from_file_location("edited", path)
    edited = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(edited)
    path.write_text(path.read_text() + "# edited\n")
    edited.Run(edited.Config(**PENDULUM), env=Clock, folder=tmp_path / "run")
    spec.loader.exec_module(edited)
    with pytest.warns(UserWarning, match="different sac.py"):
        edited.Run.load(tmp_path / "run", env=Clock)


def test_two_processes_that_resume_one_folder_leave_a_whole_save(tmp_path):
    """Catches saves that mix files of two runs, and files of the user that are tidied away."""
    train(env=Clock, steps=60, folder=tmp_path / "run")
    (tmp_path / "run" / "notes.tmp").write_text("mine")
    one, two = (sac.Run.load(tmp_path / "run", env=Clock, steps=steps) for steps in (200, 300))
    for _ in zip(one, two):
        one.save()
        two.save()
    left = sac.Run.load(tmp_path / "run", env=Clock)
    assert (left.step, left.config.steps) in ((one.step, 200), (two.step, 300))
    assert (tmp_path / "run" / "notes.tmp").read_text() == "mine"


def largest_error(precision=None):
    """Of a product of random matrices, relative to the sum of its terms' sizes."""
    if precision:
        torch.set_float32_matmul_precision(precision)
    a, b = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(1))
    return (((a @ b) - a.double() @ b.double()).abs() / (a.double().abs() @ b.double().abs())).max()


def test_the_default_precision_is_that_of_float32_on_this_machine():
    """Catches a fast path that rounds to bfloat16 (an error of 4e-3) and is taken all the same, and
    an exact one that is refused."""
    sac.configure_torch(sac.Config(device="cpu", threads=1))
    chosen = torch.get_float32_matmul_precision()
    assert largest_error() < 1e-6
    assert chosen == ("medium" if largest_error("medium") < 1e-6 else "highest")
    sac.configure_torch(sac.Config(device="cpu", threads=1, matmul_precision="medium"))
    assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.parametrize("bits, exact", [(7, False), (10, False), (23, True)])
def test_rounding_to_bfloat16_or_tf32_would_be_refused(monkeypatch, bits, exact):
    """Catches a limit that lets bfloat16 (7 bits after the point) or TF32 (10) pass, or that
    float32 (23) itself misses: "medium" is made to round its operands to so many bits."""
    product = torch.Tensor.__matmul__

    def rounded(a, b):
        if a.dtype == torch.float32 and torch.get_float32_matmul_precision() == "medium":
            drop = 23 - bits
            half = (1 << drop) >> 1
            a, b = (((x.view(torch.int32) + half) >> drop << drop).view(torch.float32)
                    for x in (a.contiguous(), b.contiguous()))  # fmt: skip
            torch.set_float32_matmul_precision("highest")
            result = product(a, b)
            torch.set_float32_matmul_precision("medium")
            return result
        return product(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    sac.configure_torch(sac.Config(device="cpu", threads=1))
    assert torch.get_float32_matmul_precision() == ("medium" if exact else "highest")


@pytest.mark.parametrize("two_threads, chosen", [(0.6, 2), (0.9, 1), (30.0, 1)])
def test_threads_are_used_where_they_are_faster_now(monkeypatch, two_threads, chosen):
    """Catches threads that spin on a busy machine, a choice that ignores --threads, and a resume
    with other threads: a product takes one second with one thread and `two_threads` with two."""
    now, threads = [0.0], [2]
    product = torch.Tensor.__matmul__

    def timed(a, b):
        now[0] += {1: 1.0, 2: two_threads}[threads[-1]]
        return product(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", timed)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    timeit = functools.partial(sac.timeit.timeit, timer=lambda: now[0])
    monkeypatch.setattr(sac.timeit, "timeit", timeit)
    assert sac.configure_torch(sac.Config(device="cpu")).threads == threads[-1] == chosen
    threads.append(2)
    assert sac.configure_torch(sac.Config(device="cpu", threads=1)).threads == threads[-1] == 1
    threads.append(1)
    assert sac.configure_torch(sac.Config(device="cpu", threads=2)).threads == threads[-1] == 2


# What a student changes

CHANGES = {  # name: (what stands there, what takes its place); at most 5 lines, observations 10
    "three hidden layers": (
        "layer(hidden, outputs))",
        "layer(hidden, hidden),\n"
        "                         nn.ReLU(inplace=True), layer(hidden, outputs))",
    ),
    "Huber loss": (
        "        return 0.5 * ((q - y.expand_as(q)) ** 2).mean(1).sum()",
        "        return F.smooth_l1_loss(q, y.expand_as(q), reduction='none').mean(1).sum()",
    ),
    "a schedule of the target entropy": (
        "        critic_loss = self.critic_loss(batch)\n",
        "        self.target_entropy = -self.action_dim * min(1.0, self.updates / 50)\n"
        "        critic_loss = self.critic_loss(batch)\n",
    ),
    "a learning rate that decays": (
        "        critic_loss = self.critic_loss(batch)\n",
        "        self.actor_optimizer.lr = 1e-3 * 0.99**self.updates\n"
        "        critic_loss = self.critic_loss(batch)\n",
    ),
    "rewards that are clipped": (
        "        r = self.config.reward_scale * batch.reward\n",
        "        r = self.config.reward_scale * batch.reward.clamp(-1, 1)\n",
    ),
    "the min of a random pair of five critics": (
        "VARIANTS = {",
        "class Redq(SAC):\n"
        "    def combine(self, q):\n"
        "        return q[torch.randperm(5, generator=self.generator)[:2]].min(0).values\n"
        "TwinLinear.critics, SAC = 5, Redq\n"
        "VARIANTS = {",
    ),
    "layer norm in the critics": (
        "        self.net = mlp(TwinLinear, obs_dim + action_dim, hidden, 1)\n",
        "        self.net = mlp(TwinLinear, obs_dim + action_dim, hidden, 1)\n"
        "        self.net.insert(1, nn.LayerNorm(hidden, elementwise_affine=False))\n",
    ),
    "observations with running mean and variance": (
        "VARIANTS = {",
        "class Normalised(SAC):\n"
        "    def __init__(self, *args):\n"
        "        super().__init__(*args)\n"
        "        start = torch.tensor([[0.0], [1.0]]).repeat(1, self.obs_dim)\n"
        "        self.actor.register_buffer('stats', start)\n"
        "    def normal(self, x):\n"
        "        return (torch.as_tensor(x) - self.actor.stats[0]) / self.actor.stats[1].sqrt()\n"
        "    def act(self, obs, deterministic=False):\n"
        "        return super().act(self.normal(obs), deterministic)\n"
        "    def update(self, b):\n"
        "        self.actor.stats.lerp_(torch.stack([b.obs.mean(0), b.obs.var(0)]), 0.01)\n"
        "        b = b._replace(obs=self.normal(b.obs), next_obs=self.normal(b.next_obs))\n"
        "        return super().update(b)\n"
        "SAC = Normalised\n"
        "VARIANTS = {",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_student_changes_one_place_and_everything_else_follows(tmp_path, change):
    """Catches a second place to know, a change that a resume forgets (a normaliser's mean, a rate),
    or one that does not reach what is learned and logged."""
    old, new = CHANGES[change]
    source = Path(sac.__file__).read_text()
    assert source.count(old) == 1
    path = tmp_path / "changed.py"
    path.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location("changed", path)
    changed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(changed)
    whole = changed.Run(changed.Config(**PENDULUM))
    list(whole)
    part = changed.Run(changed.Config(**PENDULUM))
    for row in part:
        if row["step"] == 200:
            part.save(tmp_path / "run")
            break
    rest = changed.Run.load(tmp_path / "run")
    list(rest)
    assert learned(rest.history) == learned(whole.history) and outcome(rest) == outcome(whole)
    assert np.isfinite(
        [whole.history[-1][name] for name in ("critic_loss", "q_mean", "alpha")]
    ).all()
    assert learned(whole.history[2:]) != learned(train().history[2:])  # it did change something


def test_a_signal_also_stops_a_run_whose_environment_is_a_function():
    """Catches a handler that fails where gymnasium has no spec, and one that stays installed."""
    before = signal.getsignal(signal.SIGTERM)
    run = sac.Run(sac.Config(steps=100, warmup=100, hidden=8), env=Clock)
    with sac.stop_on_signals(run):
        signal.raise_signal(signal.SIGTERM)
        assert len(list(run)) == 0 and run.stopping == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before and signal.alarm(0) == 0


def test_a_signal_also_stops_a_run_that_is_iterated_again():
    """Catches a second loop that takes every signal for one during the last save."""
    run = sac.Run(sac.Config(steps=300, warmup=300, hidden=8, log_every=100), env=Clock)
    for _ in run:
        break
    with sac.stop_on_signals(run):
        for _ in run:
            signal.raise_signal(signal.SIGTERM)
    assert run.step == 200 and run.stopping == signal.SIGTERM
