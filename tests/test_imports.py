"""While modules are imported, Python does not search for garbage; afterwards it does again, if it did before."""

from __future__ import annotations

import gc
import sys
from types import ModuleType, SimpleNamespace

import pytest

import mrp
from mrp.imports import undisturbed
from mrp.objectives import OBJECTIVES


def test_whoever_does_without_searches_still_does_afterwards() -> None:
    with pytest.raises(ImportError), undisturbed():
        raise ImportError
    assert gc.isenabled()
    gc.disable()
    try:
        with undisturbed():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("something", [True, False])
def test_what_was_imported_counts_as_old(something: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()  # so that none is due
    with undisturbed():
        new = [[number] for number in range(1000)]
        if something:
            monkeypatch.setitem(sys.modules, "imported", ModuleType("imported"))
    old = {id(one) for one in gc.get_objects(generation=2)}
    assert all((id(one) in old) is something for one in new)


def test_what_someone_has_set_aside_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    aside = [0]
    gc.freeze()
    try:
        with undisturbed():
            monkeypatch.setitem(sys.modules, "imported", ModuleType("imported"))
        assert all(one is not aside for one in gc.get_objects())  # their number may fall: some are freed meanwhile
    finally:
        gc.unfreeze()


def test_methods_and_the_python_interface_are_imported_so(monkeypatch: pytest.MonkeyPatch) -> None:
    searched = list[bool]()

    def imported(name: str) -> SimpleNamespace:
        searched.append(gc.isenabled())
        return SimpleNamespace(Config=0, Objective=0, load=0)

    monkeypatch.setattr("mrp.import_module", imported)
    monkeypatch.setattr("mrp.registry.importlib", SimpleNamespace(import_module=imported))
    monkeypatch.setattr("mrp.registry.Registry._own", lambda _: ["mae"])
    _ = mrp.load
    OBJECTIVES.find("mae")
    assert searched == [False, False]
