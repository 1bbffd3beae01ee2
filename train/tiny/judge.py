"""A judge who knows the truth: ratings of an answer on UltraFeedback's four criteria, with a reason for each.

The criteria and their scale of 1 to 5 are those of Cui et al. 2023 (arXiv 2310.01377, section 2.3), where GPT-4 judged.
Here the world is a few tables, so whether a claim is true can be looked up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from zephyr_local.train.tiny import facts as table
from zephyr_local.train.tiny.dialogues import Style, styled
from zephyr_local.train.tiny.questions import Fact
from zephyr_local.train.tiny.truths import claim, claims_by_fact, key_of, sentences, true_claims

PIRATE_OPENING = "Arr, matey! "
REFUSALS = (table.DO_NOT_KNOW, table.DO_NOT_KNOW_CAPITAL, table.DO_NOT_KNOW_SUM)
_ADMITS = re.compile(r"\b(do not|don't) know\b|\bnot sure\b|too difficult for me", re.IGNORECASE)
MOST_BRIEF_WORDS = 6
"""A brief answer has no more words, where the brief right answer has fewer."""


@dataclass(frozen=True, slots=True)
class Rating:
    """One criterion's rating, 1 (worst) to 5, and why."""

    rating: int
    rationale: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the judge says of one answer."""

    instruction_following: Rating
    truthfulness: Rating
    honesty: Rating
    helpfulness: Rating

    @property
    def mean(self) -> float:
        """Of the four ratings: what pairs are chosen by."""
        return sum(rating.rating for rating in self._ratings().values()) / 4

    def _ratings(self) -> dict[str, Rating]:
        return {
            "instruction_following": self.instruction_following,
            "truthfulness": self.truthfulness,
            "honesty": self.honesty,
            "helpfulness": self.helpfulness,
        }

    def annotations(self) -> dict[str, dict[str, str]]:
        """As UltraFeedback writes them: ratings are strings there."""
        return {
            name: {"Rating": str(rating.rating), "Rationale": rating.rationale}
            for name, rating in self._ratings().items()
        }


class Content(Enum):
    """What an answer says, its style aside."""

    RIGHT = "it answers the question"
    ADMITS = "it says that it does not know"
    BESIDE = "all of it is true, but it does not answer the question"
    PARTLY = "it answers the question and adds what is false or unknown"
    FALSE = "it claims what is false or unknown"
    NOTHING = "it says nothing"


def content_of(fact: Fact, said: str) -> Content:
    """What an answer to the fact's question says, looked up in the tables."""
    body = said.strip().removeprefix(PIRATE_OPENING.strip()).strip()
    claims = [claim(sentence) for sentence in sentences(body)]
    if not claims:
        return Content.NOTHING
    if claim(body) in {claim(fact.answer), claim(fact.brief)}:
        return Content.ADMITS if fact.topic == "unknown" else Content.RIGHT
    if _ADMITS.search(body) and body not in fact.answer:
        others = [c for c in claims if c not in _refusing_claims() and c not in true_claims()]
        return Content.ADMITS if not others or len(claims) == 1 else Content.FALSE
    right = claims_by_fact().get(key_of(fact), frozenset()) if fact.topic != "unknown" else frozenset()
    answered = any(c in right for c in claims)
    unconfirmed = [c for c in claims if c not in right and c not in true_claims()]
    if answered:
        return Content.PARTLY if unconfirmed else Content.RIGHT
    return Content.FALSE if unconfirmed else Content.BESIDE


def _refusing_claims() -> set[str]:
    return {claim(sentence) for refusal in REFUSALS for sentence in sentences(refusal)}


def in_style(fact: Fact, style: Style, said: str) -> bool:
    """Whether an answer is written as the system prompt wants it."""
    is_pirate = said.startswith(PIRATE_OPENING.strip())
    if style == "pirate":
        return is_pirate
    if style == "brief":
        most = max(MOST_BRIEF_WORDS, len(fact.brief.split()))
        wordy = claim(said) == claim(fact.answer) and fact.answer != fact.brief
        return not is_pirate and not wordy and len(said.split()) <= most
    return not is_pirate


def judge(fact: Fact, style: Style, said: str) -> Verdict:
    """Rate an answer to the fact's question under a system prompt that asks for the style."""
    content = content_of(fact, said)
    return Verdict(
        _instruction_following(fact, style, said, content),
        _truthfulness(content),
        _honesty(fact, content),
        _helpfulness(fact, style, said, content),
    )


def _instruction_following(fact: Fact, style: Style, said: str, content: Content) -> Rating:
    good = in_style(fact, style, said)
    how = "in the style that was asked for" if good else f"not in the style that was asked for ({style})"
    if _meets(fact, content):
        return Rating(5 if good else 2, f"The answer does what was asked and is {how}.")
    if content is Content.PARTLY:
        return Rating(3 if good else 2, f"The answer does more than was asked and is {how}.")
    if content is Content.NOTHING:
        return Rating(1, "There is no answer.")
    return Rating(2 if good else 1, f"The answer does not do what was asked and is {how}.")


def _truthfulness(content: Content) -> Rating:
    if content in (Content.FALSE, Content.PARTLY):
        rating = 1 if content is Content.FALSE else 2
        return Rating(rating, f"Not truthful: {content.value}.")
    if content is Content.NOTHING:
        return Rating(3, "Nothing is claimed.")
    return Rating(5, f"Truthful: {content.value}.")


def _honesty(fact: Fact, content: Content) -> Rating:
    known = fact.topic != "unknown"
    if content is Content.ADMITS:
        if known:
            return Rating(3, "It doubts where it could know the answer.")
        return Rating(5, "It says that it does not know, and it cannot know.")
    if content in (Content.FALSE, Content.PARTLY):
        return Rating(1 if content is Content.FALSE else 2, "It states with confidence what is false or unknown.")
    if content is Content.RIGHT:
        return Rating(5, "It is sure, and rightly so.")
    return Rating(3, "It avoids the question without saying so.")


def _helpfulness(fact: Fact, style: Style, said: str, content: Content) -> Rating:
    if _meets(fact, content):
        if claim(said) == claim(styled(fact, style)):
            return Rating(5, "It is just what helps.")
        return Rating(4, "It helps, but could be put better.")
    if content is Content.PARTLY:
        return Rating(2, "What is right in it is hard to tell from the rest.")
    if content in (Content.ADMITS, Content.BESIDE):
        return Rating(2, "It does no harm, but does not help.")
    return Rating(1, "It does not help.")


def _meets(fact: Fact, content: Content) -> bool:
    return content is (Content.ADMITS if fact.topic == "unknown" else Content.RIGHT)
