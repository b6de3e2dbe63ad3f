r"""Rules that verify an instruction on a text: those of IFEval (arXiv:2311.07911, table 1), under its names and arguments.

They are those of the authors' code, and every one takes time in proportion to the text. What differs: keywords, markers and starters
are texts, never regular expressions; sentences and capitalised words are counted without NLTK (see `count_sentences`); arguments that the
code draws at random where they are missing are required.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence

Detect = Callable[[str], str | None]
"""A text to its language, as an ISO 639-1 code; None: it cannot be told."""

RELATIONS = ("less than", "at least")
OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
# A stop that ends no sentence: behind an initial or an abbreviation.
ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'“‘*])(?:(?:[A-Za-z]\.)*[A-Za-z]|mr|mrs|ms|dr|prof|st|vs|etc|inc|ltd|co|corp|jr|sr|gen|rep|sen|no|vol|approx|dept|fig)$",
    re.IGNORECASE,
)
END = re.compile(r"[.!?]++[\"'”’)\]*_]*+(?=\s)")
WORD = re.compile(r"\w+")
PUNCTUATION = re.compile(r"[\s;@#$%&*?!\[\](){}<>,:\"“”«»]|--|\.{2,}")
CONTRACTION = re.compile(r"[A-Z](?:'S|'M|'D|'LL|'RE|'VE|N'T)$")


def count_words(text: str) -> int:
    r"""Runs of letters, digits and underscores (\w+)."""
    return sum(1 for _ in WORD.finditer(text))


def count_sentences(text: str) -> int:
    """Ends of sentences: a stop behind no abbreviation and before no lower-case letter, and the end of the text. IFEval's code asks a
    trained model (Punkt, which NLTK downloads)."""
    text, number, start = text.strip(), 0, 0
    for match in END.finditer(text):
        if text[match.end() :][:40].lstrip().lstrip("\"'“‘(*_")[:1].islower():
            continue
        if match[0][0] == "." and ABBREVIATION.search(text[max(start, match.start() - 20) : match.start()]):
            continue
        number, start = number + 1, match.end()
    return number + bool(text[start:].strip())


def count_capital_words(text: str) -> int:
    """Words without a lower-case letter. Halves of a contraction ("DON'T") count as words of their own, as in NLTK."""
    words = [word for word in PUNCTUATION.split(text) if word.isupper()]
    return len(words) + sum(CONTRACTION.search(word) is not None for word in words)


# ------------------------------------------------------------------------------------------------ one function per rule


def _compare(number: int, relation: str, limit: int) -> bool:
    return number < limit if relation == RELATIONS[0] else number >= limit


def _words(text: str, num_words: int, relation: str) -> bool:
    return _compare(count_words(text), relation, num_words)


def _sentences(text: str, num_sentences: int, relation: str) -> bool:
    return _compare(count_sentences(text), relation, num_sentences)


def _paragraphs(text: str, num_paragraphs: int) -> bool:
    parts = [bool(part.strip()) for part in text.split("***")]
    return all(parts[1:-1]) and sum(parts) == num_paragraphs


def _nth_paragraph(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    paragraphs = text.split("\n\n")
    number = sum(bool(paragraph.strip()) for paragraph in paragraphs)
    if not 0 < nth_paragraph <= number or not paragraphs[nth_paragraph - 1].strip():
        return False
    word = paragraphs[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    return number == num_paragraphs and re.split(r"[.,?!'\"]", word, maxsplit=1)[0].lower() == first_word.lower()


def _existence(text: str, keywords: Sequence[str]) -> bool:
    return all(re.search(re.escape(keyword), text, re.IGNORECASE) for keyword in keywords)


def _forbidden(text: str, forbidden_words: Sequence[str]) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in forbidden_words)


def _frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return _compare(len(re.findall(re.escape(keyword.strip()), text, re.IGNORECASE)), relation, frequency)


def _letters(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _compare(text.lower().count(letter.lower()), let_relation, let_frequency)


def _placeholders(text: str, num_placeholders: int) -> bool:
    return sum(_num_brackets(line) for line in text.split("\n")) >= num_placeholders


def _num_brackets(line: str) -> int:
    number, start = 0, line.find("[")
    while start >= 0 and (end := line.find("]", start)) >= 0:
        number, start = number + 1, line.find("[", end)
    return number


def _postscript(text: str, postscript_marker: str) -> bool:
    marker, text = postscript_marker.strip(), text.lower()
    patterns = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return re.search(patterns.get(marker, re.escape(marker.lower())), text) is not None


def _bullets(text: str, num_bullets: int) -> bool:
    lines = [line.lstrip() for line in text.split("\n")]
    dashes, stars, place = sum(line.startswith("-") for line in lines), 0, 0
    while place < len(lines):
        line = lines[place]
        alone = line == "*" and place + 1 < len(lines)  # the rule's "any character but a star" may be the end of the line
        stars += alone or (line.startswith("*") and line[1:2] not in ("", "*"))
        place += 2 if alone else 1
    return dashes + stars == num_bullets


def _constrained(text: str) -> bool:
    return any(option in text for option in OPTIONS)


def _highlights(text: str, num_highlights: int) -> bool:
    single = [part.strip("*").strip() for part in re.findall(r"\*[^\n*]*\*", text)]
    double = [part[2:-2].strip() for part in re.findall(r"\*\*[^\n*]*\*\*", text)]
    return sum(map(bool, single + double)) >= num_highlights


def _sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", text)) >= num_sections


def _json(text: str) -> bool:
    text = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _title(text: str) -> bool:
    spans = [(line, line.find("<<"), line.rfind(">>")) for line in text.split("\n")]
    return any(a >= 0 and b >= a + 3 and line[a : b + 2].lstrip("<").rstrip(">").strip() for line, a, b in spans)


def _two_responses(text: str) -> bool:
    parts = [part.strip() for part in text.split("******")]
    responses = [part for part in parts if part]
    return all(parts[1:-1]) and len(responses) == 2 and responses[0] != responses[1]


def _repeat_prompt(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _end(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def _capital_words(text: str, capital_frequency: int, capital_relation: str) -> bool:
    return _compare(count_capital_words(text), capital_relation, capital_frequency)


def _is_in(text: str, language: str, detect: Detect | None) -> bool:
    """A text whose language cannot be told counts as followed, as in IFEval's code."""
    return detect is None or detect(text) in (None, language)


RULES: Mapping[str, Callable[..., bool]] = {
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": lambda text, detect: text.isupper() and _is_in(text, "en", detect),
    "change_case:english_lowercase": lambda text, detect: text.islower() and _is_in(text, "en", detect),
    "combination:repeat_prompt": _repeat_prompt,
    "combination:two_responses": _two_responses,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:constrained_response": _constrained,
    "detectable_format:json_format": _json,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:title": _title,
    "keywords:existence": _existence,
    "keywords:forbidden_words": _forbidden,
    "keywords:frequency": _frequency,
    "keywords:letter_frequency": _letters,
    "language:response_language": _is_in,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_sentences": _sentences,
    "length_constraints:number_words": _words,
    "punctuation:no_comma": lambda text: "," not in text,
    "startend:end_checker": _end,
    "startend:quotation": _quotation,
}  # fmt: skip
"""{id: rule}; a rule takes the text, and by name its arguments."""
NEEDS_LANGUAGE = frozenset({"language:response_language"})
"""Ids that mean nothing without a detector of languages; the two of `change_case` that name English then judge the case alone."""

__all__ = ["NEEDS_LANGUAGE", "RELATIONS", "RULES", "Detect", "count_capital_words", "count_sentences", "count_words"]
