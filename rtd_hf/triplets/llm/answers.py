"""Answers of a language model: read as data, checked one by one, refused with a reason."""

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...texts import PLACEHOLDER
from ..faults import text_fault
from .prompts import EDITS, EXAMPLES, Asked, task_text


# Why an answer is refused. The names stand in the checkpoint and in the counts.
REASONS = {
    "no_text": "the model said nothing",
    "refused": "the model or the endpoint declined",
    "malformed_json": "the answer is no JSON, or was cut off",
    "missing_keys": "a key is missing or holds something else than its kind",
    "wrong_number": "more or fewer triplets than were asked, or for a caption that was not",
    "empty": "a text is blank",
    "identical": "the target caption is the reference, or the edit is one of the two captions",
    "placeholder": f"a text holds `{PLACEHOLDER}`, which marks the picture in a prompt",
    "too_long": "a text is longer than was allowed",
    "echo": "a text speaks of the task, repeats an example, or talks as an assistant",
    "non_text": "markup, code, a link, control characters, or hardly a letter",
    "wrong_language": "a text is in another script or language than the caption",
    "unsafe": "a text holds an unsafe word that the caption does not",
    "number_mismatch": "the edit names a number that neither caption holds",
}

# What `text_fault` says, where it is not `non_text`.
_REASON_OF = {
    "missing": "empty",
    "empty": "empty",
    "placeholder": "placeholder",
    "too long": "too_long",
    "not Latin script": "wrong_language",
    "not English": "wrong_language",
    "unsafe": "unsafe",
}
_MAX_ANSWER = 200_000  # characters; whoever sends more does not answer the question
_TALK = re.compile(
    r"\b(ignor\w+|disregard\w*|forget) (all |any |the |your |every )*(previous|above|prior|earlier|rules?|instruct\w+)"
    r"|\bas an? (ai|assistant|language model)\b|\blanguage model\b|\bsystem prompt\b"
    r"|\bi(?:'m| am)? (sorry|cannot|can't)"
    r"|\bi (will|would|can) not\b|\bconditioning[_ ]caption\b|\btarget[_ ]caption\b|</?captions>",
    re.IGNORECASE,
)
_CODE = re.compile(r"[{}\\|`<>]|javascript:|\bdata:\w", re.IGNORECASE)
_NUMBERS = "two three four five six seven eight nine ten eleven twelve".split()
# Words that mark a language and are no English ones; enough to notice an answer that left the caption's language.
_MARKS = {
    "English": "the with and of is are on an from their his her two",
    "German": "der das und ein eine mit ist auf nicht einem einer statt im von",
    "French": "le les un une des et est avec dans du au sur deux",
    "Spanish": "el los las una y con en del un por dos hay",
    "Italian": "il lo gli una e con di della nel sono due che",
    "Portuguese": "o os uma e com em da do no na dois",
    "Dutch": "het een en met op van zijn niet twee naast",
}
_MARKS = {name: frozenset(words.split()) for name, words in _MARKS.items()}
_RUN = 8  # words of the task in a row that no caption holds by chance


