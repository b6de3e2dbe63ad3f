"""How people and models write one number or one expression: digits, signs, separators, fractions, units, markup, LaTeX."""

import functools
import re
import unicodedata
from fractions import Fraction

MINUS = "\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d\u207b"
SUPERSCRIPTS, SUBSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹", "₀₁₂₃₄₅₆₇₈₉"
SYMBOLS = {"π": "\\pi ", "∞": "\\infty ", "×": "\\times ", "·": "\\cdot ", "∪": "\\cup ", "∩": "\\cap ", "±": "\\pm "}
SYMBOLS |= {"≤": "\\le ", "≥": "\\ge "}
SYMBOLS |= {
    "≠": "\\ne ",
    "≈": "\\approx ",
    "∈": "\\in ",
    "⋅": "\\cdot ",
    "∙": "\\cdot ",
    "\u2044": "/",
    "\u2215": "/",
    "\u066b": ".",
    "\u066c": ",",
}
SYMBOLS |= {"\u066a": "%", "\ufe0f": "", "\u20e3": "", "º": "°", "˚": "°", "’": "'", "“": '"', "”": '"'}
THIN = "\u2009"  # stands for every space that is not ASCII: between groups of three figures it separates thousands
CURRENCY = "$€£¥₹₽₩"

# At most 40 digits, and powers of ten up to 999, so that no text can make us build a huge number.
DIGITS = "[0-9]{1,40}"
GROUPED = rf"[0-9]{{1,3}}(?:(?:,[0-9]{{3}}){{1,12}}|(?:['_{THIN}][0-9]{{3}}){{1,12}})|[0-9]{{1,2}}(?:,[0-9]{{2}}){{1,12}},[0-9]{{3}}"
# 1.234.567 and 1.234,5 cannot be read otherwise; 1.234 is a decimal number.
EUROPEAN = r"[0-9]{1,3}(?:(?:\.[0-9]{3}){2,12}(?:,[0-9]{1,2})?|\.[0-9]{3},[0-9]{1,2})"
AMOUNT = rf"(?:(?:{EUROPEAN}|(?:{GROUPED}|{DIGITS})(?:\.{DIGITS})?)(?![0-9])|\.{DIGITS}(?![0-9]))"
POWER = r"\^\{?-?[0-9]{1,3}\}?(?![0-9])"
BODY = (
    rf"{DIGITS}(?:\s(?:and\s)?|(?=\())\(?[0-9]{{1,40}}/[0-9]{{1,40}}\)?(?![0-9/])"  # 3 1/2
    rf"|{AMOUNT}(?:/{AMOUNT}|[eE][+-]?[0-9]{{1,9}}(?![0-9A-Za-z])|\s{{0,2}}×\s{{0,2}}10{POWER}|{POWER}|_\{{?[0-9]{{1,40}}\}}?)?"
)
SIGN = r"(?:(?<![0-9A-Za-z)\]}.\-])[-+])?"
START = r"(?<![0-9.^])(?<![0-9]:)(?<![\^_]\{)(?<![A-Za-z0-9}]_)"
CLOCK = r"[0-9]{1,4}(?::[0-9]{1,4}){1,2}(?![0-9:])"
NUMBER = re.compile(rf"{SIGN}(?:[{CURRENCY}]\s?)?{SIGN}{START}(?:{CLOCK}|{BODY})(?:\s?%)?")

FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{\s*([^{}]{1,60}?)\s*\}|([0-9]))\s*(?:\{\s*([^{}]{1,60}?)\s*\}|([0-9]))")
OVER = re.compile(r"\{\s*(-?[0-9.,]{1,60})\s*\\over\s+([0-9.,]{1,60})\s*\}")
WORDS = re.compile(
    r"\\(?:text(?:bf|it|rm|normal|tt|sf)?|math(?:rm|bf|it|sf|tt|bb)|mbox|hbox|emph|operatorname|boldsymbol|underline)\s*\{([^{}]*)\}"
)
LAYOUT = re.compile(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits|!)(?![A-Za-z])")
SPACING = re.compile(r"\\(?:[,;:> ]|quad|qquad|thinspace|enspace)(?![A-Za-z])|~")
STARS = re.compile(r"(?<![\w)}])\*+(?=\S)|(?<=\S)\*+(?![\w({\\])|(?<=[A-Za-z.:])\*\*(?=[\w({\\])|`+")
DEGREE = re.compile(r"\^?\{?\\(?:circ|degree|textdegree)\}?")

