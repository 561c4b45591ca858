"""ScienceQA, A-OKVQA, TextVQA and POPE in their published formats, and how each of them counts an answer as right.

From a local file, or rows as the `datasets` library gives them. Source: the benchmarks'
own evaluation rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import DataError
from nnsight_mmflow.data.questions import Question, prompts_of
from nnsight_mmflow.data.scoring import as_letter, as_yes_or_no, vqa_accuracy
from nnsight_mmflow.files.user_files import bad_text, checked_folder, in_folder, json_value, read_text

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt

LETTERS = "ABCDEFGHIJ"
CHOOSE = "Answer with the option's letter from the given choices directly."
SHORT = "Answer the question using a single word or phrase."
Rows = Iterable[Mapping[str, object]]


@dataclass(frozen=True)
class Benchmark:
    """Questions of a benchmark.

    Attributes:
        name: of the benchmark, such as "POPE".
        questions: with the prompt's text and the answer that stands for all.
        answers: by key, all answers that count.
        instruction: what is put behind each question.
        score: (written, answers) to how right it is, 0 to 1.
    """

    name: str
    questions: tuple[Question, ...]
    answers: Mapping[str, tuple[str, ...]]
    instruction: str
    score: Callable[[str, tuple[str, ...]], float]

    def prompts(self, graph: Graph, **kwargs: object) -> list[Prompt]:
        """The questions as prompts; keyword arguments go to graph.prompt."""
        return prompts_of(graph, self.questions, **{"instruction": self.instruction, **kwargs})  # type: ignore[arg-type]

    def judge(self, prompt: Prompt, written: str) -> float:
        """How right an answer is, by the benchmark's own rule: for `mmf.prune_report(..., judge=benchmark.judge)`."""
        return self.score(written, self.answers[prompt.key])


def read_benchmark(
    name: str,
    source: str | PathLike[str] | Rows,
    images: str | PathLike[str] | None = None,
    *,
    split: str = "test",
    limit: int | None = None,
) -> Benchmark:
    """A Benchmark from its published file, or from rows that hold the same fields.

    Args:
        name: "scienceqa" (problems.json; questions with a picture only), "aokvqa" (aokvqa_v1p0_val.json, multiple
            choice), "textvqa" (TextVQA_0.5.1_val.json) or "pope" (JSON lines).
        source: the file, or rows, such as a `datasets.Dataset` (whose `image` column holds the pictures).
        images: where pictures lie: ScienceQA's folder of splits, COCO's folder, TextVQA's train_images. Not needed
            where the rows hold pictures.
        split: which part of ScienceQA's file; other benchmarks have one part a file.
        limit: how many questions to read, from the first on; None: all.

    Raises:
        DataError: an unknown benchmark, a file or row that is not in its format, or a picture that is missing.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> row = {"question_id": 1, "image": "a.jpg", "text": "Is there a dog in the image?", "label": "no"}
        >>> pope = mmf.data.read_benchmark("pope", [row])
        >>> pope.score("No, there is not.", ("no",))
        1.0
    """
    if name not in READERS:
        raise DataError(f"there is no benchmark {name!r}; there are {', '.join(READERS)}.")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise DataError(f"limit is how many questions, from 1, not {limit!r}.")
    folder = checked_folder(images)
    read, instruction, score = READERS[name]
    rows = _rows(name, source, split) if isinstance(source, str | PathLike) else enumerate(source)
    questions: list[Question] = []
    answers: dict[str, tuple[str, ...]] = {}
    for number, row in rows:
        if limit is not None and len(questions) == limit:
            break
        try:
            asked = read(str(number), row, split)
        except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
            raise DataError(
                f"{name}, row {number}: not in the published format ({type(error).__name__}: {error})."
            ) from None
        if asked is None:
            continue
        key, image, text, right = asked
        wrong = [written for written in (key, text, *right) if not isinstance(written, str) or bad_text(written)]
        if wrong or not right:
            raise DataError(
                f"{name}, row {number}: {wrong[0]!r:.80} is no text." if wrong else f"{name}, row {number}: no answer."
            )
        if key in answers:
            raise DataError(
                f"{name}, row {number}: question {key!r} came before, so answers could not be told apart by their key."
                " Read one part (category, split) at a time."
            )
        if isinstance(image, str) and folder is not None:
            image = _there(folder, image, f"{name}, row {number}")
        questions.append(Question(key, image, text, right[0], kind=name))  # type: ignore[arg-type]
        answers[key] = right
    if not questions:
        raise DataError(
            f"{name}: {source if isinstance(source, str | PathLike) else 'the rows'} hold no usable question."
        )
    return Benchmark(name, tuple(questions), answers, instruction, score)


