"""Required packages and code of a checkout, of an installed package and of a bare copy."""

import shutil

import pytest

from colossal_llama.utils import environment


@pytest.fixture
def copy(tmp_path, project_root, monkeypatch):
    """The package alone, as in site-packages."""
    shutil.copytree(project_root / "colossal_llama", tmp_path / "colossal_llama")
    monkeypatch.setattr(environment, "IMPORT_ROOT", tmp_path)
    return tmp_path


def test_a_checkout_requires_what_its_files_list_and_the_engine():
    names = environment.required_packages()
    assert {"colossalai", "torch", "transformers", "liger-kernel"} <= set(names)
    assert environment.installed_packages()["torch"]


def test_an_installed_package_requires_what_its_metadata_lists_and_the_engine(copy, monkeypatch):
    monkeypatch.setattr(environment.metadata, "requires", lambda name: ["torch==2.13.0", "an_absent_package>=1"])
    assert environment.required_packages() == ["an_absent_package", "colossalai", "torch"]
    assert environment.installed_packages()["an_absent_package"] is None


def test_without_any_list_the_essential_packages_are_compared(copy, monkeypatch):
    def no_metadata(name):
        raise environment.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(environment.metadata, "requires", no_metadata)
    assert environment.required_packages() == ["colossalai", "torch", "transformers"]


def test_the_code_is_the_package_and_in_a_checkout_the_scripts_beside_it(copy):
    alone = environment.code_fingerprint()
    (copy / "neighbour.py").touch()
    assert environment.code_fingerprint() == alone
    (copy / "colossal_llama" / "cluster" / "new.sh").touch()
    changed = environment.code_fingerprint()
    assert changed != alone
    for name in ("requirements.txt", "requirements-engine.txt"):
        (copy / name).touch()
    assert environment.code_fingerprint() != changed
