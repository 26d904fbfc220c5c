"""The mathematics, against references that share no code with sac.py."""

import copy
import io
import math

import mpmath
import numpy as np
import pytest
import torch
from conftest import flat, make_agent, make_batch
from torch import nn

import sac

# The density of a squashed Gaussian


@pytest.mark.parametrize(
    "dtype, value_tolerance, slope_tolerance",
    [(torch.float32, 4e-6, 2e-6), (torch.float64, 5e-9, 1e-8)],  # softplus is x itself above 20
)
@pytest.mark.parametrize("offset, log_std", [(0.0, 0.0), (0.7, -1.5), (-2.0, 1.0)])
def test_log_prob_and_its_gradient_against_50_digits(
    dtype, value_tolerance, slope_tolerance, offset, log_std
):
    """Catches log(1 - tanh(u)^2 + eps), a missing tanh term, and a variance for a deviation."""
    u = torch.linspace(-20, 20, 401, dtype=dtype)[:, None].requires_grad_()
    mean = u.detach() - offset  # never far from u, so that no large number hides an error
    log_std = torch.tensor(log_std, dtype=dtype)
    action, log_prob = sac.squash(u, mean, log_std)
    (slope,) = torch.autograd.grad(log_prob.sum(), u)
    with mpmath.workdps(50):
        for i in range(len(u)):
            x, m, s = (mpmath.mpf(t.item()) for t in (u[i], mean[i], log_std))
            z = (x - m) / mpmath.exp(s)
            value = -(z**2) / 2 - s - mpmath.log(2 * mpmath.pi) / 2 + 2 * mpmath.log(mpmath.cosh(x))
            right_slope = -z / mpmath.exp(s) + 2 * mpmath.tanh(x)
            assert abs(log_prob[i].item() - value) < value_tolerance * max(1, abs(x) / 4), u[i]
            assert abs(slope[i].item() - right_slope) < slope_tolerance * max(1, abs(z) * 2), u[i]
            assert abs(action[i].item() - mpmath.tanh(x)) < 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("mean", [(0.0,), (-1.5,), (3.0,), (0.5, -2.0), (0.0, 1.0)])
@pytest.mark.parametrize("std", [0.1, 1.0, 2.5])
def test_density_integrates_to_one(mean, std):
    """Catches a wrong or missing change of variables, also one that is right in 1-D only."""
    mean = torch.tensor(mean, dtype=torch.float64)
    std = std * torch.linspace(1, 1.5, len(mean), dtype=torch.float64)
    z = torch.linspace(-9, 9, 301, dtype=torch.float64)
    u = mean + std * torch.stack(torch.meshgrid(*[z] * len(mean), indexing="ij"), -1)
    log_prob = sac.squash(u, mean, std.log())[1]
    da_du = (1 / np.cosh(u.numpy()) ** 2).prod(-1)
    cell = (std * (z[1] - z[0])).prod().item()  # the rule of rectangles, very exact for this shape
    assert (np.exp(log_prob.numpy()) * da_du).sum() * cell == pytest.approx(1, abs=1e-9)


def test_samples_follow_the_distribution_they_report():
    """Catches noise scaled by log_std or by the variance, and a log_prob of another action."""
    actor, obs = make_agent(seed=3).actor.double(), torch.randn(1, 3, dtype=torch.float64)
    with torch.no_grad():
        mean, log_std = actor(obs)
        action, log_prob = actor.sample(obs.expand(20_000, -1))
    z = (torch.atanh(action) - mean) / log_std.exp()
    assert z.mean(0).abs().max() < 4 / math.sqrt(20_000)
    assert (z.std(0) - 1).abs().max() < 4 / math.sqrt(40_000)
    gauss = torch.distributions.Normal(mean, log_std.exp()).log_prob(torch.atanh(action))
    reference = gauss - torch.log(1 - action**2)
    assert torch.allclose(log_prob, reference.sum(-1), atol=1e-8)


