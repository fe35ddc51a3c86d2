"""One strict configuration: every mistake is one line that says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pydantic
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dspark.foundation.errors import UserError
from dspark.foundation.settings import Settings, load_settings


class Optimiser(Settings):
    learning_rate: float = pydantic.Field(6e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)


class Drafter(Settings):
    head: Literal["vanilla", "gated", "rnn"] = "vanilla"
    layers: int = 5


class Recipe(Settings):
    target: str
    steps: int = 100
    optimiser: Optimiser = Optimiser()
    drafter: Drafter | None = None
    labels: dict[str, Drafter] = {}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("target: smollm2-135m\noptimiser:\n  learning_rate: 1e-3\n", encoding="utf-8")
    return path


def test_file_then_overrides_in_order_then_defaults(recipe: Path) -> None:
    found = load_settings(Recipe, recipe, ["steps=1", "optimiser.betas=[0.5, 0.6]", "drafter.head=rnn", "steps=2"])
    assert found == Recipe(
        target="smollm2-135m",
        steps=2,
        optimiser=Optimiser(learning_rate=1e-3, betas=(0.5, 0.6)),
        drafter=Drafter(head="rnn"),
    )
    assert load_settings(Recipe, recipe, ["optimiser.learning_rate=2e-5"]).optimiser.learning_rate == 2e-5


@given(
    steps=st.integers(),
    rate=st.floats(min_value=1e-12, allow_infinity=False),
    target=st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1),
)
def test_the_resolved_configuration_reads_back_as_itself(
    tmp_path_factory: pytest.TempPathFactory, steps: int, rate: float, target: str
) -> None:
    settings = Recipe(target=target, steps=steps, optimiser=Optimiser(learning_rate=rate), drafter=Drafter(layers=2))
    path = tmp_path_factory.getbasetemp() / "resolved.yaml"
    path.write_text(settings.to_yaml(), encoding="utf-8")
    assert load_settings(Recipe, path) == settings
    assert yaml.safe_load(settings.to_yaml())["optimiser"]["betas"] == [0.9, 0.95]  # defaults are written out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("step=3", "unknown key 'step'; did you mean 'steps'?"),
        ("optimiser.lerning_rate=3", "did you mean 'optimiser.learning_rate'?"),
        ("learning_rate=3", "did you mean 'optimiser.learning_rate'?"),
        ("drafter.heads=rnn", "did you mean 'drafter.head'?"),
        ("zzzzz=1", "known keys: drafter, labels, optimiser, steps, target"),
        ("steps=many", "steps is 'many'"),
        ("steps=[1, 2]", "steps is [1, 2]"),
        ("optimiser.learning_rate=-1", "optimiser.learning_rate is -1: input should be greater than 0"),
        ("optimiser.learning_rate=.nan", "finite number"),
        ("drafter.head=best", "'vanilla', 'gated' or 'rnn'"),
        ("steps", "expected KEY.KEY=VALUE"),
        (".steps=1", "expected KEY.KEY=VALUE"),
        ("steps.more=1", "steps is {'more': 1}: input should be a valid integer"),
        ("target.more=1", "target is 'smollm2-135m', a value without keys"),
        ("steps=[1", "not valid YAML"),
        ("target=", "target is None"),
    ],
)
def test_a_wrong_override_is_one_line_that_says_what_to_do(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_settings(Recipe, recipe, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 3", "the key 'target' is missing"),
        ("", "the key 'target' is missing"),
        ("- 1", "holds a list"),
        ("target: a\ntarget: b", "line 2: the key 'target' is given twice"),
        ("target: a\nsteps: [1", "line"),
        ("target: a\nstep: 1\nleraning_rate: 2", "(and 1 more)"),
        ("? [a]\n: 1", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"recipe\.yaml") as caught:
        load_settings(Recipe, path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.yaml"):
        load_settings(Recipe, tmp_path / "absent.yaml")


def test_settings_do_not_change_and_defaults_are_checked() -> None:
    with pytest.raises(pydantic.ValidationError):
        Recipe(target="a").steps = 3  # type: ignore[misc]

    class Wrong(Settings):
        steps: int = "many"  # type: ignore[assignment]

    with pytest.raises(pydantic.ValidationError):
        Wrong()
