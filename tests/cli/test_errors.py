"""What goes wrong ends with one line that says what to do, and never with a traceback."""

import re

import numpy as np
import pytest
import torch

from hesspec.study import small_cnn

MEASURE = ("measure", "own:linear", "--data", "digits")


def check(result, code, *parts):
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert result.stdout == ""
    text = " ".join(result.stderr.replace("│", " ").split())
    for part in parts:
        assert part in text
    if code == 1:
        assert result.stderr.splitlines()[-1].startswith("Error: ")


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (("mesure",), 2, "No such command 'mesure'. Did you mean 'measure'?"),
        (("measure", "--stepps", "3"), 2, "No such option: --stepps (Possible options: --steps)"),
        (("show", "--kin", "x"), 2, "No such option: --kin (Possible options: --kind)"),
        (("measure", "own:linear"), 2, "Missing option '--data'"),
        (("measure", "smal_cnn", "--data", "digits"), 1, "There is no network 'smal_cnn'; did you mean 'small_cnn'?"),
        (
            ("measure", "own:liner", "--data", "digits"),
            1,
            "Module 'own' has no network 'liner'; did you mean 'linear'?",
        ),
        (("measure", "onw:linear", "--data", "digits"), 1, "There is no module 'onw' for the network"),
        (("measure", "own:linear", "--data", "digit"), 1, "There is no data set 'digit'; did you mean 'digits'?"),
        (("measure", "own:linear", "--data", "own:point"), 1, "has no data set 'point'; did you mean 'points'?"),
        ((*MEASURE, "--split", "tran"), 1, "There is no split 'tran'; did you mean 'train'?"),
        ((*MEASURE, "--matrix", "hesian"), 1, "There is no matrix 'hesian'; did you mean 'hessian'?"),
        ((*MEASURE, "--dtype", "flaot64"), 1, "There is no dtype 'flaot64'; did you mean 'float64'?"),
        ((*MEASURE, "--device", "cpuu"), 1, "There is no device 'cpuu'; did you mean 'cpu'?"),
        ((*MEASURE, "--device", "cuda:99"), 1, "There is no device 'cuda:99': PyTorch finds"),
        ((*MEASURE, "--steps", "many"), 1, "--steps is 'many'; it must be a positive integer or 'auto'."),
        ((*MEASURE, "--steps", "0"), 1, "--steps is '0'"),
        ((*MEASURE, "--probes", "0"), 2, "'--probes'"),
        ((*MEASURE, "--batch-size", "0"), 2, "'--batch-size'"),
        ((*MEASURE, "--seed", "-1"), 2, "'--seed'"),
        ((*MEASURE, "--samples-per-class", "140"), 1, "samples_per_class=140 is too large: class '8' has 139"),
        ((*MEASURE, "--params", "1.wieght"), 1, "'1.wieght'; did you mean '1.weight'?"),
        ((*MEASURE, "--weights", "none.safetensors"), 1, "There is no file 'none.safetensors'"),
        ((*MEASURE, "--weights", "own.py"), 1, "suffix '.py'"),
        ((*MEASURE, "--out", "own.py"), 1, "File exists: 'own.py'."),
        (("measure", "own:two_outputs", "--data", "digits"), 1, "has shape (1, 2), but it must be (1, 10)"),
        (("measure", "vgg11_bn", "--data", "digits"), 1, "needs at least 32x32 pixels"),
        (("measure", "small_cnn", "--data", "mnist"), 1, "no folder was given"),
        (("measure", "small_cnn", "--data", "mnist", "--data-folder", "none"), 1, "is not in 'none'"),
        (("show",), 2, "Missing argument"),
        (("show", "none.nc"), 1, "There is no file 'none.nc'"),
        (("show", "own.py"), 1, "'own.py' is not a NetCDF file"),
        (("report", "none"), 1, "There is no folder 'none'"),
        (("demo", "--out", "."), 1, "The folder '.' is not empty; delete it, or choose another one."),
        (("demo", "--out", "own.py"), 1, "'own.py' is a file"),
        (("demo", "--sed", "1"), 2, "(Possible options: --seed)"),
    ],
)
def test_mistakes_are_named(hesspec, here, arguments, code, part):
    check(hesspec(*arguments), code, part)
    assert not list(here.rglob("*.nc"))


def test_weights_of_another_network(hesspec, here):
    torch.save(small_cnn(1, 10, 8).state_dict(), here / "other.pt")
    check(
        hesspec(*MEASURE, "--weights", "other.pt"), 1, "'other.pt' do not fit the network: the network lacks '0.weight'"
    )


def test_weights_that_are_not_finite(hesspec, here):
    torch.save({"1.weight": torch.full((10, 64), np.nan), "1.bias": torch.zeros(10)}, here / "broken.pt")
    check(hesspec(*MEASURE, "--weights", "broken.pt"), 1, "The loss of batch 0 is nan; check its inputs")
    assert list((here / "spectra").iterdir()) == []


def test_too_little_memory(hesspec):
    arguments = (*MEASURE, "--samples-per-class", "1", "--memory")
    check(
        hesspec(*arguments, "300kB", "--basis", "full"), 1, "The Krylov basis of 64 vectors of 650 numbers, stored as"
    )
    check(hesspec(*arguments, "1kB"), 1, "One sample is predicted to need")
    check(hesspec(*arguments, "lots"), 1, "memory='lots' is not a valid size; use a size such as")


def test_errors_of_cuda_are_a_line_too(hesspec, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB.")

    monkeypatch.setattr("hesspec.study.measuring.spectrum", fail)
    check(hesspec(*MEASURE, "--samples-per-class", "1"), 1, "Error: CUDA out of memory. Tried to allocate 20 GiB.")


def test_errors_of_the_cpus_allocator_are_a_sentence(hesspec, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:114] . DefaultCPUAllocator: can't allocate memory: you tried to allocate "
            "80000000000 bytes. Error code 12 (Cannot allocate memory)"
        )

    monkeypatch.setattr("hesspec.study.measuring.spectrum", fail)
    check(
        hesspec(*MEASURE, "--samples-per-class", "1"), 1, "Error: Memory ran out: a block of 80 GB was requested. Use"
    )


def test_a_full_disk(hesspec, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device", "spectra/x.nc")

    monkeypatch.setattr("hesspec.spectra.spectrum.Spectrum.save", fail)
    check(hesspec(*MEASURE, "--samples-per-class", "1"), 1, "Error: No space left on device: 'spectra/x.nc'.")


def test_the_full_traceback_is_shown_on_request(hesspec, monkeypatch):
    monkeypatch.setenv("HESSPEC_TRACEBACK", "1")
    assert isinstance(hesspec("show", "none.nc").exception, FileNotFoundError)


def test_faults_of_the_program_are_not_hidden(hesspec, monkeypatch):
    def fail(*_, **__):
        raise AssertionError

    monkeypatch.setattr("hesspec.cli.show.load", fail)
    assert isinstance(hesspec("show", "x.nc").exception, AssertionError)


def test_without_a_command_the_help_is_shown(hesspec):
    assert "demo" in hesspec().output


def test_the_version(hesspec):
    result = hesspec("--version")
    assert result.exit_code == 0
    first, *others = result.stdout.splitlines()
    assert re.fullmatch(r"hesspec \d+\.\d+\.\d+\S*", first)
    assert {line.split()[0] for line in others} >= {"Python", "torch", "numpy", "h5py"}
    assert f"torch {torch.__version__.partition('+')[0]}" in result.stdout
