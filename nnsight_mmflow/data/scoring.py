"""How benchmarks compare what a model writes with what is right."""

from __future__ import annotations

import re

NUMBERS = dict(zip("zero one two three four five six seven eight nine ten".split(), map(str, range(11)), strict=True))
ARTICLES = {"a", "an", "the"}
LETTER = re.compile(r"^\W*(?:the\s+)?(?:answer\s*(?:is|:)\s*|option\s+)?\(?([A-J])\)?(?:[.:,)\s]|$)", re.IGNORECASE)


def as_letter(written: str, answers: tuple[str, ...]) -> float:
    """Whether the option's letter is right: the letter that the text begins with, as in "B", "(B)" or "B. a cat".

    Example:
        >>> as_letter("(B) a cat", ("B",)), as_letter("a cat", ("B",)), as_letter("The answer is C.", ("C",))
        (1.0, 0.0, 1.0)
    """
    match = LETTER.match(written.strip())
    if not match:
        return 0.0
    letter = match.group(1)
    if letter == "a" and not re.match(r"^\W*a\W*$", written.strip()):  # the article
        return 0.0
    return float(letter.upper() in answers)


def as_yes_or_no(written: str, answers: tuple[str, ...]) -> float:
    """POPE's rule: the first sentence says no if one of its words is "no" or "not", else yes.

    Example:
        >>> as_yes_or_no("There is not a dog. Yes.", ("no",))
        1.0
    """
    words = written.split(".")[0].replace(",", "").lower().split()
    said = "no" if "no" in words or "not" in words else "yes"
    return float(said in answers)


def vqa_accuracy(written: str, answers: tuple[str, ...]) -> float:
    """The VQA accuracy: over all ways to leave one person out, the mean of min(how many of the others said so / 3, 1).

    Both sides are put in the form of `normalised`.

    Example:
        >>> vqa_accuracy("Two dogs.", ("2 dogs",) * 2 + ("cats",) * 8)
        0.6
    """
    said, others = normalised(written), [normalised(answer) for answer in answers]
    if len(others) == 1:
        return float(said == others[0])
    scores = [min(sum(other == said for other in others[:i] + others[i + 1 :]) / 3, 1) for i in range(len(others))]
    return round(sum(scores) / len(scores), 10)


def normalised(text: str) -> str:
    """Lower case, without articles, punctuation (but between digits) and apostrophes, number words as digits.

    Example:
        >>> normalised("The two dogs, don't they?"), normalised("1,000.5")
        ('2 dogs dont they', '1000.5')
    """
    text = text.replace("\n", " ").replace("\t", " ").strip().lower().replace("'", "")
    text = re.sub(r"(?<=\d),(?=\d)", "", text)
    text = re.sub(r"(?<!\d)\.|\.(?!\d)", "", text)
    text = re.sub(r"[^\w\s.:]", " ", text)
    words = [NUMBERS.get(word, word) for word in text.split()]
    return " ".join(word for word in words if word not in ARTICLES)