def test_log_std_stays_in_its_range_and_keeps_a_gradient():
    """Catches a hard clamp, under which a policy that went too far never comes back."""
    actor = make_agent(action_dim=1).actor
    last = [m for m in actor.modules() if isinstance(m, nn.Linear)][-1]
    for x in (-40.0, -25.0, 0.0, 5.0, 15.0):
        nn.init.zeros_(last.weight)
        last.bias.data = torch.tensor([0.0, x])
        last.bias.grad = None
        log_std = actor(torch.zeros(1, 3))[1]
        log_std.sum().backward()
        assert -20 <= log_std.item() <= 2 and last.bias.grad[1] > 0


# Targets and losses

VALUES_BY_HAND = {  # gamma 0.9, rewards times 2, alpha 0.5; one row where each critic has its own
    "sac": [[2, 4 + 0.9 * (3 - 0.5 * 0.4)]],
    "reinforce": [[2, 4 + 0.9 * (3 - 0.5 * 0.4)]],
    "hard-target": [[2, 4 + 0.9 * (3 - 0.5 * 0.4)]],
    "single-q": [[2, 4 + 0.9 * (7 - 0.5 * 0.4)]],
    "mean-q": [[2, 4 + 0.9 * (5 - 0.5 * 0.4)]],
    "double-q": [[2, 4 + 0.9 * (3 - 0.5 * 0.4)], [2, 4 + 0.9 * (7 - 0.5 * 0.4)]],
    "no-entropy": [[2, 4 + 0.9 * 3]],
    "ddpg": [[2, 4 + 0.9 * 7]],
    "smooth-noise": [[2, 4 + 0.9 * (3 - 0.5 * 0.4)]],
}


def test_every_variant_has_a_target_by_hand():
    """Catches a variant that was added without a test."""
    assert VALUES_BY_HAND.keys() == sac.VARIANTS.keys()


@pytest.mark.parametrize("variant", VALUES_BY_HAND)
def test_td_target_and_critic_loss_by_hand(variant):
    """Catches a wrong bootstrap (a terminated transition has none, the other does), the critic
    in place of its target, a gradient through the target, a forgotten factor 1/2 or a wrong row."""
    alpha = {} if variant in ("no-entropy", "ddpg") else {"alpha": 0.5}
    agent = make_agent(variant=variant, gamma=0.9, reward_scale=2.0, **alpha)
    batch = make_batch(2)
    batch = batch._replace(reward=torch.tensor([1.0, 2.0]), terminated=torch.tensor([1.0, 0.0]))
    weight = torch.ones(2, requires_grad=True)
    q_next, q_now = torch.tensor([[5.0, 7.0], [4.0, 3.0]]), torch.tensor([[1.0, 1.0], [2.0, 3.0]])

    def sample(obs):
        assert obs is batch.next_obs
        return batch.action.clone(), torch.tensor([-1.0, 0.4]) * weight

    agent.actor.sample = sample
    agent.target_critic = lambda obs, action: q_next * weight
    agent.critic = lambda obs, action: q_now * weight
    y = agent.td_target(batch)
    right = torch.tensor(VALUES_BY_HAND[variant])
    assert y.shape == ((2, 2) if variant == "double-q" else (2,)) and not y.requires_grad
    assert torch.allclose(torch.atleast_2d(y), right)
    loss = sum(0.5 * (q - row) ** 2 / 2 for q, row in zip(q_now, right.expand(2, -1))).sum()
    assert agent.critic_loss(batch).item() == pytest.approx(loss.item())


@pytest.mark.parametrize(
    "variant, q", [("sac", 3.5), ("single-q", 6), ("mean-q", 4.75), ("double-q", 4.75)]
)
def test_actor_loss_by_hand(variant, q):
    """Catches a sign, the max for the min, and a variant whose actor climbs another Q."""
    agent, log_prob = make_agent(variant=variant, alpha=0.5), torch.tensor([-1.0, 0.4])
    agent.actor.sample = lambda obs: (torch.zeros(2, 2), log_prob)
    agent.critic = lambda obs, action: torch.tensor([[5.0, 7.0], [4.0, 3.0]])
    loss, reported = agent.actor_loss(torch.zeros(2, 3))
    assert loss.item() == pytest.approx(0.5 * -0.3 - q) and torch.equal(reported, log_prob)


