"""Each stage of the chain against what numpy makes of the same logits, on a tiny model of random weights."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.cli.command import ROOT
from tests.llama_eval import Evaluator
from zephyr_local.engine.llama import LlamaModel
from zephyr_local.engine.samplers import make_sampler
from zephyr_local.errors import EngineError, InvalidInputError
from zephyr_local.settings import Sampling

PROMPT = [1, 300]
X, Y, Z = 280, 281, 282  # tokens that are not among the likeliest
BAN = float("-inf")
ALL = {"top_k": 0, "top_p": 1.0}
FLAT = {"temperature": 100.0}  # after the truncations, so that what is kept is drawn about evenly


class Draws:
    """The logits after PROMPT, sorted, and samples of them."""

    def __init__(self, model: LlamaModel) -> None:
        self.model = model
        self.evaluator = Evaluator(model)
        self.evaluator.evaluate(PROMPT)
        self.logits = self.evaluator.logits().astype(np.float64)
        self.order = np.argsort(-self.logits).tolist()
        self.best, self.second = self.order[:2]
        self.gap = self.logits[self.best] - self.logits[self.second]

    def probabilities(self, temperature: float = 1.0) -> np.ndarray:
        powers = np.exp((self.logits - self.logits.max()) / temperature)
        return powers / powers.sum()

    def draw(self, count: int, recent: list[int] | None = None, **settings) -> list[int]:
        sampler = make_sampler(self.model, Sampling(**{"seed": 3, **settings}), recent or [])
        return [self.evaluator.sample(sampler) for _ in range(count)]

    def kept(self, count: int = 2000, **settings) -> set[int]:
        return set(self.draw(count, **{**ALL, **FLAT, **settings}))

    def greedy(self, recent: list[int], **settings) -> int:
        return self.draw(1, recent, temperature=0.0, **settings)[0]


@pytest.fixture
def draws(tiny: LlamaModel) -> Draws:
    draws = Draws(tiny)
    assert not {X, Y, Z} & set(draws.order[:10])
    assert draws.gap > 0.01
    return draws


# --- choice ---


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_their_probabilities_say(draws: Draws, temperature: float) -> None:
    n = 5000
    counts = Counter(draws.draw(n, **ALL, temperature=temperature))
    expected = draws.probabilities(temperature)
    for token in draws.order[:10]:
        sigma = np.sqrt(n * expected[token] * (1 - expected[token]))
        assert abs(counts[token] - n * expected[token]) < 5 * sigma


def test_seeds(draws: Draws) -> None:
    for settings in ({}, {"mirostat": 1}, {"mirostat": 2}, {"xtc_probability": 0.5, "xtc_threshold": 0.01}):
        hot = {"temperature": 5.0, "top_p": 1.0, **settings}
        assert draws.draw(50, **hot) == draws.draw(50, **hot)
        assert draws.draw(50, **hot) != draws.draw(50, **hot, seed=4)
        assert draws.draw(50, **hot, seed=None) != draws.draw(50, **hot, seed=None)


def test_greedy_whatever_else_is_set(draws: Draws) -> None:
    assert draws.draw(20, temperature=0.0) == [draws.best] * 20
    assert draws.draw(20, temperature=1e-7, mirostat=1, xtc_probability=1.0) == [draws.best] * 20


# --- truncations ---


def test_top_k_top_p_and_min_p(draws: Draws) -> None:
    p, order = draws.probabilities(), draws.order
    assert draws.kept(top_k=7) == set(order[:7])
    assert draws.kept(top_k=1 << 20) <= set(order)
    sums = np.cumsum(p[order])
    assert draws.kept(top_p=(sums[8] + sums[9]) / 2) == set(order[:10])
    assert draws.kept(top_p=0.0) == {draws.best}
    share = (p[order[5]] + p[order[6]]) / 2 / p[draws.best]
    assert draws.kept(min_p=share) == set(order[:6])
    assert draws.kept(min_p=1.0) == {draws.best}


def test_typical_p_keeps_what_surprises_as_much_as_expected(draws: Draws) -> None:
    p = draws.probabilities()
    entropy = -(p * np.log(p)).sum()
    typical = np.argsort(np.abs(-np.log(p) - entropy)).tolist()
    sums = np.cumsum(p[typical])
    assert draws.kept(typical_p=(sums[18] + sums[19]) / 2) == set(typical[:20])
    assert draws.best not in typical[:20]
    assert draws.kept(typical_p=0.0) == {typical[0]}


def test_typical_p_is_not_confused_by_a_ban(draws: Draws) -> None:
    banned = draws.order[0]
    p = draws.probabilities()
    p[banned] = 0
    p /= p.sum()
    entropy = -sum(x * np.log(x) for x in p if x)
    with np.errstate(divide="ignore"):
        typical = np.argsort(np.abs(-np.log(p) - entropy)).tolist()
    sums = np.cumsum(p[typical])
    kept = draws.kept(typical_p=(sums[18] + sums[19]) / 2, logit_bias={banned: BAN})
    assert kept == set(typical[:20])


def test_xtc_spares_the_least_likely_of_the_likely(draws: Draws) -> None:
    ten = draws.order[:10]
    p = draws.probabilities()[ten]
    p /= p.sum()
    settings = {"top_k": 10, "xtc_threshold": (p[2] + p[3]) / 2}
    assert draws.kept(**settings, xtc_probability=1.0) == set(ten[2:])
    assert draws.kept(**settings, xtc_probability=0.5) == set(ten)
    assert draws.kept(**settings, xtc_probability=0.0) == set(ten)
    n = 4000
    top = sum(token in ten[:2] for token in draws.draw(n, **{**ALL, **FLAT, **settings, "xtc_probability": 0.75}))
    assert 0.03 < top / n < 0.07  # a fifth of a quarter
    assert draws.kept(top_k=10, xtc_probability=1.0, xtc_threshold=0.51) == set(ten)


def test_xtc_never_chooses_what_is_banned(draws: Draws) -> None:
    banned = dict.fromkeys(draws.order[-100:], BAN)
    kept = draws.kept(50, xtc_probability=1.0, xtc_threshold=0.0, logit_bias=banned)
    assert kept == {draws.order[-101]}


# --- what looks back ---


def test_frequency_penalty_counts(draws: Draws) -> None:
    for count in (1, 3, 8):
        seen = [X, *[draws.best] * count, Y]
        assert draws.greedy(seen, frequency_penalty=draws.gap / count * 0.99) == draws.best
        assert draws.greedy(seen, frequency_penalty=draws.gap / count * 1.01) == draws.second
    assert draws.greedy([draws.order[50]] * 8, frequency_penalty=-100.0) == draws.order[50]


def test_presence_penalty_does_not_count(draws: Draws) -> None:
    for count in (1, 8):
        seen = [draws.best] * count
        assert draws.greedy(seen, presence_penalty=draws.gap * 0.99) == draws.best
        assert draws.greedy(seen, presence_penalty=draws.gap * 1.01) == draws.second


def test_repeat_penalty_divides(draws: Draws) -> None:
    factor = draws.logits[draws.best] / draws.logits[draws.second]
    assert draws.greedy([draws.best], repeat_penalty=factor * 0.99) == draws.best
    assert draws.greedy([draws.best], repeat_penalty=factor * 1.01) == draws.second


def test_the_penalties_see_their_window_and_what_was_sampled(draws: Draws) -> None:
    seen = [draws.best, *[X] * 9]
    assert draws.greedy(seen, presence_penalty=50.0) == draws.second
    assert draws.greedy(seen, presence_penalty=50.0, repeat_last_n=10) == draws.second
    assert draws.greedy(seen, presence_penalty=50.0, repeat_last_n=9) == draws.best
    assert draws.greedy([draws.best, *[X] * 99], presence_penalty=50.0, repeat_last_n=100) == draws.second
    assert draws.greedy([draws.best], presence_penalty=50.0, repeat_last_n=0) == draws.best
    assert draws.greedy([draws.best, *[X] * 64], presence_penalty=50.0) == draws.best  # 64 unless told
    assert draws.greedy([draws.best, *[X] * 64], presence_penalty=50.0, dry_multiplier=1.0, dry_penalty_last_n=99) == (
        draws.best
    )
    assert draws.draw(4, temperature=0.0, presence_penalty=50.0) == draws.order[:4]


def test_dry_penalises_what_prolongs_a_repetition(draws: Draws) -> None:
    dry = {"dry_sequence_breakers": (), "dry_base": 2.0}
    two = [X, Y, draws.best, Z, X, Y]
    assert draws.greedy(two, dry_multiplier=draws.gap * 0.99, **dry) == draws.best
    assert draws.greedy(two, dry_multiplier=draws.gap * 1.01, **dry) == draws.second
    three = [Z, X, Y, draws.best, Z, X, Y]
    assert draws.greedy(three, dry_multiplier=draws.gap / 2 * 0.99, **dry) == draws.best
    assert draws.greedy(three, dry_multiplier=draws.gap / 2 * 1.01, **dry) == draws.second
    assert draws.greedy(two, dry_multiplier=100.0, dry_allowed_length=3, **dry) == draws.best
    assert draws.greedy([X, draws.best, Z, X], dry_multiplier=100.0, **dry) == draws.best
    assert draws.greedy([X, draws.best, Z, X], dry_multiplier=100.0, dry_allowed_length=1, **dry) == draws.second


def test_dry_sees_its_window_and_stops_at_breakers(draws: Draws) -> None:
    two = [X, Y, draws.best, Z, X, Y]
    assert draws.greedy(two, dry_multiplier=100.0, dry_penalty_last_n=6) == draws.second
    assert draws.greedy(two, dry_multiplier=100.0, dry_penalty_last_n=5) == draws.best
    assert draws.greedy(two, dry_multiplier=100.0, dry_penalty_last_n=0) == draws.best
    breaker = draws.model.token_to_bytes(Y).decode()
    assert draws.greedy(two, dry_multiplier=100.0, dry_sequence_breakers=(breaker,)) == draws.best


def test_breakers_of_any_writing_on_the_real_vocabulary(mistral_vocabulary: LlamaModel) -> None:
    for breakers in [("é", "日本", "\U0001f9ff"), ("a" * 40,), ("\n", ":", '"', "*"), ("</s>", "<0x0A>", "▁"), ()]:
        sampling = Sampling(dry_multiplier=1.0, dry_sequence_breakers=breakers)
        make_sampler(mistral_vocabulary, sampling, [5, 6, 7] * 100).close()


# --- Mirostat ---


def test_mirostat_2_keeps_what_surprises_less_than_twice_its_aim(draws: Draws) -> None:
    p = draws.probabilities()[draws.order]
    mu = -np.log2((p[4] + p[5]) / 2)
    first = {
        draws.draw(1, temperature=1.0, mirostat=2, mirostat_tau=mu / 2, seed=seed, top_k=1)[0] for seed in range(200)
    }
    assert first == set(draws.order[:5])


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_adapts(draws: Draws, version: int) -> None:
    def surprise(tau: float) -> float:
        tokens = draws.draw(1000, mirostat=version, mirostat_tau=tau, temperature=1.0)[200:]
        return float(-np.log2(draws.probabilities()[tokens]).mean())

    assert draws.draw(20, mirostat=version, mirostat_tau=0.0) == [draws.best] * 20
    assert surprise(3.0) < surprise(4.5) - 0.3
    still = {"mirostat_eta": 0.0, "mirostat": version, "mirostat_tau": 1.8}
    assert draws.draw(50, **still) != draws.draw(50, **{**still, "mirostat_eta": 1.0})


@pytest.mark.parametrize("version", [1, 2])
def test_penalties_and_bans_hold_with_mirostat(draws: Draws, version: int) -> None:
    settings = {"mirostat": version, "mirostat_tau": 0.0}
    assert draws.draw(1, [draws.best], **settings, presence_penalty=50.0) == [draws.second]
    assert draws.draw(1, **settings, logit_bias={draws.best: BAN}) == [draws.second]


# --- logit_bias ---


def test_logit_bias_adds_bans_and_forces(draws: Draws) -> None:
    assert draws.greedy([], logit_bias={draws.second: draws.gap * 0.99}) == draws.best
    assert draws.greedy([], logit_bias={draws.second: draws.gap * 1.01}) == draws.second
    assert draws.greedy([], logit_bias={draws.best: BAN}) == draws.second
    last = draws.model.n_vocab - 1
    assert draws.draw(20, logit_bias={last: 1000.0}) == [last] * 20
    banned = dict.fromkeys(draws.order[:20], BAN)
    assert draws.kept(logit_bias=banned, top_k=10) == set(draws.order[20:30])


def test_logit_bias_of_another_vocabulary_is_refused(draws: Draws) -> None:
    n_vocab = draws.model.n_vocab
    for token in (n_vocab, (1 << 31) - 1):
        with pytest.raises(InvalidInputError, match=f"token {token}, and the model's last is {n_vocab - 1}"):
            draws.draw(1, logit_bias={token: 1.0})
    with pytest.raises(InvalidInputError, match="bans every token"):
        draws.draw(1, logit_bias=dict.fromkeys(range(n_vocab), BAN))


# --- what might end the process ---

HOSTILE = """
import sys
from pathlib import Path
from tests.engine.conftest import SETTINGS
from tests.llama_eval import Evaluator
from zephyr_local.engine.llama import LlamaModel
from zephyr_local.engine.samplers import make_sampler
from zephyr_local.settings import Sampling

