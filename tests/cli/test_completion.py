"""Names that a shell completes, without waiting for PyTorch."""

import os
import subprocess
import sys

import pytest

from hesspec.backend.presets import presets
from hesspec.cli.app import COMMANDS
from hesspec.cli.completion import BLOCKS, DATA, NETWORKS
from hesspec.matrices import MATRICES


def complete(words):
    """What bash offers for the last word, and whether PyTorch was imported."""
    code = (
        "import sys\nfrom hesspec.__main__ import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
        "sys.stderr.write('torch' if 'torch' in sys.modules else 'quick')"
    )
    settings = {
        "_HESSPEC_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    done = subprocess.run(  # noqa: S603 - this interpreter
        [sys.executable, "-c", code], env=os.environ | settings, capture_output=True, text=True, check=False
    )
    return done.stdout.split(), done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["hesspec", "s"], ["show", "structure", "study"]),
        (["hesspec", "measure", "vgg1"], ["vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"]),
        (["hesspec", "measure", "small_cnn", "--data", "cif"], ["cifar10", "cifar100"]),
        (["hesspec", "measure", "small_cnn", "--matrix", "g-"], ["g-class", "g-cross", "g-same", "g-within"]),
        (["hesspec", "show", "a.nc", "--kind", "s"], ["scree"]),
        (["hesspec", "study", "digits-"], ["digits-quick"]),
    ],
)
def test_names_are_completed_without_pytorch(words, expected):
    found, note = complete(words)
    assert sorted(found) == expected
    assert note == "quick"


def test_the_names_are_those_that_exist():
    from hesspec.applications.blocks.partition import KINDS  # noqa: PLC0415
    from hesspec.study.datasets import DATASETS  # noqa: PLC0415
    from hesspec.study.networks.build import NETWORKS as BUILT  # noqa: PLC0415

    assert [name for name in NETWORKS if not name.endswith(":")] == list(BUILT)
    assert tuple(name for name in DATA if not name.endswith(":")) == DATASETS
    assert sorted(BLOCKS) == sorted(KINDS)
    assert presets()
    assert MATRICES
    assert COMMANDS


def test_the_shell_is_told_by_an_option(hesspec):
    result = hesspec("--help")
    assert "--install-completion" in result.output
    assert "--show-completion" in result.output
