"""The search for secrets that tests/e2e/wandb/test_secrets.py relies on, without a cluster."""

import base64
from urllib.parse import quote

import pytest

from tests.helpers.secret_search import Place, Secret, repository, search

SECRET = Secret("name/key", 'a+b/c"d=0123456789')


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (f"the key is {SECRET.value}!", "plain"),
        (r'{"key": "a+b/c\"d=0123456789"}', "plain"),
        *(
            (base64.b64encode(f"{'x' * n}{SECRET.value}tail".encode()).decode(), "base64")
            for n in range(7)
        ),
        (base64.urlsafe_b64encode(f"api:{SECRET.value}".encode()).decode(), "base64"),
        (f"postgresql://user:{quote(SECRET.value, safe='')}@host", "URL-encoded"),
    ],
)
def test_it_is_found_in_every_form(text: str, form: str) -> None:
    assert search([("place", text.encode())], [SECRET]) == {f"place: name/key, {form}"}


@pytest.mark.parametrize("text", ["", "name/key", SECRET.value[:-1], SECRET.value[::-1]])
def test_other_text_is_not_it(text: str) -> None:
    encoded = base64.b64encode(text.encode())
    assert search([("place", text.encode()), ("place", encoded)], [SECRET]) == set()


def test_only_its_own_secret_may_hold_it() -> None:
    content = base64.b64encode(SECRET.value.encode())
    places: list[Place] = [("secret name", content), ("secret name2", content)]
    assert search(places, [SECRET]) == {"secret name2: name/key, base64"}


def test_its_value_is_not_shown() -> None:
    assert SECRET.value not in repr(SECRET)
    assert SECRET.value not in str(search([("place", SECRET.value.encode())], [SECRET]))


def test_the_repository_is_searched() -> None:
    names = {name for name, _ in repository()}
    assert {"file README.md", "file tools/bootstrap.py"} <= names