model = LlamaModel.load(Path(sys.argv[1]), SETTINGS)
evaluator = Evaluator(model)
evaluator.evaluate([1, 300])
left = 305
ban = {token: float("-inf") for token in range(model.n_vocab) if token != left}
infinite = {"dry_multiplier": 100.0, "dry_base": 100.0, "dry_allowed_length": 1}  # a penalty that overflows to infinity
for settings in (
    {"temperature": 0.0}, {"temperature": 2e-6}, {"temperature": 1.0, "top_k": 0, "top_p": 1.0}, {"top_k": 300},
    {"top_k": 1 << 20}, {"top_p": 0.0}, {"min_p": 0.1, "top_k": 0}, {"typical_p": 0.5}, {"typical_p": 0.5, "top_k": 0},
    {"xtc_probability": 1.0, "xtc_threshold": 0.0, "top_k": 0}, {"xtc_probability": 1.0, "xtc_threshold": 0.5},
    *({"mirostat": version, "mirostat_tau": tau, "mirostat_eta": eta}
      for version in (1, 2) for tau in (0.0, 5.0, 20.0) for eta in (0.0, 1.0)),
):
    one = make_sampler(model, Sampling(logit_bias=ban, seed=1, **settings), [left] * 64)
    assert [evaluator.sample(one) for _ in range(20)] == [left] * 20, settings
    none = make_sampler(model, Sampling(logit_bias=ban, seed=1, **infinite, **settings), [left] * 64)
    assert all(0 <= evaluator.sample(none) < model.n_vocab for _ in range(20)), settings
    extreme = {"repeat_penalty": 100.0, "frequency_penalty": -100.0, "presence_penalty": 100.0, "repeat_last_n": 10**6}
    odd = make_sampler(model, Sampling(**extreme, seed=1, **infinite, **settings), list(range(model.n_vocab)) * 20)
    assert all(0 <= evaluator.sample(odd) < model.n_vocab for _ in range(20)), settings
print("alive")
"""


def test_nothing_left_to_choose_does_not_end_the_process(tiny_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE, str(tiny_path)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_a_closed_sampler(draws: Draws) -> None:
    sampler = make_sampler(draws.model, Sampling(), [])
    sampler.close()
    sampler.close()
    with pytest.raises(EngineError, match="closed"):
        draws.evaluator.sample(sampler)
