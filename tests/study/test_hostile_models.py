"""Folders of models, tokenizers and texts that were made to read other files, to block, or to raise anything."""

import json
import os
import shutil
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hesspec.study import load_dataset, load_weights
from hesspec.study.json_files import read_json
from hesspec.study.networks import build_network, network_digest
from hesspec.study.text_files import LARGEST_TEXT, read_documents, text_digest

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
SECONDS = 30  # for what takes less than one


@pytest.fixture(autouse=True)
def _ends():
    """Fail rather than block."""

    def blocked(*_):
        raise TimeoutError("it does not end")

    before = signal.signal(signal.SIGALRM, blocked)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small model and a tokenizer, as transformers saves them."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415 - it comes with transformers

    place = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=300, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(place / "model")
    made = Tokenizer(models.WordLevel({"[UNK]": 0, "</s>": 1, "<script>": 2, "hello": 3}, unk_token="[UNK]"))  # noqa: S106
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="[UNK]")  # noqa: S106
    fast.save_pretrained(place / "tokenizer")
    return place


@pytest.fixture
def model(saved, tmp_path):
    return Path(shutil.copytree(saved / "model", tmp_path / "model"))


@pytest.fixture
def tokenizer(saved, tmp_path):
    return Path(shutil.copytree(saved / "tokenizer", tmp_path / "tokenizer"))


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("hello world " * 200)
    return tmp_path / "text"


def build(folder: Path) -> nn.Module:
    return build_network(f"transformers:{folder}", channels=1, classes=256, size=16)


# Pipes, devices and files without end


SPECIAL: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("make", SPECIAL.values(), ids=SPECIAL)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "generation_config.json"])
def test_pipes_and_devices_in_a_model_do_not_block(model, make, name):
    (model / name).unlink(missing_ok=True)
    make(model / name)
    network_digest(f"transformers:{model}")
    with pytest.raises(
        (ValueError, FileNotFoundError), match=r"is not a file but a pipe, a device|has no config\.json"
    ):
        build(model)


@pytest.mark.parametrize("make", SPECIAL.values(), ids=SPECIAL)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "vocab.txt"])
def test_pipes_and_devices_beside_a_tokenizer_do_not_block(tokenizer, text, make, name):
    (tokenizer / name).unlink(missing_ok=True)
    make(tokenizer / name)
    text_digest(f"text:{text}", tokenizer)
    with pytest.raises(ValueError, match=f"{name}' is not a file but a pipe, a device or a socket"):
        load_dataset(f"text:{text}", "train", size=8, tokenizer=tokenizer)


def test_folders_and_broken_links_beside_a_tokenizer_have_no_digest(tokenizer, text):
    expected = text_digest(f"text:{text}", tokenizer)
    (tokenizer / "folder.json").mkdir()
    (tokenizer / "broken.json").symlink_to("nowhere")
    assert text_digest(f"text:{text}", tokenizer) == expected


def test_no_more_of_a_text_is_read_than_the_system_states(text, monkeypatch):
    # As of /proc/kmsg, whose size is 0 and whose readers wait.
    (text / "endless.txt").symlink_to("/proc/self/environ")
    monkeypatch.setenv("SECRET", "of this process")
    documents = read_documents(f"text:{text}", "train")
    assert {Path(path).name: len(content) for path, content in documents} == {"a.txt": 2160}
    digest = text_digest(f"text:{text}")
    monkeypatch.setenv("SECRET", "another one")
    assert text_digest(f"text:{text}") == digest


def test_a_text_that_is_too_large_has_no_digest(text):
    with (text / "huge.txt").open("wb") as file:
        file.truncate(1 << 42)
    assert text_digest(f"text:{text}") == ""
    with pytest.raises(ValueError, match=f"may have at most {LARGEST_TEXT:,}"):
        load_dataset(f"text:{text}", "train")


@pytest.mark.parametrize("make", SPECIAL.values(), ids=SPECIAL)
def test_pipes_and_devices_are_no_records(tmp_path, make):
    make(tmp_path / "model.safetensors.index.json")
    with pytest.raises(ValueError, match="is not a file"):
        read_json(tmp_path / "model.safetensors.index.json")
    with pytest.raises(ValueError, match="is not a file"):
        load_weights(nn.Linear(2, 3), tmp_path)


# Weights elsewhere, and in other formats