def test_the_actor_of_ddpg_climbs_its_first_critic():
    """Catches the other critic, and the smaller of both."""
    agent = make_agent(variant="ddpg")
    agent.critic = lambda obs, action: torch.tensor([[5.0, 7.0], [4.0, 3.0]])
    assert agent.actor_loss(torch.zeros(2, 3))[0].item() == -6


def test_a_column_in_place_of_a_vector_is_refused():
    """Catches (B,1) against (B,), which broadcasts to (B,B) and learns the batch's mean."""
    agent = make_agent()
    vector = agent.td_target
    agent.td_target = lambda batch: vector(batch)[:, None]
    with pytest.raises(RuntimeError, match="expanded size"):
        agent.critic_loss(make_batch())


@pytest.mark.parametrize("name", ["critic", "actor", "alpha"])
def test_gradients_against_finite_differences(name):
    """Catches a detach too many or too few, and a sample that is not reparameterised."""
    agent = make_agent(double=True, alpha_lr=1e-3)
    agent.log_alpha.data.fill_(-0.7)
    batch = make_batch(dtype=torch.float64)
    for p in agent.target_critic.parameters():
        p.data += 0.1

    def loss():
        agent.generator.manual_seed(5)
        if name == "critic":
            return agent.critic_loss(batch)
        actor_loss, log_prob = agent.actor_loss(batch.obs)
        return actor_loss if name == "actor" else agent.alpha_loss(log_prob)

    net = {"critic": agent.critic, "actor": agent.actor}.get(name)
    parameters = list(net.parameters()) if net else [agent.log_alpha]
    gradients = torch.autograd.grad(loss(), parameters)
    for parameter, gradient in zip(parameters, gradients):
        numbers = parameter.data.view(-1)
        for i in range(len(numbers)):
            old, values = numbers[i].item(), []
            for step in (1e-6, -1e-6):
                numbers[i] = old + step
                values.append(loss().item())
            numbers[i] = old
            slope = (values[0] - values[1]) / 2e-6
            assert gradient.reshape(-1)[i].item() == pytest.approx(slope, abs=2e-8, rel=1e-6)


def test_each_loss_changes_its_own_weights_alone():
    """Catches an optimizer that holds another part's weights, and a part that never learns."""
    agent, batch = make_agent(), make_batch()
    actor_loss, log_prob = agent.actor_loss(batch.obs)
    steps = {
        "actor": lambda: agent.actor_optimizer.descend(actor_loss),
        "critic": lambda: agent.critic_optimizer.descend(agent.critic_loss(batch)),
        "log_alpha": lambda: agent.alpha_optimizer.descend(agent.alpha_loss(log_prob)),
        "target_critic": agent.update_target,
    }
    for own, step in steps.items():
        before = copy.deepcopy(agent.state_dict())
        step()
        after = agent.state_dict()
        assert [part for part in steps if flat(after[part]) != flat(before[part])] == [own]
    before = copy.deepcopy(agent.state_dict())
    agent.update(batch)  # takes all four steps, and leaves no gradient behind
    after = agent.state_dict()
    assert all(flat(after[part]) != flat(before[part]) for part in steps)
    networks = (agent.actor, agent.critic, agent.target_critic)
    assert all(p.grad is None for network in networks for p in network.parameters())