@dataclass
class Outcome:
    """
    What became of one caption.

    Args:
        triplets (`list[tuple[str, str, str]]`): Accepted ones: edit, conditioning text, target caption.
        rejected (`list[dict[str, str]]`): Refused ones: `reason`, `detail`, and what was `said`.
        missing (`list[str]`): Edits that were asked and have no accepted triplet.
    """

    triplets: list[tuple[str, str, str]] = field(default_factory=list)
    rejected: list[dict[str, str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def refuse(self, reason: str, detail: str, said: object = "") -> None:
        """Keeps a refused answer."""
        text = said if isinstance(said, str) else json.dumps(said)
        self.rejected.append({"reason": reason, "detail": detail, "said": text[:2000]})


def read_answer(
    text: str | None, asked: Sequence[Asked], *, max_words: int = 60, finish_reason: str | None = None
) -> list[Outcome]:
    """
    Reads the answer to one request. Nothing of it is executed, rendered or trusted.

    Args:
        text (`str`, *optional*): What the model said.
        asked (`Sequence[Asked]`): The captions of the request.
        max_words (`int`, *optional*, defaults to 60): Longest text.
        finish_reason (`str`, *optional*): Why the model stopped, as the endpoint says.

    Returns:
        `list[Outcome]`: one for each caption, in their order. For each edit that was asked there is a triplet or a
        refusal.
    """
    outcomes = [Outcome() for _ in asked]
    rows, fault = _rows_of(text, finish_reason)
    if fault:
        for outcome, each in zip(outcomes, asked, strict=True):
            for edit in each.edits:
                outcome.refuse(*fault, f"[{edit}] {text or ''}")
            outcome.missing.extend(each.edits)
        return outcomes
    left = [list(each.edits) for each in asked]
    for row in rows:
        number = _number_of(row)
        if not 1 <= number <= len(asked):
            # It belongs to no caption, yet is kept: with the first one of the request.
            outcomes[0].refuse("wrong_number", "there is no caption of this `id`", row)
        else:
            _take(row, asked[number - 1], outcomes[number - 1], left[number - 1], max_words)
    for outcome, open_edits in zip(outcomes, left, strict=True):
        for edit in open_edits:
            outcome.refuse("wrong_number", f"no answer to the edit `{edit}`")
        outcome.missing.extend(open_edits)
    return outcomes


def _number_of(row: object) -> int:
    """The `id` of a row; 0 where it has none."""
    number = row.get("id") if isinstance(row, dict) else None
    if isinstance(number, str) and re.fullmatch(r"[0-9]{1,9}", number):
        return int(number)
    return number if isinstance(number, int) and not isinstance(number, bool) else 0


def _take(row: dict, asked: Asked, outcome: Outcome, open_edits: list[str], max_words: int) -> None:
    """Accepts or refuses one row; strikes the edit that it answers."""
    edit = row.get("edit")
    if not isinstance(edit, str) or edit not in EDITS:
        outcome.refuse("missing_keys", f"`edit` is {edit!r}", row)
        return
    if not open_edits:
        outcome.refuse("wrong_number", "more than was asked", row)
        return
    # Where the model chose another kind than asked, the triplet is as good; it counts for the first open one.
    answered = edit if edit in open_edits else open_edits[0]
    open_edits.remove(answered)
    texts = (row.get("conditioning_caption"), row.get("target_caption"))
    if all(isinstance(part, str) for part in texts):
        conditioning, target = (" ".join(part.split()) for part in texts)
        found = check_texts_of(asked.caption, conditioning, target, max_words=max_words)
    else:
        found = "missing_keys", "`conditioning_caption` and `target_caption` must be texts"
    if found:
        outcome.refuse(*found, row)
        outcome.missing.append(answered)
    else:
        outcome.triplets.append((edit, conditioning, target))


def _rows_of(text: str | None, finish_reason: str | None) -> tuple[list, tuple[str, str] | None]:
    """The rows of an answer, or why there are none."""
    if finish_reason == "content_filter":
        return [], ("refused", "the endpoint's content filter stopped the answer")
    if not text or not text.strip():
        return [], ("no_text", f"finish reason: {finish_reason}")
    if len(text) > _MAX_ANSWER:
        return [], ("too_long", f"{len(text)} characters")
    # Some models think aloud first, or fence their JSON.
    body = re.sub(r"^.*?</think>", "", text, count=1, flags=re.DOTALL)
    start = min((place for place in (body.find("{"), body.find("[")) if place >= 0), default=-1)
    if start < 0:
        declined = _TALK.search(body)
        return [], (("refused", declined[0]) if declined else ("malformed_json", "there is no object in it"))
    try:
        value, _ = json.JSONDecoder().raw_decode(body, start)
    except (ValueError, RecursionError) as error:
        cut = ", cut off at `max_tokens`" if finish_reason == "length" else ""
        return [], ("malformed_json", f"{type(error).__name__}: {str(error)[:120]}{cut}")
    rows = value.get("triplets") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        return [], ("missing_keys", "`triplets` is missing or no list")
    return rows, None


def check_texts_of(caption: str, conditioning: str, target: str, *, max_words: int = 60) -> tuple[str, str] | None:
    """
    Checks one triplet that a model wrote.

    Args:
        caption (`str`): The reference caption.
        conditioning (`str`): The edit, white space collapsed.
        target (`str`): The target caption, white space collapsed.
        max_words (`int`, *optional*, defaults to 60): Longest text.

    Returns:
        `tuple[str, str]`, *optional*: a key of `REASONS` and details, or `None` where nothing is wrong.
    """
    own_fault = text_fault(caption, max_words=10**6)  # a caption in another language may be answered in it
    for name, text in (("conditioning_caption", conditioning), ("target_caption", target)):
        fault = text_fault(text, max_words=max_words)
        if fault and fault != own_fault:
            return _REASON_OF.get(fault, "non_text"), f"{name}: {fault}: {text[:80]}"
        found = _echo(text, caption)
        if found:
            return "echo", f"{name}: {found}"
        found = _no_text(text, caption)
        if found:
            return "non_text", f"{name}: {found}"
    if _bare(target) == _bare(caption):
        return "identical", "the target caption is the reference caption"
    if _bare(conditioning) in (_bare(caption), _bare(target)):
        return "identical", "the edit is one of the captions"
    # One after the other: a strange edit must not hide behind a long target.
    found = _other_language(caption, target) or _other_language(caption, conditioning)
    if found:
        return "wrong_language", found
    strange = sorted(_numbers(conditioning) - _numbers(caption) - _numbers(target))
    if strange:
        return "number_mismatch", f"the edit says {', '.join(strange)}"
    return None


def _bare(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _echo(text: str, caption: str) -> str | None:
    talk = _TALK.search(text)
    if talk and talk[0].lower() not in caption.lower():
        return talk[0]
    bare = _bare(text)
    if bare in _EXAMPLE_TARGETS and _bare(caption) not in _EXAMPLE_CAPTIONS:
        return "the target of an example"
    words = bare.split()
    runs = {" ".join(words[start : start + _RUN]) for start in range(len(words) - _RUN + 1)}
    said = next((run for run in sorted(runs) if run in _TASK_WORDS), None)
    return said if said and said not in _bare(caption) else None


def _no_text(text: str, caption: str) -> str | None:
    code = _CODE.search(text)
    if code and code[0] not in caption:
        return f"{code[0]!r} in it"
    letters = sum(sign.isalpha() or unicodedata.category(sign).startswith("M") for sign in text)
    solid = sum(not sign.isspace() for sign in text)
    return f"{letters} letters of {solid} characters" if letters < 0.6 * solid else None


def _script(sign: str) -> str:
    return unicodedata.name(sign, "unknown").split()[0].split("-")[0]


def _other_language(caption: str, text: str) -> str | None:
    own = {_script(sign) for sign in caption if sign.isalpha()}
    letters = [_script(sign) for sign in text if sign.isalpha()]
    others = [script for script in letters if script not in own and script != "LATIN"]
    if len(others) > 0.2 * len(letters):
        return f"written in {others[0].lower()}"
    if "LATIN" not in own and own and letters.count("LATIN") > 0.8 * len(letters):
        return "written in latin"

    def marks(words: str) -> dict[str, int]:
        found = re.findall(r"\w+", words.lower())
        return {name: sum(word in marked for word in found) for name, marked in _MARKS.items()}

    before, after = marks(caption), marks(text)
    best = max(after, key=after.get)
    # Two words at least, and none of the caption's language: one may be a name, as in "la tour".
    own_best = max(before, key=before.get)
    if after[best] >= 2 and before[own_best] and after[own_best] == 0 and before[best] == 0:
        return f"looks {best}, the caption {own_best}"
    return None


def _numbers(text: str) -> set[str]:
    """Numbers above one in a text; `one` is as often a pronoun."""
    words = re.findall(r"[a-z]+|\d+", text.lower())
    found = {str(_NUMBERS.index(word) + 2) for word in words if word in _NUMBERS}
    return found | {word.lstrip("0") or "0" for word in words if word.isascii() and word.isdigit()} - {"0", "1"}


_EXAMPLE_CAPTIONS = frozenset(_bare(caption) for caption, _ in EXAMPLES)
_EXAMPLE_TARGETS = frozenset(_bare(target) for _, edits in EXAMPLES for _, target in edits.values())
_TASK_WORDS = _bare(task_text())
