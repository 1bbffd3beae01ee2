"""Mends turns whose letters have the wrong case as a whole: "Hello. how are you?", text without capitals, SHOUTING.

Tunstall et al. 2023 (arXiv 2310.16944, section 4.1) "applied truecasing heuristics" to about 5% of UltraChat; beyond an
example in the data set's card they do not say which. These are ours:

- A turn is mended where half of its sentences or more begin with a small letter; a user's also where it has capitals
  only.
- Sentences get a capital; in English, the word I does; a text in capitals gets small letters. Names and abbreviations
  of a text without case are written as the rest of the dialogue writes them in the middle of a sentence ("what is the
  capital of france" is followed by an answer that says France).
- Left alone: code, formulas, addresses, tags, paths, words with digits, underscores or capitals inside (iPhone),
  scripts without case, Turkish and Azeri (whose i has another capital), short answers, and dialogues about spelling or
  case.

Mending what is mended changes nothing.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Final, NamedTuple

from zephyr_local.train.data.dialogue_formats import Turn

_MIN_WORDS: Final = 3  # fewer may be the name of a thing, or a command
_MIN_ANSWER_WORDS: Final = 6  # a short answer in small letters may be what was asked for: a label, a list
_MIN_SHOUTED_WORDS: Final = 3
_MIN_SHOUTED_LETTERS: Final = 12
_MIN_NAME_LETTERS: Final = 3
_MAX_CHARACTERS: Final = 100_000  # longer turns are documents or damage, and cost seconds
_MAX_NAME_WORDS: Final = 6
_MAX_GAP: Final = 40  # between two sentences; what is longer is drawn, not written

_PROTECTED: Final = re.compile(
    r"""
    ```(?s:.*?)(?:```|\Z) | ~~~(?s:.*?)(?:~~~|\Z)               # fenced code
  | `[^`\n]*`                                                   # code in a line
  | \$\$(?s:.{1,2000}?)\$\$ | \$[^$\s](?:[^$\n]*[^$\s])?\$             # formulas
  | \\\((?s:.{1,2000}?)\\\) | \\\[(?s:.{1,2000}?)\\\]
  | ^(?:[ ]{4}|\t|>|[ \t]*[$%#][ ])[^\n]*                          # indented code, quoted lines, a shell's, comments
  | ^[^\n`]*(?:[;{}]|=>|->)[ \t]*$                               # a line of code by its end
  | ^[^\n`]*(?:\w\((?!e?s\))|[=!<>+*/-]=|\s=\s|\w=\w|&&|\|\|)[^\n]*   # or by what is in it
  | ^[ \t]*(?:import|from|def|class|return|elif|else:|SELECT|select|UPDATE|INSERT|CREATE)\b[^\n]*[(){}=;:*_][^\n]*$
  | </?[A-Za-z!][^<>\n]*>                                       # tags
  | (?:https?|ftp)://\S*[^\s.,;:!?)\]"'] | \b[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)+   # addresses
  | (?<!\w)[@\#\\]\w[\w-]*                                      # @handles, #tags, \commands
  | (?<!\S)(?:~|\.{1,2})?/[\w./~-]+ | \b[A-Za-z]:\\\S+          # paths
  | \b[^\W\d_]+(?:[./\\:]\w+)+                                  # node.js, std::sort, and/or
  | \b(?:[^\W\d_]{1,40}-){0,3}\w*[\d_]\w*(?:[-.]\w+)*                             # words with digits or underscores
    """,
    re.VERBOSE | re.MULTILINE,
)
_WORD: Final = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_SENTENCE_END: Final = re.compile(r"[.!?…]+[\"'”’)\]*]*\s+[\"'“‘«(\[¿¡*]*\Z")
_PARAGRAPH_END: Final = re.compile(r"\n[ \t]*\n\s*[\"'“‘«(\[¿¡*]*\Z")
_TEXT_START: Final = re.compile(r"[\s\"'“‘«(\[¿¡*]*\Z")
_LOWER_START: Final = re.compile(r"(?:\A|[.!?…][\"'”’)\]*]{0,4}\s|\n[ \t]{0,8}\n)\W{0,40}([^\W\d_A-Z])")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ABBREVIATIONS: Final = _words(
    """e.g i.e etc vs cf al approx ca nos fig eq ed eds vol pp dr mr mrs ms prof st jr sr inc ltd co dept est
    oz tsp tbsp lb lbs min hr"""
)
_CAPITALS: Final = _words(
    """USA UK EU UN UAE NASA NATO FBI CIA IRS NBA NFL FIFA UNESCO AI NLP GPT LLM API SQL HTML CSS JSON XML PDF CSV
    URL HTTP HTTPS USB CPU GPU RAM SSD DNA RNA HIV AIDS BBC CNN IBM CEO CFO CTO GDP FAQ DIY PTSD ADHD
    II III VI VII VIII IX XI XII iPhone iPad iPod iOS macOS eBay"""
)
_KEPT_CAPITALS: Final = {word.lower(): word for word in _CAPITALS}
_ALSO_WORDS: Final = _words("aids ram css vi xi who may will mark march bill polish turkey china jack rose")
"""Of names and abbreviations, those that a text without capitals may well use as words."""

_ABOUT_CASE: Final = re.compile(
    r"""\b(?:
    (?:upper|lower|title|sentence|camel|snake|letter|mixed)[ -]?case|case[ -](?:in)?sensitiv\w*|all[ -]caps|caps
    (?:[ -]lock)?|capital(?:i[sz]\w*|[ ]letters?)|small[ ]letters?|grammar|grammatical\w*|punctuat\w*|proof-?read\w*|
    spelling|misspell\w*|typos?|spell-?check\w*)\b""",
    re.IGNORECASE | re.VERBOSE,
)
_ENGLISH: Final = _words(
    """the and is my am you your what how can have was want need with that this for of are it if like does did they she
    not but there think know would should could from get make find help please why when where which who"""
)
_ENGLISH_I: Final = re.compile(
    r"\b(?:can|should|would|could|did|am|how do|what do|when do|where do|why do|how|what|that|if|when) i\b"
    r"|\bi (?:am|have|had|want|need|would|could|should|think|like|know|can|will|feel|got|get|love|use|hope)\b"
)
_I_FORMS: Final = _words("i i'm i've i'll i'd")
_I_COUNTS: Final = re.compile(
    r"\b(?:for(?: each| all| every)?|let|index|indices|where|over) i\b|\bi(?:th|-th)\b|[\[(,]i[\]),]"
)
_DOTLESS_I: Final = re.compile("[ıİğĞşŞəƏ]")


class _Word(NamedTuple):
    start: int
    text: str
    gap: str
    """What stands before it: from the word or protected span before."""
    before: str
    """The word or protected span before it; empty for the first."""


@dataclass(frozen=True)
class _Prose:
    """A text's words outside code and the like."""

    text: str

    @cached_property
    def words(self) -> list[_Word]:
        return list(self._words())

    def _words(self) -> Iterator[_Word]:
        position, before = 0, ""
        for start, end in [*((m.start(), m.end()) for m in _PROTECTED.finditer(self.text)), (len(self.text), -1)]:
            for found in _WORD.finditer(self.text, position, start):
                yield _Word(found.start(), found.group(), self.text[position : found.start()], before)
                position, before = found.end(), found.group()
            if end >= 0:
                position, before = end, self.text[start:end]

    @cached_property
    def starts(self) -> list[_Word]:
        """The words that begin a sentence and could have a capital."""
        return [word for word in self.words if self._begins_sentence(word) and self._takes_capital(word)]

    def _begins_sentence(self, word: _Word) -> bool:
        if not word.before:
            return word.start == len(word.gap) and _TEXT_START.match(word.gap) is not None
        if len(word.gap) > _MAX_GAP:
            return False
        if _PARAGRAPH_END.search(word.gap):
            return not self.is_cased  # a paragraph in small letters may be a quotation, data, code
        if _SENTENCE_END.search(word.gap) is None:
            return False
        return not (word.gap.startswith(".") and self._is_shortened(word))

    def _is_shortened(self, word: _Word) -> bool:
        """Whether the dot after what stands before it is an abbreviation's, or a list's marker's."""
        start = word.start - len(word.gap) - len(word.before)
        if word.before.isdigit() or word.before in ("i", "I"):
            return not self.text[max(start - _MAX_GAP, 0) : start].rpartition("\n")[2].strip()
        return len(word.before) == 1 or word.before.lower() in _ABBREVIATIONS

    def _takes_capital(self, word: _Word) -> bool:
        first, rest = word.text[0], word.text[1:]
        if len(word.text) == 1 and (first.lower() not in "ai" or self.after(word)[:1] in tuple(".):=/-")):
            return False  # a variable, a list's marker
        return (rest == rest.lower() or word.text.isupper()) and (first.isupper() or _capital(first) != first)

    def after(self, word: _Word) -> str:
        """The character that follows a word."""
        end = word.start + len(word.text)
        return self.text[end : end + 1]

    @cached_property
    def is_cased(self) -> bool:
        """With capitals and small letters."""
        return not self.is_small and not self.is_shouted

    @cached_property
    def is_small(self) -> bool:
        """Without a single capital."""
        return not any(letter.isupper() for word in self.words for letter in word.text)

    @cached_property
    def is_shouted(self) -> bool:
        """In capitals only, and long enough to be no abbreviation."""
        texts = [word.text for word in self.words if word.text.isupper()]
        return len(texts) == len(self.words) >= _MIN_SHOUTED_WORDS and sum(map(len, texts)) >= _MIN_SHOUTED_LETTERS

    @cached_property
    def starts_small(self) -> bool:
        """Whether half of its sentences or more begin with a small letter."""
        small = sum(not word.text[0].isupper() for word in self.starts)
        return len(self.words) >= _MIN_WORDS and small > 0 and 2 * small >= len(self.starts)

    @cached_property
    def is_english(self) -> bool:
        found = {word.text.lower().replace("’", "'") for word in self.words}
        if len(found & _ENGLISH) >= 2 or not found.isdisjoint(_I_FORMS - {"i"}):
            return True
        return _ENGLISH_I.search(self.text.lower()) is not None


def truecase_turns(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The turns of one dialogue with wrongly cased ones mended; those that are well come back as they are."""
    if not any(_may_be_wrong(turn) for turn in turns):
        return tuple(turns)
    if any(_ABOUT_CASE.search(turn.content) for turn in turns if turn.role != "assistant"):
        return tuple(turns)
    if any(_DOTLESS_I.search(turn.content) for turn in turns):
        return tuple(turns)
    prose = [_Prose(turn.content) for turn in turns]
    wrong = [_is_wrong(turn, text) for turn, text in zip(turns, prose, strict=True)]
    if not any(wrong):
        return tuple(turns)
    caseless = [is_wrong and not text.is_cased for is_wrong, text in zip(wrong, prose, strict=True)]
    names = _names(
        [
            text
            for text, without in zip(prose, caseless, strict=True)
            if not without and len(text.text) <= _MAX_CHARACTERS
        ]
    )
    return tuple(
        Turn(turn.role, _mended(text, names if without else {})) if is_wrong else turn
        for turn, text, is_wrong, without in zip(turns, prose, wrong, caseless, strict=True)
    )


def truecase(text: str) -> str:
    """A user's text by itself, mended where its case is wrong as a whole."""
    (turn,) = truecase_turns([Turn("user", text)])
    return turn.content


def _may_be_wrong(turn: Turn) -> bool:
    """A quick look that spares most turns the slow one."""
    if turn.role == "system" or len(turn.content) > _MAX_CHARACTERS:
        return False
    if any(_capital(found) != found for found in _LOWER_START.findall(turn.content)):
        return True
    return turn.role == "user" and turn.content.isupper()


def _is_wrong(turn: Turn, text: _Prose) -> bool:
    if not _may_be_wrong(turn):
        return False
    if turn.role == "user":
        return text.is_shouted or text.starts_small
    whole = len(text.words) >= _MIN_ANSWER_WORDS and turn.content.rstrip("\"'”’)*")[-1:] in tuple(".!?…")
    return whole and text.starts_small


_Names = Mapping[tuple[str, ...], tuple[str, ...]]


def _names(texts: Sequence[_Prose]) -> _Names:
    """Names, of one word or more, in small letters → as the texts write them in the middle of their sentences.

    A name is a run of words with capitals, none of which is elsewhere written without. Words of longer ones are no
    names by themselves: "Civil Rights Movement" says nothing of a movement.
    """
    names: dict[tuple[str, ...], tuple[str, ...]] = {}
    unsure: set[tuple[str, ...]] = set()
    words: set[str] = set()
    for text in texts:
        titles = _title_words(text)
        for run in _capital_runs(text):
            key = tuple(word.text.lower() for word in run)
            written = tuple(word.text for word in run)
            if names.setdefault(key, written) != written or not titles.isdisjoint(word.start for word in run):
                unsure.add(key)
        words |= {word.text for word in text.words if word.text == word.text.lower()}
    return {key: name for key, name in names.items() if key not in unsure and _is_name(key) and words.isdisjoint(key)}


def _is_name(key: tuple[str, ...]) -> bool:
    if len(key) > 1:
        return len(key) <= _MAX_NAME_WORDS
    return len(key[0]) >= _MIN_NAME_LETTERS and key[0] not in _ALSO_WORDS


def _capital_runs(text: _Prose) -> Iterator[list[_Word]]:
    """Words with a capital that follow each other, where the first follows a small one in its sentence."""
    run: list[_Word] = []
    follows = False
    for word in text.words:
        joined, capital = word.gap == " ", word.text != word.text.lower() and word.text not in ("I", "I'm", "I'll")
        if not (joined and capital and run):
            if run:
                yield run
            run = []
            follows = follows and word.gap.strip(" ") in ("", ",")
            if capital and follows:
                run = [word]
        else:
            run.append(word)
        follows = not capital or bool(run)
    if run:
        yield run


def _title_words(text: _Prose) -> set[int]:
    """Where words stand in lines that are written Like Titles, whose capitals say nothing."""
    ends = [found.start() for found in re.finditer("\n", text.text)]
    starts: set[int] = set()
    for _, in_line in groupby(text.words, lambda word: bisect_left(ends, word.start)):
        words = list(in_line)
        if 4 * sum(word.text[0].isupper() for word in words) >= 3 * len(words):
            starts.update(word.start for word in words)
    return starts


def _mended(text: _Prose, names: _Names) -> str:
    parts: list[str] = []
    position = 0
    starts = {word.start for word in text.starts}
    says_i = text.is_english and not _I_COUNTS.search(text.text.lower())
    for word, written in zip(text.words, _all_written(text, names), strict=True):
        if says_i and _is_i(word, text):
            written = "I" + written[1:]
        if word.start in starts and written == written.lower():
            written = _capital(written[0]) + written[1:]
        parts += [text.text[position : word.start], written]
        position = word.start + len(word.text)
    return "".join([*parts, text.text[position:]])


def _is_i(word: _Word, text: _Prose) -> bool:
    if word.text.lower().replace("’", "'") not in _I_FORMS:
        return False
    return text.after(word) not in tuple("-=/\\_()[]*^+") and word.gap[-1:] not in tuple("-=/\\([*^+")


def _all_written(text: _Prose, names: _Names) -> list[str]:
    """Each word's form in the middle of a sentence."""
    if text.is_cased:
        return [word.text for word in text.words]
    written: list[str] = []
    small = [word.text.lower() for word in text.words]
    longest = max(map(len, names), default=0)
    while (index := len(written)) < len(small):
        size = 1
        while size < longest and index + size < len(small) and text.words[index + size].gap == " ":
            size += 1
        while size and tuple(small[index : index + size]) not in names:
            size -= 1
        written += names[tuple(small[index : index + size])] if size else [_kept(small[index], text)]
    return written


def _kept(small: str, text: _Prose) -> str:
    if small in _KEPT_CAPITALS and (text.is_shouted or (text.is_english and small not in _ALSO_WORDS)):
        return _KEPT_CAPITALS[small]
    return small


def _capital(letter: str) -> str:
    """Its capital, where that is one letter and its script begins sentences with it, as Georgian's does not."""
    capital = letter.title()
    return capital if len(capital) == 1 else letter
