"""Every category can be asked for, whatever its name or id."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.categories import CategoryNames
from app.problems import InvalidParameter
from model.data import Category

NAMES = {
    0: "Cat",
    7: "cat",
    3: "12",
    12: "dog",
    1000000007: "猫",
    -5: "Ёж",
    30: "cup, small",
    31: "cup",
    32: "small",
    33: " padded ",
    34: "Caf\u00e9",
    35: "a,b",
}
CATEGORIES = CategoryNames([Category(*item) for item in NAMES.items()])


@pytest.mark.parametrize(
    ("values", "ids"),
    [
        pytest.param(["cat"], {7}, id="an exact name comes before one in other letter case"),
        pytest.param(["Cat"], {0}, id="also the other one"),
        pytest.param(["12"], {3}, id="a name that is digits comes before an id"),
        pytest.param(["dog"], {12}, id="and the category with that id has its name"),
        pytest.param(["1000000007"], {1000000007}, id="an id of ten digits"),
        pytest.param(["-5,0"], {-5, 0}, id="ids that are negative or 0"),
        pytest.param(["猫"], {1000000007}, id="Chinese"),
        pytest.param(["ёж"], {-5}, id="Cyrillic in lower case"),
        pytest.param(["cafe\u0301"], {34}, id="decomposed characters"),
        pytest.param(["cup, small"], {30}, id="a name with a comma is not split"),
        pytest.param(["Cup, Small"], {31, 32}, id="but what is no exact name is"),
        pytest.param(["A,B"], {35}, id="unless its parts are no names"),
        pytest.param(["cup", "small"], {31, 32}, id="repeated parameter"),
        pytest.param(["dog,cup, small", "a,b"], {12, 31, 32, 35}, id="both"),
        pytest.param([" padded "], {33}, id="blanks around a name"),
        pytest.param(["padded,dog"], {33, 12}, id="left out"),
    ],
)
def test_values_name_categories(values: list[str], ids: set[int]) -> None:
    assert CATEGORIES.ids(values) == ids


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("CAT", '"CAT" fits several categories: Cat and cat. Use the exact name of one.'),
        ("1000000008", 'no category "1000000008"'),
        ("9" * 5000, 'no category "9999'),
        ("dgo", "Did you mean dog?"),
        ("猫,", "empty entry between its commas"),
        (" ", "categories is empty"),
    ],
)
def test_what_names_no_category_is_refused(value: str, says: str) -> None:
    with pytest.raises(InvalidParameter) as error:
        CATEGORIES.ids([value])
    assert says in error.value.detail


def test_a_long_list_of_names_is_cut() -> None:
    many = CategoryNames([Category(number, f"name {number}") for number in range(1203)])
    with pytest.raises(InvalidParameter) as error:
        many.ids(["%"])
    assert error.value.detail.endswith("name 99 and 1103 more.")


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=6, unique=True))
def test_every_name_is_found_by_a_parameter_of_its_own(names: list[str]) -> None:
    categories = CategoryNames([Category(number, name) for number, name in enumerate(names)])
    for number, name in enumerate(names):
        assert categories.ids([name]) == {number}