def _there(folder: Path, image: str, row: str) -> Path:
    """The picture in its folder."""
    try:
        path = in_folder(folder, image)
        if path.is_file():
            return path
    except (DataError, OSError) as error:
        raise DataError(f"{row}: {error}.") from None
    raise DataError(f"{row}: there is no picture {str(path)!r}.")


Made = tuple[str, object, str, tuple[str, ...]]  # key, picture or its path, text, answers


def _science(number: str, row: Mapping, split: str) -> Made | None:
    if not row["image"]:
        return None
    image = row["image"] if not isinstance(row["image"], str) else f"{split}/{number}/{row['image']}"
    context = f"Context: {row['hint']}\n" if row.get("hint") else ""
    text = f"{context}{_asked(row)}\n{_lettered(row['choices'])}"
    return number, image, text, (_letter(row["answer"], row["choices"]),)


def _aokvqa(number: str, row: Mapping, split: str) -> Made | None:
    image = row.get("image") or f"{int(row['image_id']):012d}.jpg"
    text = f"{_asked(row)}\n{_lettered(row['choices'])}"
    return str(row["question_id"]), image, text, (_letter(row["correct_choice_idx"], row["choices"]),)


def _textvqa(number: str, row: Mapping, split: str) -> Made | None:
    image = row.get("image") or f"{row['image_id']}.jpg"
    return str(row["question_id"]), image, _asked(row), tuple(str(answer) for answer in _listed(row["answers"]))


def _pope(number: str, row: Mapping, split: str) -> Made | None:
    text, label = (
        _asked(row, "text" if row.get("text") else "question"),
        str(row.get("label") or row["answer"]).strip().lower(),
    )
    if label not in ("yes", "no"):
        raise ValueError(f"the label is {label!r}, not yes or no")
    return str(row["question_id"]), row["image"], text, (label,)


def _asked(row: Mapping, name: str = "question") -> str:
    text = row[name]
    if not isinstance(text, str):
        raise TypeError(f"{name} is {type(text).__name__}, not text")
    return text


def _listed(values: object) -> Iterable[str]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{values!r:.80} is no list of texts")
    return values


def _lettered(choices: Iterable[str]) -> str:
    return "\n".join(f"{LETTERS[i]}. {choice}" for i, choice in enumerate(_listed(choices)))


def _letter(number: int, choices: Sequence[str]) -> str:
    """The letter of the right choice, counted from 0."""
    if isinstance(number, bool) or int(number) != number or not 0 <= number < len(choices):
        raise ValueError(f"the answer is choice {number!r} of {len(choices)}, counted from 0")
    return LETTERS[int(number)]


def _rows(name: str, source: str | PathLike[str], split: str) -> Iterable[tuple[object, Mapping]]:
    path = Path(source)
    try:
        text = read_text(path)
        if name == "pope":
            return [(line, _line(line, written)) for line, written in enumerate(text.split("\n")) if written.strip()]
        read = json_value(text)
    except DataError as error:
        raise DataError(f"{name}: {str(path)!r} cannot be read ({error}).") from None
    if name == "scienceqa" and isinstance(read, dict):
        return [(key, row) for key, row in read.items() if isinstance(row, dict) and row.get("split", split) == split]
    rows = read.get("data") if isinstance(read, dict) else read
    if not isinstance(rows, list):
        raise DataError(f"{name}: {str(path)!r} holds no list of questions.")
    return list(enumerate(rows))


def _line(number: int, text: str) -> Mapping:
    try:
        read = json_value(text)
    except DataError as error:
        raise DataError(f"row {number} {error}") from None
    if not isinstance(read, dict):
        raise DataError(f"row {number} is {type(read).__name__}, not an object with fields")
    return read


READERS: dict[str, tuple[Callable[[str, Mapping, str], Made | None], str, Callable[[str, tuple[str, ...]], float]]] = {
    "scienceqa": (_science, CHOOSE, as_letter),
    "aokvqa": (_aokvqa, CHOOSE, as_letter),
    "textvqa": (_textvqa, SHORT, vqa_accuracy),
    "pope": (_pope, SHORT, as_yes_or_no),
}