def test_adam_is_adam():
    """Catches swapped moments or betas, a missing correction of their start from zero, one count
    for several weights, a learning rate that cannot be changed, and anything that is lost by
    saving and loading. The reference is the plain loop of torch.optim, not its fused kernel."""
    generator = torch.Generator().manual_seed(1)
    ours = [torch.randn(shape, generator=generator) for shape in ((4, 3), (3,), ())]
    theirs = [w.clone().requires_grad_() for w in ours]
    ours = [w.requires_grad_() for w in ours]
    adam = sac.Adam(iter(ours), 1e-2)
    reference = torch.optim.Adam(theirs, 1e-2, foreach=False, fused=False)
    for i in range(50):
        if i == 30:
            adam.lr = reference.param_groups[0]["lr"] = 3e-3
        if i == 40:  # as on a resume
            state, adam = copy.deepcopy(adam.state_dict()), sac.Adam(ours, 1.0)
            adam.load_state_dict(state)
        scale = 10.0 ** torch.randint(-4, 2, (), generator=generator)
        slopes = [scale * torch.randn(w.shape, generator=generator) for w in ours]
        adam.descend(sum((w * slope).sum() for w, slope in zip(ours, slopes)))
        for w, slope in zip(theirs, slopes):
            w.grad = slope
        reference.step()
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


# Temperature


def test_temperature_moves_towards_the_target_entropy():
    """Catches the sign of the temperature loss, and log alpha in place of alpha (Eq. 18)."""
    for entropy, direction in ((-3.0, 1), (-1.0, -1)):  # below and above the target, -2
        agent = make_agent()
        agent.log_alpha.data.fill_(math.log(0.3))
        loss = agent.alpha_loss(torch.full((4,), -entropy))
        assert agent.target_entropy == -2
        assert loss.item() == pytest.approx(-0.3 * (-entropy - 2))
        (slope,) = torch.autograd.grad(loss, agent.log_alpha, retain_graph=True)
        assert slope.item() == pytest.approx(-0.3 * (-entropy - 2))
        agent.alpha_optimizer.descend(loss)
        assert (agent.log_alpha.item() - math.log(0.3)) * direction > 0


def test_temperature_finds_its_analytic_fixed_point():
    """Catches a temperature that settles elsewhere: with Q = -k a^2 / 2 the best Gaussian has the
    variance alpha / k and the entropy ln(2 pi e alpha / k) / 2, so alpha = k e^-2 / (2 pi e)."""
    agent, noise = make_agent(action_dim=1, alpha_lr=0.02), np.random.default_rng(0)
    for k in (10, 100):
        history = []
        for _ in range(2000):
            std, z = math.sqrt(agent.alpha.item() / k), noise.standard_normal(256)
            log_prob = -0.5 * z**2 - math.log(std) - 0.5 * math.log(2 * math.pi)
            agent.alpha_optimizer.descend(agent.alpha_loss(torch.from_numpy(log_prob).float()))
            history.append(agent.log_alpha.item())
        right = math.log(k * math.exp(-2) / (2 * math.pi * math.e))
        assert np.mean(history[-500:]) == pytest.approx(right, abs=0.02)


def test_update_solves_a_problem_with_a_known_answer():
    """Catches errors of the whole update that no single formula shows, and a reward scale that
    does not trade against the temperature: a bandit with r = -k (a - 0.2)^2 / 2 has the softmax
    policy N(0.2, alpha / (c k)), so (c, alpha) and (5 c, 5 alpha) agree, and (2 c, alpha) not. (Its
    narrow peak is harder to fit: 0.062 to 0.079 for 0.063, over six seeds; the others 0.087 to
    0.097 for 0.089.)"""
    k, alpha, draw = 10.0, 0.08, np.random.default_rng(0)
    for c, factor, tolerance in ((1.0, 1.0, 0.1), (5.0, 5.0, 0.1), (2.0, 1.0, 0.25)):
        agent = make_agent(
            1, 1, hidden=32, alpha=alpha * factor, reward_scale=c, actor_lr=5e-3, critic_lr=5e-3
        )
        obs, ones = torch.zeros(256, 1), torch.ones(256)
        for i in range(1200):
            if i == 900:  # settle
                for optimizer in (agent.actor_optimizer, agent.critic_optimizer):
                    optimizer.lr = 5e-4
            action = torch.from_numpy(draw.uniform(-1, 1, (256, 1))).float()
            reward = -k * (action[:, 0] - 0.2) ** 2 / 2
            agent.update(sac.Batch(obs, action, reward, obs, ones))
        with torch.no_grad():
            action = agent.actor.sample(torch.zeros(20_000, 1))[0]
        assert action.mean().item() == pytest.approx(0.2, abs=0.03)
        assert action.std().item() == pytest.approx(
            math.sqrt(alpha * factor / (c * k)), rel=tolerance
        )


