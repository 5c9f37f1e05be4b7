"""Libraries that are not installed."""

import sys

import pytest

import hesspec


@pytest.mark.parametrize(
    ("name", "missing", "sentence"),
    [
        ("LightningCallback", "lightning", r"needs lightning, .* not installed: pip install 'hesspec\[lightning\]'"),
        (
            "TransformersCallback",
            "transformers",
            r"needs transformers, .* pip install 'hesspec\[text\]'",
        ),
    ],
)
def test_a_missing_library_is_named_with_what_installs_it(monkeypatch, name, missing, sentence):
    module = f"hesspec.integrations.{missing}"
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.delitem(vars(hesspec.integrations), name, raising=False)
    with pytest.raises(ModuleNotFoundError, match=sentence):
        getattr(hesspec.integrations, name)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"'hesspec\.integrations' has no attribute 'KerasCallback'"):
        hesspec.integrations.KerasCallback  # noqa: B018 - the lookup is what fails
