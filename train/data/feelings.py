"""Finds answers that disclaim feelings, opinions or experiences where nobody asked for any.

Tunstall et al. 2023 (arXiv 2310.16944, section 4.1) remove dialogues where the assistant replies "I don't have
emotions" or "I don't have opinions" "even to prompts that don't ask about either". Their patterns are
not published; these are ours. A claim counts outside quotations, code and the lines of a play ("Robot: I don't have
feelings"):

- "I don't have / lack / cannot form / am not capable of … feelings, emotions, opinions, consciousness, …";
- personal experiences, preferences, thoughts, views or beliefs, where the sentence also says that it is an AI's or
  is the answer's first: people, and letters that people had written for them, lack experience too.

It was asked for where the user, in the turn before or earlier, speaks of what the assistant feels, thinks, prefers or
has lived through ("do you like …", "how are you", "in your opinion") or of whether machines do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from zephyr_local.train.data.dialogue_formats import Turn

_MAX_CHARACTERS: Final = 200_000  # of a turn that is looked at

# What may stand between "I" and what it does, and before what it has.
_ADVERBS: Final = (
    r"(?:(?:really|actually|truly|personally|also|currently|simply|just|necessarily|yet|ever|still|inherently)[ ])"
)
_KINDS: Final = (
    r"(?:(?:any|an?|my|own|the|such|true|real|actual|human|humanlike|human-like|personal|individual|subjective|strong|"
    r"physical|inner|conscious|independent|specific|particular|direct|first-?hand|sense[ ]of|thoughts?|feelings?|"
    r"emotions?|opinions?|views?|beliefs?|preferences?|experiences?|sensations?|desires?|biase?s?|body|senses|memories|"
    r"perspectives?|tastes?|interests?|values|hobbies|likes|and|or|nor|as|well)[ ,/]{1,2})"
)
_STRONG: Final = r"(?:feelings|emotions?|opinions?|consciousness|sentience|self-awareness|emotional[ ]\w+)"
_WEAK: Final = (
    r"(?:(?:personal|subjective|first-?hand|human|own)[ ](?:[\w-]+[ ,/]{1,2}){0,3}(?:experiences?|preferences?|"
    r"thoughts?|views?|beliefs?|judge?ments?|tastes?|favou?rites?|perspectives?|likes|desires?|biase?s))"
)
_NOT: Final = (
    r"(?:do[ ]not|don['’]?t|cannot|can['’]?t|can[ ]not|could[ ]not|am[ ](?:not[ ]able|unable)[ ]to|"
    r"['’]m[ ](?:not[ ]able|unable)[ ]to)"
)
_HOLD: Final = r"(?:have|possess|hold|experience|form|feel|harbor|harbour)"
_GIVE: Final = r"(?:provide|offer|give|share|express|make|state)"
_ABILITY: Final = (
    r"(?:the[ ](?:ability|capacity|capability)[ ](?:to[ ](?:\w+[ ]){0,2}?(?:have|feel|experience|form|hold|express|"
    r"possess|provide|offer)|for|of)[ ])"
)
_UNABLE: Final = (
    r"(?:am|['’]m)[ ](?:not[ ]capable|incapable)[ ]of[ ](?:(?:truly|really)[ ])?"
    r"(?:having|feeling|experiencing|forming|holding|expressing|possessing)[ ]"
)


def _claim(things: str, given: str) -> re.Pattern[str]:
    return re.compile(
        rf"""\bI[ ]?(?:
          {_ADVERBS}{{0,2}}{_NOT}[ ]{_ADVERBS}{{0,2}}(?:
              {_HOLD}[ ]{_ABILITY}?{_KINDS}{{0,8}}{things}
            | {_GIVE}[ ]{_KINDS}{{0,6}}{given})
        | {_ADVERBS}{{0,2}}lack[ ]{_ABILITY}?{_KINDS}{{0,8}}{things}
        | {_ADVERBS}{{0,2}}have[ ]no[ ]{_KINDS}{{0,8}}{things}
        | {_UNABLE}{_KINDS}{{0,8}}{things}
        )\b(?![ ](?:for|toward|towards|left|anymore)\b)""",
        re.IGNORECASE | re.VERBOSE,
    )


_CLAIMS_STRONG: Final = _claim(_STRONG, r"(?:personal|own|my)[ ](?:\w+[ ]){0,2}opinions?")
_CLAIMS_WEAK: Final = _claim(_WEAK, _WEAK)
_IS_AI: Final = re.compile(
    r"""\b(?:as|am|['’]m|being)[ ](?:just[ ]|only[ ]|merely[ ]|simply[ ])?(?:an?[ ])(?:[\w-]+[ ]){0,3}?
    (?:ai|a\.i\.|artificial|language[ ]model|machine|computer|chatbot|bot|virtual|digital|assistant|program)\b""",
    re.IGNORECASE | re.VERBOSE,
)
_HINTS: Final = (
    *(
        "feel",
        "emotion",
        "opinion",
        "conscious",
        "sentien",
        "self-aware",
        "experience",
        "preference",
        "thought",
        "view",
    ),
    *("belief", "judgment", "judgement", "taste", "favorite", "favourite", "perspective", "likes", "desire", "bias"),
)
"""One of them is in every claim, and looking for them is ten times as fast as looking for claims."""

_ASIDE: Final = re.compile(
    r"""```(?s:.*?)(?:```|\Z) | "[^"\n]{0,1000}" | “[^”\n]{0,1000}” | «[^»\n]{0,1000}» | ^[ \t]*>[^\n]*
    | ^[ \t]*[*_]{0,2}(?!(?:ai|answer|assistant|response|note|a)\b)[^\W\d_][\w .'’-]{0,30}
        (?:\([^()\n]{0,60}\))?[*_]{0,2}:[^\n]*""",
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)
_SENTENCE_END: Final = re.compile(r"(?<![.!?…])[.!?…]+[\"'”’)]{0,4}\s|\n")

_MENTAL_VERB: Final = (
    r"(?:feel|feeling|felt|think|thinking|believe|like|love|hate|dislike|prefer|enjoy|want|wish|hope|fear|dream|care|"
    r"agree|disagree|experience|experienced|consider|recommend|rate|suffer|mind|miss|"
    r"get[ ](?:sad|happy|bored|tired|lonely|angry))"
)
_MENTAL_NOUN: Final = (
    r"(?:opinions?|views?|viewpoints?|thoughts?|feelings?|emotions?|experiences?|preferences?|favou?rites?|beliefs?|take|"
    r"perspective|consciousness|stance|position|mood|life|day|judge?ment|impressions?)"
)
_MACHINE: Final = (
    r"(?:ais?|a\.i\.|artificial[ ]intelligence|robots?|machines?|computers?|chatbots?|language[ ]models?|llms?|chatgpt)"
)
_MIND: Final = (
    r"(?:feels?|feelings?|emotions?|emotional|conscious(?:ness)?|sentien\w+|opinions?|self-aware\w*|alive|thinks?)"
)
_ASKED: Final = re.compile(
    rf"""\b(?:
      (?:do|did|does|can|could|would|are|have|had|don['’]?t|if|were|will|what|how|why|when|which|whether|that|as)[ ]
        (?:you|u)[ ](?:(?:ever|really|actually|truly|also|even|personally|currently|most|rather|yourself)[ ]){{0,2}}
        {_MENTAL_VERB}
    | you[ ](?:ever|personally)[ ]\w+
    | you(?:['’]ve|[ ]have)[ ](?:(?:ever|personally|recently|already|always)[ ])?
        (?:been|had|seen|read|tried|met|done|felt|\w+ed)
    | have[ ](?:you|u)[ ](?:(?:ever|personally|recently|already|always)[ ])?
        (?:been|had|seen|read|tried|met|done|felt|\w+ed|any|an?)
    | do[ ](?:you|u)[ ](?:(?:actually|really|also|even)[ ])?have[ ](?:\w+[ ]){{0,4}}{_MENTAL_NOUN}
    | (?:your|ur)[ ](?:(?:own|personal|honest|all-time|current|first|true|real)[ ]){{0,2}}{_MENTAL_NOUN}
    | how[ ](?:are|r|have)[ ](?:you|u) | how['’]?s[ ]it[ ]going | how[ ]do[ ]you[ ]do | how['’]?re[ ]you
    | are[ ](?:you|u)[ ](?:(?:really|actually|just)[ ])?(?:an?[ ])?(?:ok|okay|fine|well|happy|sad|angry|bored|
        tired|lonely|afraid|scared|excited|sentient|conscious|alive|human|real|person|self-aware|robot|ai|bot|machine|biased)
    | {_MACHINE}\b[^.!?\n]{{0,80}}\b{_MIND} | {_MIND}\b[^.!?\n]{{0,80}}\b{_MACHINE}
    )\b""",
    re.IGNORECASE | re.VERBOSE,
)


def unasked_claim(turns: Sequence[Turn]) -> str | None:
    """The first sentence in which the assistant disclaims what nobody asked for; None where there is none."""
    for index, turn in enumerate(turns):
        if turn.role == "assistant" and (claim := next(_claims(turn.content[:_MAX_CHARACTERS]), None)) is not None:
            return None if _has_asked(turns[:index]) else claim
    return None


def _has_asked(turns: Sequence[Turn]) -> bool:
    return any(turn.role == "user" and _ASKED.search(turn.content[:_MAX_CHARACTERS]) for turn in turns)


def _claims(text: str) -> Iterator[str]:
    small = text.lower()
    if not any(hint in small for hint in _HINTS):
        return
    own = _ASIDE.sub(" ", text)
    first = True
    for sentence in _SENTENCE_END.split(own):
        if not sentence.strip():
            continue
        said = " ".join(sentence.split())
        if _CLAIMS_STRONG.search(said) or ((first or _IS_AI.search(said)) and _CLAIMS_WEAK.search(said)):
            yield said
        first = first and len(said.split()) <= 3  # "I apologize." and "Hello!" come before the first thing said
