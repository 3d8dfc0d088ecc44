import pytest

from rtd_hf.registry import Registry, RegistryError


@pytest.fixture
def registry():
    registry = Registry("projection", "PROJECTIONS")
    registry.register("lincir", "lin")(int)
    registry.register("searle")(str)
    return registry


def test_an_entry_is_found_under_each_of_its_names_and_returned_unchanged(registry):
    assert registry["lincir"] is int
    assert registry["lin"] is int

    @registry.register("mine")
    class Mine: ...

    assert registry["mine"] is Mine
    assert list(registry) == ["lincir", "lin", "searle", "mine"]


def test_an_unknown_name_is_answered_with_what_there_is_and_how_to_add_it(registry):
    with pytest.raises(RegistryError) as error:
        registry["linsir"]
    message = str(error.value)
    assert message.startswith("Unknown projection `linsir`. Did you mean `lincir`? Available: lin, lincir, searle.")
    assert '`@PROJECTIONS.register("linsir")`' in message


def test_a_name_that_resembles_nothing_gets_no_proposal(registry):
    with pytest.raises(KeyError) as error:
        registry["xyz"]
    assert "Did you mean" not in str(error.value)


@pytest.mark.parametrize("name", [["lincir"], {"lincir": 1}, None])
def test_what_is_no_name_is_not_there(registry, name):
    assert name not in registry
    with pytest.raises(RegistryError, match="Unknown projection"):
        registry[name]


def test_an_empty_registry_says_so():
    with pytest.raises(RegistryError, match="Available: none"):
        Registry("benchmark", "BENCHMARKS")["cirr"]


def test_a_taken_name_is_refused_and_nothing_is_entered(registry):
    with pytest.raises(RegistryError, match="`searle` is taken by .*str"):
        registry.register("fresh", "searle")(float)
    assert "fresh" not in registry
    assert registry["searle"] is str


@pytest.mark.parametrize("names", [(), (int,)])
def test_the_decorator_without_a_name_is_explained(registry, names):
    with pytest.raises(TypeError, match=r'@PROJECTIONS.register\("name"\)'):
        registry.register(*names)