UNIT = r"(?:[cmk]m|mm|in|ft|yd|mi|km/h|mph|kph|kg|mg|lbs?|oz|m[lL]|hrs?|mins?|secs?|[apAP]m|[AP]M|USD|EUR|GBP|k?Wh|m/s|k?Hz|cents?|[CF])\b"
SCALE = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
OPTION_LABEL = re.compile(r"(?:\([A-J]\)|[A-J][.)])\s+(?=[^\s])")
WORDS_BEFORE = re.compile(rf"[\s{CURRENCY}(\[\"]*+(?:[A-Za-z][A-Za-z'-]*[:,]?\s[\s{CURRENCY}(]*+)*+")
STATED = re.compile(rf"(?P<sign>[-+]?)\s*(?:[A-Z]{{2}})?[{CURRENCY}]?\s*(?P<inner>-?)(?P<body>{BODY})")
TAIL = re.compile(
    rf"[\s%°{CURRENCY}.)\]\"]*(?:(?:(?<=[\s{CURRENCY}°%)(])[A-Za-z(°]|-[A-Za-z]{{2}}|{UNIT}|\s?/\s?[A-Za-z])"
    r"(?:[^0-9+=<>^*×|\\]|\^\{?[23]\}?)*)?"
)
# "5 x" and "5 or 6" are no five, nor is "5 and a half".
UNFIT = re.compile(r"[\s(]*(?:(?:or|to|plus|minus|times|divided|squared|cubed|and a half|and one|i)\b|[abcdijknpqrtuvwxyz][\s.)]*$)")
NEGATED = re.compile(r"\b(?:not|never|cannot|neither|nor|no|than|between|either)\b|n't\b", re.IGNORECASE)
NAME = re.compile(r"[\\A-Za-z' ]*+(?:_\{?\w{1,9}\}?)?(?:\([^()=]{0,40}\)|\|[^|=]{1,40}\|)?[\\A-Za-z' ]*+:?\s*+")
APPROXIMATELY = re.compile(r"\\approx|\\simeq|\\doteq|~=")


def normalise(text: str) -> str:
    """The text with ASCII digits, signs and spaces, and symbols as LaTeX writes them: a fullwidth -5 becomes "-5", ½ becomes 1/2."""
    if text.isascii():
        return text
    text = re.sub(f"[{SUPERSCRIPTS}⁻]+", lambda m: "^{" + "".join(map(_letter, m[0])) + "}", text)
    text = re.sub(f"[{SUBSCRIPTS}]+", lambda m: "_{" + "".join(map(_letter, m[0])) + "}", text)
    text = re.sub(r"√\s?(?:\(([^()]{1,40})\)|\{([^{}]{1,40})\}|(\w+))", lambda m: f"\\sqrt{{{m[1] or m[2] or m[3]}}}", text)
    text = re.sub(r"([0-9]) ?(?=[¼-¾⅐-⅞])", r"\1 ", text)
    return "".join(map(_letter, text))


@functools.lru_cache(4096)
def _letter(letter: str) -> str:
    if letter.isascii():
        return letter
    if letter in MINUS:
        return "-"
    if letter in SYMBOLS:
        return SYMBOLS[letter]
    if letter in SUPERSCRIPTS or letter in SUBSCRIPTS or letter.isdecimal():
        return str(unicodedata.digit(letter))
    if "\uff01" <= letter <= "\uff5e":
        return chr(ord(letter) - 0xFEE0)
    category = unicodedata.category(letter)
    if category == "No" and "\u2044" in (fraction := unicodedata.normalize("NFKC", letter)):
        return fraction.replace("\u2044", "/")
    return {"Zs": THIN, "Cf": ""}.get(category, letter)


def latex(text: str) -> str:
    """Without what only sets type: commands of font and size, spacing, other spellings of a fraction, bold and code."""
    text = WORDS.sub(r" \1 ", WORDS.sub(r" \1 ", LAYOUT.sub("", normalise(text).replace("{,}", ","))))
    text = re.sub(r"(?<=[0-9])\\[,;: ](?=[0-9]{3}(?![0-9]))", THIN, text)
    text = STARS.sub("", SPACING.sub(" ", text))
    text = FRACTION.sub(lambda m: f"\\frac{{{m[1] or m[2]}}}{{{m[3] or m[4]}}}", OVER.sub(r"\\frac{\1}{\2}", text))
    return DEGREE.sub("°", re.sub(r"\\sqrt\s*([0-9a-z])", r"\\sqrt{\1}", text))


def plain(text: str) -> str:
    """One line in which fractions are a/b and groups of three figures hang together: what numbers are read from."""
    text = re.sub(r"\\frac\{(-?[0-9.,]{1,60})\}\{(-?[0-9.,]{1,60})\}", r"(\1/\2)", latex(text))
    text = re.sub(r"(?<![0-9A-Za-z)])(-?)\((-?[0-9.,]{1,60}/[0-9.,]{1,60})\)", r"\1\2", text)
    text = re.sub(r"\\(?:times|cdot)(?![A-Za-z])", "×", re.sub(r"\\([$%#&])|\\[()\[\]]|\$\$", r"\1", text))
    return re.sub(r"\{(-?[0-9.,]{1,60})\}", r"\1", re.sub(r"\\(?=[$%])", "", text)).replace(THIN + "/", "/")