@pytest.mark.parametrize("place", ["../secret.safetensors", "{folder}/secret.safetensors", "weights.bin"])
def test_an_index_of_a_model_names_safetensors_in_its_folder_only(model, tmp_path, monkeypatch, place):
    tensors = load_file(model / "model.safetensors")
    save_file(tensors, tmp_path / "secret.safetensors", metadata={"format": "pt"})
    torch.save(tensors, model / "weights.bin")
    (model / "model.safetensors").rename(model / "other.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(tensors, place.format(folder=tmp_path))}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was called"))
    with pytest.raises(ValueError, match=r"only files \*\.safetensors in its folder are read"):
        build(model)


def test_code_of_a_model_and_a_tokenizer_is_never_run(model, tokenizer, text, tmp_path):
    code = f"open({str(tmp_path / 'executed')!r}, 'w').close()\nclass Evil: pass\n"
    names = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
    (model / "custom_generate").mkdir()
    for file in (model / "evil.py", tokenizer / "evil.py", model / "custom_generate" / "generate.py"):
        file.write_text(code)
    for kind in ("gpt2", "unheard_of"):
        for file in (model / "config.json", tokenizer / "tokenizer_config.json"):
            content = json.loads(file.read_text()) | {"auto_map": names, "model_type": kind}
            if kind != "gpt2":
                content["tokenizer_class"] = "Evil"
            file.write_text(json.dumps(content))
        for read in (
            lambda: build(model),
            lambda: load_dataset(f"text:{text}", "train", size=8, tokenizer=tokenizer),
        ):
            if kind == "gpt2":
                read()
            else:
                with pytest.raises(ValueError, match="custom code"):
                    read()
    assert not (tmp_path / "executed").exists()


def test_a_file_beyond_memory_is_refused_with_its_size(tmp_path):
    tensors = {
        "weight": {"dtype": "F32", "shape": [3, 2], "data_offsets": [0, 24]},
        "bias": {"dtype": "F32", "shape": [3], "data_offsets": [24, 36]},
    }
    size = 1 << 43  # ext4 allows files of 16 TB
    tensors["other"] = {"dtype": "F32", "shape": [size // 4], "data_offsets": [36, 36 + size]}
    header = json.dumps(tensors).encode()
    with (tmp_path / "a.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 36 + size)
    with pytest.raises(ValueError, match=r"a\.safetensors' has 8,796 GB, which cannot be mapped into memory"):
        load_weights(nn.Linear(2, 3), tmp_path / "a.safetensors")


def test_an_entry_that_is_a_part_of_itself_is_refused(tmp_path):
    content: dict[str, object] = {}
    content["state_dict"] = {"model": content}
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="is not a state dict: its entry '(state_dict|model)' is an object of type"):
        load_weights(nn.Linear(2, 3), tmp_path / "a.ckpt")


def test_advice_about_a_damaged_index_is_not_that_about_a_study(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ValueError, match=r"is damaged: .*\. Save or download the weights again\.$"):
        load_weights(nn.Linear(2, 3), tmp_path)


# Settings that make transformers raise anything


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n_embd", 0),
        ("n_head", 0),
        ("n_inner", -3),
        ("vocab_size", "many"),
        ("n_layer", float("inf")),
        ("model_type", ["gpt2"]),
        ("model_type", "../other"),
        ("activation_function", "eval"),
        ("dtype", "os.system"),
    ],
)
def test_configurations_that_no_model_has_are_said(model, key, value):
    config = json.loads((model / "config.json").read_text()) | {key: value}
    (model / "config.json").write_text(json.dumps(config))
    for place in (model, model / "config.json"):
        with pytest.raises(ValueError, match="transformers cannot make a causal language model of"):
            build(place)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_max_length": "x"}, "has no tokenizer that transformers can load|cannot split"),
        ({"eos_token": {"a": 1}}, "has no tokenizer that transformers can load"),
    ],
)
def test_settings_that_no_tokenizer_has_are_said(tokenizer, text, change, message):
    file = tokenizer / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load_dataset(f"text:{text}", "train", size=8, tokenizer=tokenizer)


@pytest.mark.parametrize("number", [10**9, 3 * 10**9])
def test_numbers_of_tokens_ask_for_no_memory(tokenizer, text, number):
    content = json.loads((tokenizer / "tokenizer.json").read_text())
    content["model"]["vocab"]["hello"] = number
    (tokenizer / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"targets run from 0 to 1000000000|has a token 3,000,000,000"):
        load_dataset(f"text:{text}", "train", size=8, tokenizer=tokenizer)
