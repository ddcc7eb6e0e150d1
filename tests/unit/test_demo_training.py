"""How books become training sequences, and how the learning rate runs, on a book made up here."""

from pathlib import Path

import pytest
import torch

from scripts.demo_training.batches import END_ID, Sampler, train_tokenizer
from scripts.demo_training.corpus import (
    EmptyCorpus,
    Story,
    hold_out,
    is_heading,
    is_verse,
    load_corpus,
    normalise_quotes,
)
from scripts.demo_training.network import rate_factor

SENTENCE = "The fox went\r\nout to see the world, and the hen stayed at _home_ with her chickens. "
BOOK = (
    "[A Book by Nobody]\r\n\r\nTHE FOX\r\n\r\n" + SENTENCE * 8 + "\r\n\r\n   A verse about\r\n   a fox.\r\n\r\n"
    "CHAPTER II\r\n\r\n" + SENTENCE * 9 + "\r\n\r\nACT ONE\r\n\r\n" + SENTENCE * 9
)


@pytest.fixture
def stories(tmp_path: Path) -> list[Story]:
    (tmp_path / "grimm.txt").write_text(BOOK, "utf-8")
    return load_corpus(tmp_path)


def many_stories() -> list[Story]:
    return [
        Story("grimm", f"TALE {i}", [f"Tale {i}, part {j}. " + "Once more. " * 90 for j in range(4)]) for i in range(60)
    ]


def test_book_is_cut_at_headings_and_only_prose_is_kept(stories: list[Story]):
    assert [story.heading for story in stories] == ["THE FOX", "CHAPTER II"]
    assert all(set(story.text) <= set(SENTENCE) - set("\r\n_") for story in stories)


def test_only_a_telling_heading_is_a_title(stories: list[Story]):
    assert [story.title for story in stories] == ["the fox", None]


def test_folder_without_books_is_refused(tmp_path: Path):
    with pytest.raises(EmptyCorpus, match=r"no \.txt book"):
        load_corpus(tmp_path)


@pytest.mark.parametrize(
    "text", ["THE GOLDEN BIRD", "CHAPTER I. Down the Rabbit-Hole", "VOLUME II", "XIV", "IV. The Man"]
)
def test_headings_are_told_from_prose(text: str):
    assert is_heading(text)


@pytest.mark.parametrize("text", ["I went home.", "Once upon a time", "CHAPTER " + "x" * 80])
def test_prose_is_not_taken_for_a_heading(text: str):
    assert not is_heading(text)


def test_indented_lines_are_verse_but_one_long_indented_line_is_not():
    assert is_verse(["  Little caps", "  of blue"])
    assert not is_verse(["     And he ruminated long before the portrait of a man."])


def test_dialogue_is_set_in_double_quotes_and_apostrophes_stay():
    assert normalise_quotes("\u2018It\u2019s the king\u2019s,\u2019 said he.") == "\"It's the king's,\" said he."
    assert normalise_quotes("'Oh dear!' thought Alice") == '"Oh dear!" thought Alice'


def test_held_out_passages_are_in_no_story_and_nothing_else_is_lost():
    stories = many_stories()
    left, taken = hold_out(stories)
    everything = {paragraph for story in stories for paragraph in story.paragraphs}
    kept = {paragraph for story in left for paragraph in story.paragraphs}
    held_out = {paragraph for passage in taken for paragraph in passage.split("\n\n")}
    assert taken
    assert kept | held_out == everything
    assert not kept & held_out


def test_the_same_seed_draws_the_same_batches_of_whole_sequences(stories: list[Story]):
    tokenizer = train_tokenizer(stories, 300)
    first, again, other = (Sampler(stories, tokenizer, 4, 32, seed).batch() for seed in (1, 1, 2))
    assert first.shape == (4, 33)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_every_story_ends_in_one_end_token(stories: list[Story]):
    sampler = Sampler(stories, train_tokenizer(stories, 300), 4, 32, 0)
    ends = (sampler.tokens == END_ID).nonzero().flatten() + 1
    assert ends.tolist() == sampler.story_starts[1:].tolist()


def test_learning_rate_warms_up_stays_and_falls_to_zero():
    assert 0 < rate_factor(0.0) < 0.1
    assert rate_factor(0.02) == rate_factor(0.3) == 1.0
    assert rate_factor(0.5) > rate_factor(0.9) > rate_factor(1.0) == 0.0
