"""Text as data: files of a split, packed sequences of bytes or tokens, and bad input."""

import itertools
import socket

import pytest
import torch

from hesspec.study import Dataset, load_dataset
from hesspec.study.text_files import read_documents, text_digest


@pytest.fixture
def folder(tmp_path):
    """A folder of forty texts of 40 bytes, a hidden one and a subfolder."""
    place = tmp_path / "texts"
    (place / "below").mkdir(parents=True)
    (place / ".hidden").write_text("not seen")
    for number in range(40):
        where = place / "below" if number % 4 == 0 else place
        (where / f"{number:02}.txt").write_text(f"text {number:02} " * 5)
    return place


@pytest.fixture
def tokenizer(tmp_path):
    """A folder with a tokenizer of words, whose end of sequence is token 1."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415 - it comes with transformers

    words = {"[UNK]": 0, "</s>": 1, "text": 2, **{f"{number:02}": number + 3 for number in range(40)}}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))  # noqa: S106 - no password
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="[UNK]")  # noqa: S106
    fast.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def stream(documents):
    return b"".join(content + b"\0" for _, content in documents)


# Splits


def test_the_standard_library_is_split_by_file_and_has_no_tests():
    train, test = (dict(read_documents("python-stdlib", split)) for split in ("train", "test"))
    assert not set(train) & set(test)
    share = sum(map(len, test.values())) / sum(len(text) for text in [*train.values(), *test.values()])
    assert 0.1 <= share <= 0.15
    assert all(path.endswith(".py") for path in [*train, *test])
    assert not [path for path in [*train, *test] if "/test/" in path or "site-packages" in path]
    assert len(train) + len(test) > 500


def test_a_folder_is_split_by_the_paths_below_it_wherever_it_is(folder, tmp_path):
    folder.rename(moved := tmp_path / "elsewhere")
    folder.mkdir()
    for file in moved.rglob("*.txt"):
        copy = folder / file.relative_to(moved)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(file.read_bytes())
    here, there = ([content for _, content in read_documents(f"text:{at}", "test")] for at in (folder, moved))
    assert here == there
    assert 4 <= len(here) <= 6
    train = [content for _, content in read_documents(f"text:{folder}", "train")]
    assert len(train) + len(here) == 40


def test_a_single_file_is_cut_after_nine_tenths_but_not_within_a_character(tmp_path):
    file = tmp_path / "one.txt"
    text = "a" * 89 + "é" * 6  # byte 90 is the second of a character
    file.write_text(text, encoding="utf-8")
    parts = [read_documents(f"text:{file}", split)[0][1].decode() for split in ("train", "test")]
    assert "".join(parts) == text
    assert len(parts[1].encode()) in range(10, 13)


def test_files_of_which_none_is_small_enough_are_cut(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name * 50)
    train, test = (read_documents(f"text:{tmp_path}", split) for split in ("train", "test"))
    assert [content for _, content in train] == [b"a" * 50, b"b" * 40]
    assert [content for _, content in test] == [b"b" * 10]


def test_a_digest_is_that_of_paths_and_contents(folder, tokenizer):
    before = text_digest(f"text:{folder}"), text_digest(f"text:{folder}", tokenizer)
    assert before[0] != before[1]
    assert text_digest("text:/no/such/place") == text_digest(f"text:{folder}", folder / "none") == ""
    (folder / "01.txt").write_text("other")
    assert text_digest(f"text:{folder}") != before[0]


# Sequences


def test_sequences_are_the_stream_and_targets_the_bytes_that_follow(folder):
    data = load_dataset(f"text:{folder}", "train", size=16)
    whole = stream(read_documents(f"text:{folder}", "train"))
    used = len(data) * 16
    assert bytes(data.inputs.flatten().tolist()) == whole[:used]
    assert bytes(data.targets.flatten().tolist()) == whole[1 : used + 1]
    assert len(whole) - 16 <= used < len(whole)
    assert (data.classes, data.size, data.channels, data.terms) == (256, 16, 1, used)
    assert (data.class_names[0], data.class_names[10], data.class_names[97], data.class_names[200]) == (
        r"\x00",
        r"\n",
        "a",
        r"\xc8",
    )


def test_numbers_of_sequences_nest_and_follow_the_seed(folder):
    parts = [load_dataset(f"text:{folder}", "train", size=8, samples_per_class=n).inputs for n in (3, 10, 40)]
    for small, large in itertools.pairwise(parts):
        assert torch.equal(large[: len(small)], small)
    other = load_dataset(f"text:{folder}", "train", size=8, samples_per_class=10, seed=1).inputs
    assert not torch.equal(other, parts[1])


def test_a_tokenizer_gives_its_tokens_and_ends_documents(folder, tokenizer):
    data = load_dataset(f"text:{folder}", "test", size=11, tokenizer=tokenizer)
    documents = read_documents(f"text:{folder}", "test")
    expected = []
    for _, content in documents:
        words = content.decode().split()
        expected += [2 if word == "text" else int(word) + 3 for word in words] + [1]
    assert data.inputs.flatten().tolist() == expected[: len(data) * 11]
    assert data.classes == 43
    assert data.class_names[:3] == ("[UNK]", "</s>", "text")


def test_ignored_targets_do_not_count():
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    targets = torch.tensor([[0, -100, 1], [-100, -100, 1]])
    data = Dataset(name="own", split="train", inputs=tokens, targets=targets, class_names=("a", "b"))
    assert (data.terms, data.groups, data.is_sequences) == (3, 1, True)
    with pytest.raises(ValueError, match="all of them are -100"):
        Dataset(name="own", split="train", inputs=tokens, targets=targets * 0 - 100, class_names=("a", "b"))
    with pytest.raises(ValueError, match="targets run from -1 to 1"):
        Dataset(name="own", split="train", inputs=tokens, targets=targets.clamp(-1), class_names=("a", "b"))


# Bad input


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text:none.txt", "There is no file or folder 'none.txt' .*relative to"),
        ("text:", "There is no file or folder '' "),
        ("text:empty.txt", "There is no text in .*empty.txt': it is empty"),
        ("text:empty", "There is no text in .*empty': it has no files"),
        ("text:short.txt", "train split .* has 10 tokens, fewer than a sequence of 128 .*smaller size"),
    ],
)
def test_text_that_is_not_there_or_too_short_is_said(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text("nine byte")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_dataset(name, "train")


def test_too_many_sequences_say_how_many_there_are(folder):
    with pytest.raises(ValueError, match=r"samples_per_class=1000\) must be from 1 to \d+, which the split train of"):
        load_dataset(f"text:{folder}", "train", size=64, samples_per_class=1000)
    with pytest.raises(ValueError, match="size=0 is the number of tokens"):
        load_dataset(f"text:{folder}", "train", size=0)


def test_a_missing_tokenizer_and_a_foreign_folder_are_said(folder, tokenizer):
    with pytest.raises(FileNotFoundError, match="no folder 'gpt2' with a tokenizer.*nothing is downloaded"):
        load_dataset(f"text:{folder}", "train", tokenizer="gpt2")
    with pytest.raises(ValueError, match="has no tokenizer that transformers can load"):
        load_dataset(f"text:{folder}", "train", tokenizer=folder)
    with pytest.raises(ValueError, match="'digits' is not text, and takes no tokenizer"):
        load_dataset("digits", "train", tokenizer=tokenizer)


def test_a_file_that_is_no_text_needs_bytes(folder, tokenizer):
    for file in folder.rglob("*.txt"):
        file.write_bytes(b"caf\xe9 text 01 " * 10)
    with pytest.raises(ValueError, match=r"is not a text in UTF-8 \(byte 3: .*Leave the tokenizer out"):
        load_dataset(f"text:{folder}", "train", size=8, tokenizer=tokenizer)
    assert load_dataset(f"text:{folder}", "train", size=8).classes == 256


def test_the_network_is_never_tried(folder, tokenizer, monkeypatch):
    def refuse(*_arguments, **_keywords):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    assert load_dataset(f"text:{folder}", "train", size=8, tokenizer=tokenizer).classes == 43
    with pytest.raises(FileNotFoundError):
        load_dataset(f"text:{folder}", "train", size=8, tokenizer="openai-community/gpt2")