def test_scaling_rewards_and_temperature_scales_every_target_and_gradient():
    """Catches a reward scale that also scales the entropy, or that reaches the target twice."""
    gradients, targets = [], []
    for c in (1.0, 3.0):
        agent = make_agent(double=True, alpha=0.2 * c, reward_scale=c)
        for net in (agent.critic, agent.target_critic):  # c Q: scale what the last layer returns
            list(net.parameters())[-2].data *= c
            list(net.parameters())[-1].data *= c
        batch = make_batch(dtype=torch.float64)
        targets.append(agent.td_target(batch) / c)
        agent.actor_loss(batch.obs)[0].backward()
        gradients.append(torch.cat([p.grad.flatten() / c for p in agent.actor.parameters()]))
    assert torch.allclose(*targets, rtol=1e-6) and torch.allclose(*gradients, rtol=1e-6)


@pytest.mark.parametrize(
    "config", [{"alpha": 0.2}, {"alpha": 0.0}, {"variant": "no-entropy"}, {"variant": "ddpg"}]
)
def test_fixed_temperature_stays(config):
    """Catches a fixed temperature that is learned after all, and log 0 turning into NaN."""
    agent = make_agent(**config)
    for _ in range(5):
        losses = agent.update(make_batch())
    assert agent.alpha.item() == pytest.approx(config.get("alpha", 0.0))
    assert all(torch.isfinite(value) for value in losses.values())


def test_target_entropy_can_be_set():
    """Catches a flag that is read and forgotten, also at the value 0."""
    assert make_agent(action_dim=6).target_entropy == -6
    assert make_agent(target_entropy=0.0).target_entropy == 0


# Critics and their targets


def test_batched_critic_equals_two_separate_networks():
    """Catches a transposed weight, critics that mix, and gradients that reach the wrong one."""
    critic, batch = make_agent().critic.double(), make_batch(dtype=torch.float64)
    layers = [m for m in critic.modules() if hasattr(m, "weight")]
    x, q = torch.cat([batch.obs, batch.action], -1), critic(batch.obs, batch.action)
    (q * torch.tensor([[1.0], [2.0]])).sum().backward()
    assert q.shape == (2, 16)
    for i in (0, 1):
        stack = nn.Sequential()
        for layer in layers:
            linear = nn.Linear(*layer.weight.shape[1:], dtype=torch.float64)
            linear.weight.data, linear.bias.data = layer.weight[i].T.data, layer.bias[i, 0].data
            stack.extend([linear, nn.ReLU()])
        stack = stack[:-1]
        alone = stack(x).squeeze(-1)
        assert torch.allclose(q[i], alone)
        ((i + 1) * alone).sum().backward()
        for layer, linear in zip(layers, stack[::2]):
            assert torch.allclose(layer.weight.grad[i], linear.weight.grad.T)
            assert torch.allclose(layer.bias.grad[i, 0], linear.bias.grad)


def test_critics_start_different_each_with_its_own_fan_in():
    """Catches twins that start equal (the min then does nothing), and an initialisation that reads
    (in, out) weights backwards or counts both critics' inputs."""
    critic = make_agent(hidden=64).critic
    assert (critic(torch.randn(9, 3), torch.randn(9, 2)).diff(dim=0) != 0).all()
    for layer in (m for m in critic.modules() if hasattr(m, "weight")):
        bound = 1 / math.sqrt(layer.weight.shape[1])
        for weight in layer.weight:
            assert 0.85 * bound < weight.abs().max() <= bound
            assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.25)


