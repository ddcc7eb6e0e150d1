"""Stories read from a folder of plain-text books.

Knows how headings, verse, notes and dialogue are set in the etexts. Does not know tokens.

Invariants:
1. A passage that `hold_out` returns is no longer in any story.
2. Dialogue stands in straight double quotes, whatever the book prints.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

UNWANTED_SECTIONS = ("SCENE", "ACT ", "ETYMOLOGY", "EXTRACTS", "CONTENTS", "PREPARER")
UNWANTED_PARAGRAPHS = ("[", "Produced by", "End of Project", "The Brothers Grimm, Jacob")
NUMBERED = re.compile(r"(CHAPTER|VOLUME) |[IVXLC]+\.?( [A-Z][\w' ]*)?$")
SINGLE_QUOTED = re.compile("(?<!\\w)['\u2018](?=\\w)|(?<=[.,!?;:-])['\u2019](?!\\w)|[\u201c\u201d]")
LONGEST_HEADING = 80
SHORTEST_OPENING = 60
SHORTEST_STORY = 400
HELD_OUT_EVERY = 50
PASSAGE_CHARS = 1500


class EmptyCorpus(Exception):
    """The folder holds no book."""

    def __init__(self, corpus: Path) -> None:
        super().__init__(f"no .txt book in {corpus}")


@dataclass(slots=True)
class Story:
    """One section of a book: the heading it stands under and its paragraphs."""

    book: str
    heading: str = ""
    paragraphs: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The paragraphs, set apart by blank lines."""
        return "\n\n".join(self.paragraphs)

    @property
    def title(self) -> str | None:
        """What the story is called, in small letters, where the heading is more than a number."""
        return None if not self.heading or NUMBERED.match(self.heading) else self.heading.lower()


def is_heading(paragraph: str) -> bool:
    """Tell a chapter or story heading from prose."""
    return len(paragraph) < LONGEST_HEADING and bool(paragraph.isupper() or NUMBERED.match(paragraph))


def is_verse(lines: list[str]) -> bool:
    """Tell indented verse, signatures and tables from prose."""
    return all(line.startswith("  ") for line in lines) and (len(lines) > 1 or len(lines[0].strip()) < 30)


def clean(paragraph: str) -> str:
    """Join lines and drop marks that are not text."""
    return re.sub(r"\s+", " ", re.sub(r"[_*]", "", paragraph)).strip()


def normalise_quotes(text: str) -> str:
    """Print dialogue in double quotes, also in the books that print it in single ones."""
    if text.count('"') < 200:
        text = SINGLE_QUOTED.sub('"', text)
    return re.sub("[\u2018\u2019]", "'", text)


def read_stories(path: Path) -> Iterator[Story]:
    """Yield the sections of one book, those without prose included."""
    story = Story(path.stem)
    for raw in re.split(r"\n\s*\n", normalise_quotes(path.read_text("utf-8"))):
        paragraph = raw.strip()
        if not re.search(r"[A-Za-z]", paragraph) or paragraph.startswith(UNWANTED_PARAGRAPHS):
            continue
        if is_heading(paragraph):
            yield story
            story = Story(path.stem, paragraph)
        elif not is_verse(raw.strip("\n").split("\n")) and (story.paragraphs or len(paragraph) > SHORTEST_OPENING):
            story.paragraphs.append(clean(paragraph))
    yield story


def load_corpus(corpus: Path) -> list[Story]:
    """Read every book of the folder, leaving out sections that are not prose or too short to be one.

    Raises:
        EmptyCorpus: the folder holds no `.txt` file.
    """
    paths = sorted(corpus.glob("*.txt"))
    if not paths:
        raise EmptyCorpus(corpus)
    stories = (story for path in paths for story in read_stories(path))
    return [s for s in stories if len(s.text) > SHORTEST_STORY and not s.heading.startswith(UNWANTED_SECTIONS)]


def passages(paragraphs: list[str]) -> Iterator[list[str]]:
    """Cut a story into runs of whole paragraphs of about `PASSAGE_CHARS` characters."""
    passage: list[str] = []
    for paragraph in paragraphs:
        passage.append(paragraph)
        if sum(map(len, passage)) >= PASSAGE_CHARS:
            yield passage
            passage = []
    if passage:
        yield passage


def hold_out(stories: list[Story]) -> tuple[list[Story], list[str]]:
    """Split off every fiftieth passage; return what is left of the stories, and those passages."""
    left: list[Story] = []
    taken: list[str] = []
    num_passages = 0
    for story in stories:
        kept = Story(story.book, story.heading)
        for passage in passages(story.paragraphs):
            num_passages += 1
            if num_passages % HELD_OUT_EVERY == 0:
                taken.append("\n\n".join(passage))
            else:
                kept.paragraphs += passage
        if kept.paragraphs:
            left.append(kept)
    return left, taken
