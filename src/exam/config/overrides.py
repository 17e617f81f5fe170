"""Read `key=value` as people write it: quote what Hydra's grammar does not read as text."""

import re
import shlex

from exam.core.errors import ExamError

CLOSING = {"(": ")", "[": "]", "{": "}"}
CALL = "choice|glob|interval|range|shuffle|sort|tag|int|float|str|bool"  # Hydra's functions
NESTED = re.compile(rf"((?:{CALL})\(|\[|\{{)(.*)([)\]}}])", re.DOTALL)
# A quoted item: it follows the start or a separator, and a separator or the end follows it.
QUOTED = re.compile(
    r"""(?<![^,:=(\[{\s])(["'])(?:\\.|(?!\1)[^\\])*\1(?=\s*(?:[,:)\]}]|$))""", re.DOTALL
)
ESCAPED = re.compile(r"\\([\\()\[\]{}:=, \t])")
# Dictionaries that take new keys.
ADDED = ("run.", "data.columns.", "data.columns=", "retriever.weights.", "retriever.weights=")

SMOKE = {  # options of debug=smoke, and the keys that name others
    "data=smoke": {"data", "data.dir", "data.hub", "data.train"},
    "corpus=smoke": {"corpus", "corpus.dir", "corpus.files"},
    "encoder=minilm": {"encoder", "encoder.name_or_path"},
}


def prepare_override(override: str) -> str:
    """Return an override as Hydra reads it.

    Values that Hydra cannot parse, such as `train (1).csv` and `~/exam`, are quoted. So are the
    items of lists and sweeps. A key of a dictionary gets the prefix `++`.

    Raises:
        ExamError: brackets, quotes or commas of the value do not match.
    """
    key, equals, value = override.partition("=")
    if equals and parses(f"{key}=") and not parses(override):
        override = f"{key}={_quote_items(value.strip())}"
        if override == f"{key}=" or not parses(override):
            is_nested = re.match(rf"\s*(?:(?:{CALL})\(|\[|\{{)", value)
            raise ExamError(
                f"{key}={value} cannot be read: its brackets, quotes or commas do not match.\n"
                + (
                    "Close every bracket and quote, and leave no item empty."
                    if is_nested
                    else f"To set it as one text, write {spell_text(key, value)}"
                )
            )
    return f"++{override}" if override.startswith(ADDED) else override


def complete_smoke(overrides: list[str]) -> list[str]:
    """Add questions, articles and an encoder that are here to debug=smoke, if none are named."""
    if "debug=smoke" not in overrides:
        return overrides
    keys = {override.lstrip("+~").partition("=")[0] for override in overrides}
    added = [option for option, names in SMOKE.items() if not keys & names]
    return [*overrides, *added]


def parses(override: str) -> bool:
    """Tell whether Hydra can read an override."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True


def spell_text(key: str, text: str) -> str:
    """Spell an override that sets a text, as typed in a shell."""
    return shlex.quote(f"{key}={_quote_text(text)}")


def unquote_items(value: str) -> str:
    """Return a value without the quotes of its items."""
    return QUOTED.sub(lambda match: re.sub(r"\\(.)", r"\1", match[0][1:-1]), value)


def _quote_text(text: str) -> str:
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(text, Quote.double).with_quotes()


def _quote_items(text: str) -> str:
    """Quote each of the items that commas separate, where brackets match."""
    items = _split(text)
    if items is None:
        items = [] if "," in text else [text]
    return ",".join(_quote_inside(item) for item in items)


def _quote_inside(text: str) -> str:
    """Quote a value, and keep the blanks around it."""
    value = text.strip()
    return text.replace(value, _quote(value), 1) if value else text


def _quote(text: str) -> str:
    """Quote a value that Hydra cannot parse, or the items, arguments or values inside it."""
    if not text or parses(f"key={text}"):
        return text
    nested = NESTED.fullmatch(text)
    items = _split(nested[2]) if nested and CLOSING[nested[1][-1]] == nested[3] else None
    if nested is None or items is None:
        return _quote_text(ESCAPED.sub(r"\1", text))
    if nested[1] == "{":
        pairs = [item.partition(":") for item in items]
        inside = ",".join(f"{key}{colon}{_quote_inside(value)}" for key, colon, value in pairs)
    else:
        inside = _quote_items(nested[2])
    return f"{nested[1]}{inside}{nested[3]}"


def _split(text: str) -> list[str] | None:
    """Split at the commas outside of brackets and quotes; None if brackets do not match."""
    items, start, position = [], 0, 0
    expected: list[str] = []
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 1  # the next character is text
        elif quoted := QUOTED.match(text, position):
            position = quoted.end() - 1
        elif character in CLOSING:
            expected.append(CLOSING[character])
        elif character in CLOSING.values():
            if not expected or expected.pop() != character:
                return None
        elif character == "," and not expected:
            items.append(text[start:position])
            start = position + 1
        position += 1
    return None if expected else [*items, text[start:]]