def number(text: str) -> Fraction | None:
    """The number a short answer states, between words and units: "about $1,200 a month", "x = 5", "3 1/2 cm", but not "x^2" or "2 or 3"."""
    exact, *rounded = APPROXIMATELY.split(plain(text[:500]), maxsplit=1)
    value = _of_equation(exact)
    # "14/3 = 4.67 or so" states 14/3; "2 pi = 6.28 or so" states 6.28.
    return _of_equation(rounded[0]) if value is None and rounded else value


def _of_equation(text: str) -> Fraction | None:
    """ "x = 5" and "2 + 3 = 5" state 5; "2x - 3y = 0" is an equation, and "x = 5 or x = 6" states two numbers."""
    first, *others = text.split("=")
    for part in others[:-1]:
        if re.search("[A-Za-z]", part):
            return None
    if others and re.search("[A-Za-z]", first) and re.search("[0-9]", first) and not NAME.fullmatch(first):
        return None
    return _stated(others[-1] if others else first)


def _stated(text: str) -> Fraction | None:
    text = re.sub(r"(?<=[0-9])\s*/\s*(?=[0-9])", "/", OPTION_LABEL.sub("", text.strip(), count=1))
    text = re.sub(r"(?<![0-9.,/])([0-9]{1,3}(?: [0-9]{3})+)(?!\s?[0-9/,])", lambda m: m[1].replace(" ", ""), text)
    words = WORDS_BEFORE.match(text)
    assert words is not None  # it matches the empty text
    match = STATED.match(text, words.end())
    if match is None or NEGATED.search(words[0]):
        return None
    rest = text[match.end() :]
    if UNFIT.match(rest) or not TAIL.fullmatch(text, match.end()):
        return None
    scale = SCALE.get((re.match(r"\s*([a-z]*)", rest) or [""])[1], 1)
    value = _value(match["body"])
    return None if value is None else value * scale * (-1 if (match["sign"] + match["inner"]).count("-") == 1 else 1)


def _value(body: str) -> Fraction | None:
    """The number of one token."""
    if mixed := re.fullmatch(rf"({DIGITS})(?:\s(?:and\s)?|(?=\())\(?({DIGITS})/({DIGITS})\)?", body):
        whole, parts, parts_of_one = map(int, mixed.groups())
        return whole + Fraction(parts, parts_of_one) if parts_of_one else None
    if power := re.fullmatch(rf"(?:({AMOUNT})\s*×\s*)?([0-9.,]+)\^\{{?(-?[0-9]{{1,3}})\}}?", body):
        factor, base, exponent = _decimal(power[1] or "1"), _decimal(power[2]), int(power[3])
        if factor is None or base is None or (base == 0 and exponent < 0) or abs(exponent) * len(power[2]) > 999:
            return None
        return factor * base**exponent
    if scientific := re.fullmatch(r"(.*)[eE]([+-]?[0-9]{1,3})", body):
        mantissa = _decimal(scientific[1])
        return None if mantissa is None else mantissa * Fraction(10) ** int(scientific[2])
    above, slash, below = body.partition("/")
    top, bottom = _decimal(above), _decimal(below) if slash else Fraction(1)
    return top / bottom if top is not None and bottom else None


def _decimal(text: str) -> Fraction | None:
    if re.fullmatch(EUROPEAN, text):
        text = text.replace(".", "").replace(",", ".")
    text = re.sub(f"[,'_{THIN}](?=[0-9]{{2,3}})", "", text)
    return Fraction(text) if re.fullmatch(rf"(?:{DIGITS})?(?:\.{DIGITS})?", text) and text else None


def fold(text: str) -> str:
    """Without case, spaces, markup, other ways to set the same LaTeX, and what closes a sentence."""
    text = re.sub(r"(?<=[0-9])\s+(?=[0-9])", "\0", latex(text.strip()))
    text = re.sub(r"[\s$\"]+|\\[()\[\]]", "", text).replace("\0", " ")
    return re.sub(r"([\^_])\{(\w)\}", r"\1\2", text).rstrip(".,;:").casefold()


def option(text: str) -> str | None:
    """The letter of a multiple choice: "C", "(c)", "C.", "option C", "(C) 12 apples"."""
    match = OPTION.fullmatch(latex(text[:500]).strip())
    return (match[1] or match[2] or match[3]).upper() if match else None


# A letter alone may be small; one with a text behind it is large and marked off from the text.
OPTION = re.compile(
    r"\$?(?:the\s)?(?:correct\s)?(?:(?:option|choice|answer)\s*:?\s*)?"
    r"(?:\(([A-Ja-j])\)|([A-Ja-j]))[\s.:)\]$]*|(?:option |choice )?(?=\(?[A-J][).:]\s)\(?([A-J])[).:]+\s.*",
    re.DOTALL | re.IGNORECASE,
)