def test_targets_follow_in_closed_form():
    """Catches tau and 1 - tau exchanged, a target that starts elsewhere, and one that is updated
    twice or from the weights before the step."""
    agent = make_agent(tau=0.1)
    assert flat(agent.target_critic.state_dict()) == flat(agent.critic.state_dict())
    start = [p.clone() for p in agent.target_critic.parameters()]
    for p in agent.critic.parameters():
        p.data += 1.0
    for _ in range(20):
        agent.update_target()
    for old, new, target in zip(start, agent.critic.parameters(), agent.target_critic.parameters()):
        assert torch.allclose(target, new + 0.9**20 * (old - new), atol=1e-5)
    before = [p.clone() for p in agent.target_critic.parameters()]
    agent.update(make_batch())
    for old, new, target in zip(
        before, agent.critic.parameters(), agent.target_critic.parameters()
    ):
        assert torch.allclose(target, 0.1 * new + 0.9 * old, atol=1e-7)


# Variants


def test_reinforce_has_the_same_expectation_and_more_variance():
    """Catches a missing log-density in the cost, a cost that is not detached, a score of the wrong
    sample, and K actions a state that are K copies of one action."""
    obs, gradients = torch.zeros(32, 3), {}
    for name, config in {
        "sac": {},
        "one": {"variant": "reinforce"},
        "ten": {"variant": "reinforce", "actor_samples": 10},
    }.items():
        agent = make_agent(1 + 2, 2, alpha=0.3, **config)
        agent.critic = lambda obs, action: -2 * ((action - 0.5) ** 2).sum(-1).expand(2, -1)
        bias = list(agent.actor.parameters())[-1]  # of both means and both log-deviations
        draws = []
        for _ in range(1000):
            loss, log_prob = agent.actor_loss(obs)
            draws.append(torch.autograd.grad(loss, bias)[0])
        gradients[name] = torch.stack(draws)
        assert log_prob.shape == (320 if name == "ten" else 32,)
    right, variance = gradients["sac"].mean(0), {k: v.var(0) for k, v in gradients.items()}
    for name in ("one", "ten"):
        error = ((variance["sac"] + variance[name]) / 1000).sqrt()
        assert ((gradients[name].mean(0) - right).abs() < 4 * error).all()
        assert (right.abs() > 10 * error).any()  # the comparison can tell right from wrong
    assert (variance["one"] > 2 * variance["sac"]).all()
    assert ((variance["one"] / variance["ten"] - 10).abs() < 3).all()


def test_hard_target_copies_then_and_only_then():
    """Catches a copy at every update or one off, and a counter that a saved run forgets."""
    agent = make_agent(variant="hard-target", tau=0.25)
    for i in range(1, 13):
        before = flat(agent.target_critic.state_dict())
        agent.update(make_batch(seed=i))
        if i % 4:
            assert flat(agent.target_critic.state_dict()) == before
        else:
            assert flat(agent.target_critic.state_dict()) == flat(agent.critic.state_dict())
        if i == 6:  # half-way: go on with another agent
            state, agent = agent.state_dict(), make_agent(variant="hard-target", tau=0.25, seed=9)
            agent.load_state_dict(state)


def test_ddpg_is_deterministic_and_its_target_actor_lags():
    """Catches an actor or target that draws noise, exploration without it (or in evaluation, or
    beyond the bounds), and a target actor that does not lag."""
    agent, batch = make_agent(variant="ddpg", tau=0.1), make_batch()
    results = []
    for seed in (1, 2):
        agent.generator.manual_seed(seed)
        results.append((agent.actor_loss(batch.obs)[0].item(), agent.td_target(batch).tolist()))
    assert results[0] == results[1]
    mean = agent.act(batch.obs, deterministic=True)
    assert np.allclose(mean, torch.tanh(agent.actor(batch.obs)[0]).detach().numpy())
    noise = np.array([agent.act(batch.obs) for _ in range(200)]) - mean
    assert noise.std() == pytest.approx(0.1, rel=0.05)
    list(agent.actor.parameters())[-1].data[:2] = 3.0  # at the edge
    assert abs(agent.act(batch.obs)).max() == 1
    before = [p.clone() for p in agent.target_actor.parameters()]
    agent.update(batch)
    for old, new, target in zip(before, agent.actor.parameters(), agent.target_actor.parameters()):
        assert torch.allclose(target, 0.1 * new + 0.9 * old, atol=1e-6)
    assert any((a != b).any() for a, b in zip(agent.actor.parameters(), before))


