"""The final answer of a text, and when two answers are the same: shared by rewards and judges."""

import re
from fractions import Fraction

from advalign.functional.notation import NUMBER, fold, normalise, number, option, plain

# A dollar sign opens a formula before a letter or figure and closes one after it, and never before a figure: "$5 and $6" is money.
FORMULA = re.compile(
    r"\$\$(.{1,500}?)\$\$|(?<![\\$])\$(?=[^\s$])([^$\n]{1,500})(?<!\s)\$(?![0-9$])|\\\((.{1,500}?)\\\)|\\\[(.{1,500}?)\\\]", re.DOTALL
)
BOX = re.compile(r"\\f?boxed\s*+(?:\{(?!\s*+\})|(?=[0-9A-Za-z]))")
PHRASE = re.compile(r"\b(?:answers?|ans)\b", re.IGNORECASE)
# Every repetition is possessive: what it took is never given back, so that a long run of spaces costs one pass.
LINK = re.compile(
    r"(?:[*_`]*+\s++(?:to|for|in|of)\b[^.:=\n]{0,80}?(?=\bis\b|:))?(?:[*_`]*+\s*+\([^()\n]{1,40}\))?[*_`\s]*+"
    r"(?:(?:is|are|was|equals|becomes|(?:will|would|should|must)\s++be|comes\s++(?:out\s++)?to)\b[*_`]*+\s*+:?|:|=|->|→)[*_`]*+(?P<space>\s*+)",
    re.IGNORECASE,
)
HEADING = re.compile(r"[\s#*_>`0-9.]*+(?:(?:the|my|so|final|correct|short|numerical)[ ]++)*+", re.IGNORECASE)
# What a sentence says about the answer, and not what the answer is.
REMARK = re.compile(
    r"[*_\s]*+(?:not\s++)?(?:correct|incorrect|wrong|right|helpful|clear|useful|reasonable|consistent|valid|as follows|given by)\b", re.I
)
NOT_AN_ANSWER = re.compile(
    r"[*_\s]*+(?:(?:step|part|case|question|problem|method|solution|explanation|verification|check|conclusion|summary|note|example)\b"
    r"|[0-9]{1,2}[.)]\s++[A-Za-z])",
    re.IGNORECASE,
)
CUT = re.compile(
    r"[.!?](?:[*_`\"')\]]*+)(?=\s)|\.$|[,;]?\s(?:because|since|where|which|so|as|given|when|if|after|approximately)\b"
    r"|;\s|,\s(?:and so|but|not)\b|\s\((?=[^()]*\)\W*$)"
)
CORRECTED = re.compile(r"\b(?:wait|actually|no|sorry|rather|instead|correction|mistake|or|not|but)\b", re.IGNORECASE)
OPTIONS = re.compile(
    r"(?<![\w(])\(([A-J])\)"
    r"|\b(?:[Oo]ption|[Cc]hoice)\s++(?:is\b(?:\s*+:)?\s++(?=[*_]*+\(?[A-J]\b(?! [a-z'])))?[*_]*+\(?([A-J])\b"
    r"|^[\s*_#]*+([A-J])[.)*_\s]*+$",
    re.MULTILINE,
)


def final_answer(text: str, reference: str = "") -> str | None:
    """The marked answer, else the last number; or the last option, where the reference is one."""
    chosen = last_option(text) if option(reference) else None
    return marked(text) or chosen or last_number(text)


def final_formula(text: str) -> str | None:
    """The marked answer, else the last formula, else the last number: what symbolic algebra compares."""
    answer = marked(text)
    return statement(answer) if answer else last_formula(text) or last_number(text)


def marked(text: str) -> str | None:
    """The answer after "####", in \\boxed{} or after "answer is"; None if the text marks none. What follows "</think>" goes first."""
    thoughts, _, rest = text.rpartition("</think>")
    if thoughts and (answer := marked(rest)):
        return answer
    hashes = [] if "####" not in text else [line for line in _hash_lines(text) if not NOT_AN_ANSWER.match(line)]
    if hashes and not PHRASE.search(hashes[-1]):
        return hashes[-1] or None
    boxes = list(BOX.finditer(text))
    if not boxes:
        return _tagged(text) or _after_phrase(text)
    answer = _boxed(text, boxes[-1].end())
    later = _after_phrase(text[boxes[-1].end() :])
    # "\boxed{18} ... no, the answer is 20": the last of several, where both are plainly numbers.
    return later if answer and later and number(later) is not None and number(answer) is not None else answer


def last_number(text: str) -> str | None:
    """The last number of the last 2000 characters."""
    numbers = [match[0] for match in NUMBER.finditer(plain(text[-2000:]))]
    return re.sub(r"^([-+]?)[^0-9.+-]\s?", r"\1", numbers[-1]) if numbers else None


def last_formula(text: str) -> str | None:
    """What is between the last pair of $ $, $$ $$, \\( \\) or \\[ \\]."""
    formulas = FORMULA.findall(text[-2000:])
    return "".join(formulas[-1]).strip() if formulas else None


def last_option(text: str) -> str | None:
    """The last "(C)", "option C", "option is C" or "C." on a line of its own."""
    options = OPTIONS.findall(normalise(text[-2000:]))
    return "".join(options[-1]) if options else None


def statement(answer: str) -> str:
    """The answer of a sentence without what the sentence adds: "**5** apples, because ..." is "5 apples"; "5. No, 6" stays as it is."""
    answer = answer.strip()[:500]
    bold = re.match(r"(\*\*|__)([^*_\n]+)\1", answer)
    formula = None if bold else FORMULA.match(answer)
    if bold or formula:
        inner = bold[2] if bold else "".join(filter(None, formula.groups())) if formula else ""
        rest = answer[(bold or formula).end() :]  # type: ignore[union-attr]
        if not re.match(r"\s*(?:[-+*/=,]|or\b|and\b)", rest) and not (CORRECTED.search(rest) and re.search("[0-9]", rest)):
            return inner.strip().rstrip(".,;:")
    cut = CUT.search(answer)
    if cut and not (CORRECTED.search(answer, cut.end()) and re.search("[0-9]", answer[cut.end() :])):
        answer = answer[: cut.start()]
    return answer.strip().strip("*_`\"'").rstrip(".,;:").strip()


def same(answer: str, reference: str, tolerance: float) -> bool:
    """Equal as text without case, spaces, markup and final stop; or one option; or both numbers, equal to the relative tolerance."""
    folded = fold(reference)
    if fold(answer) == folded or fold(statement(answer)) == folded:
        return True
    choice = option(reference)
    if choice is not None and choice in (option(answer), option(statement(answer))):
        return True
    a, b = stated_number(answer), number(reference)
    return a is not None and b is not None and abs(a - b) <= Fraction(tolerance) * abs(b)


def decided(answer: str, reference: str) -> bool:
    """Whether both are plain numbers, so that `same` decides. A percentage is not: 50 % may be 50 or 1/2."""
    percent = "%" in normalise(answer + reference) or "percent" in answer + reference
    return stated_number(answer) is not None and number(reference) is not None and not percent


def stated_number(answer: str) -> Fraction | None:
    """The number that an answer, or the sentence around it, states."""
    value = number(answer)
    return number(statement(answer)) if value is None else value


def _hash_lines(text: str) -> list[str]:
    """What follows each "####" of exactly four, up to the end of its line."""
    return [m[1].strip() for m in re.finditer(r"(?<!#)####(?!#)([^\n#]*+(?:#(?!###)[^\n#]*+)*+)", text)]


def _tagged(text: str) -> str | None:
    """The inside of the last <answer></answer>."""
    before, end, _ = text.rpartition("</answer>")
    _, start, inside = before.rpartition("<answer>")
    return (marked(inside) or inside.strip() or None) if end and start else None


def _boxed(text: str, start: int) -> str | None:
    """The inside of the box whose brace was opened before `start`; without a brace: one word."""
    if text[start - 1] != "{":
        word = re.match(r"[0-9A-Za-z.,/]+", text[start : start + 100])
        return word[0].rstrip(".,") if word else None
    depth, escaped = 1, False
    for at, letter in enumerate(text[start : start + 2000], start):
        depth += 0 if escaped else {"{": 1, "}": -1}.get(letter, 0)
        escaped = letter == "\\" and not escaped
        if depth == 0:
            return text[start:at].strip()
    return None


def _after_phrase(text: str) -> str | None:
    """What the last "answer is", "Answer:" or heading "Answer" names, a remark ("the answer is correct") left aside where another is."""
    last = None
    for phrase in reversed(list(PHRASE.finditer(text))):
        content = _named(text, phrase)
        if content and not REMARK.match(content):
            return content
        last = last or content
    return last


def _named(text: str, phrase: re.Match[str]) -> str | None:
    link = LINK.match(text, phrase.end())
    if link is None:
        # A heading: "## Answer" or "**Final answer**" on a line of its own.
        line = text.rfind("\n", max(0, phrase.start() - 60), phrase.start()) + 1
        end = re.compile(r"[*_`# ]*+\n\s*+").match(text, phrase.end())
        if end is None or not HEADING.fullmatch(text, line, phrase.start()):
            return None
        return _line(text, end.end(), True) or None
    return _line(text, link.end(), "\n" in link["space"]) or None


def _line(text: str, start: int, below: bool) -> str:
    """The line that begins here, without a bullet; of a displayed formula or code block all lines."""
    end = text.find("\n", start)
    line = text[start : len(text) if end < 0 else end].strip()
    for opened, closed in (("$$", "$$"), ("\\[", "\\]"), ("```", "```")):
        if line.startswith(opened):
            block = text[start + len(opened) : start + 500].lstrip("\n")
            inside = block.partition(closed)[0]
            return (inside.partition("\n")[2] if opened == "```" and line != opened else inside).strip()
    # An exclamation mark closes the sentence; in a box it is a factorial.
    return (re.sub(r"^(?:[-*+•>]\s+)+", "", line) if below else line).rstrip("!")