def test_smooth_noise_is_standard_normal_and_remembers():
    """Catches noise whose variance is not 1 (log_prob would be of another policy), that forgets or
    never changes, that two actions share, or that reaches the losses and the mean action."""
    agent, plain = make_agent(variant="smooth-noise"), make_agent()
    eps = torch.stack([agent.exploration_noise((2,)) for _ in range(40_000)])
    error = math.sqrt((1 + 0.95) / (1 - 0.95) / len(eps))  # of a mean, of numbers that remember
    assert eps.mean(0).abs().max() < 4 * error and (eps.var(0) - 1).abs().max() < 4 * error
    assert (eps[1:] * eps[:-1]).mean(0).tolist() == pytest.approx([0.95] * 2, abs=4 * error)
    assert (eps[20:] * eps[:-20]).mean(0).tolist() == pytest.approx([0.95**20] * 2, abs=4 * error)
    assert (eps[:, 0] * eps[:, 1]).mean().abs() < 4 * error
    agent.generator.set_state(plain.generator.get_state())
    obs = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    for ours, theirs in zip(agent.actor.sample(obs), plain.actor.sample(obs)):
        assert torch.equal(ours, theirs)
    mean = torch.tanh(agent.actor(obs[0])[0]).detach().numpy()
    assert (agent.act(obs[0], deterministic=True) == mean).all()


# The agent as a whole


@pytest.mark.parametrize("variant", sac.VARIANTS)
def test_a_restored_agent_goes_on_exactly(variant):
    """Catches whatever a checkpoint leaves out: moments, counters, target networks, the noise."""
    agent, other = (make_agent(variant=variant, seed=seed) for seed in (1, 2))
    for i in range(3):
        agent.act(np.ones(3))
        agent.update(make_batch(seed=i))
    file = io.BytesIO()
    torch.save(agent.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert (agent.act(np.ones(3)) == other.act(np.ones(3))).all()
    for i in range(3, 6):
        assert flat(agent.update(make_batch(seed=i))) == flat(other.update(make_batch(seed=i)))
    assert flat(agent.state_dict()) == flat(other.state_dict())


@pytest.mark.parametrize("variant", sac.VARIANTS)
def test_actions_have_the_shape_and_range_that_act_promises(variant):
    """Catches noise in the mean action, none in the other, and a batch of the wrong shape."""
    agent, obs = make_agent(variant=variant), np.random.default_rng(0).normal(size=(5, 3))
    for some in (obs, obs[0]):
        action, mean = agent.act(some), agent.act(some, deterministic=True)
        assert isinstance(action, np.ndarray) and action.shape == (*some.shape[:-1], 2)
        assert abs(action).max() <= 1 and (action != agent.act(some)).any()
        assert (mean == agent.act(some, deterministic=True)).all() and (mean != action).any()
    assert (agent.act(obs * 1e6) <= 1).all()  # tanh rounds to 1, and no further


def test_update_returns_tensors_that_are_finished():
    """Catches a kept graph."""
    losses = make_agent().update(make_batch())
    assert {"critic_loss", "actor_loss", "alpha_loss", "entropy"} <= losses.keys()
    assert all(v.shape == () and not v.requires_grad for v in losses.values())


def test_update_logs_the_entropy_and_the_mean_q():
    """Catches minus the entropy, and the smaller Q for the mean."""
    agent, twin, batch = make_agent(), make_agent(), make_batch()
    q = twin.critic(batch.obs, batch.action)
    twin.td_target(batch)  # draws the noise of the target first
    log_prob = twin.actor.sample(batch.obs)[1]
    logged = agent.update(batch)
    assert logged["q_mean"].item() == pytest.approx(q.mean().item())
    assert logged["entropy"].item() == pytest.approx(-log_prob.mean().item())
