"""API keys: what a file of them may look like, and who gets in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from app.cli.main import cli
from app.keys import Keys, KeysError, generate_key, hash_key
from app.problems import Unauthorized

if TYPE_CHECKING:
    from pathlib import Path


def test_keys_of_a_file_open_the_service_under_their_names(tmp_path: Path) -> None:
    first, second = generate_key(), generate_key()
    path = tmp_path / "keys"
    path.write_text(
        f"# who may ask\n{hash_key(first).hex()} phone app\n\n{hash_key(second).hex().upper()}  # nobody\n",
        encoding="utf-8",
    )
    keys = Keys.load(path)
    assert keys.owner(f"Bearer {first}") == "phone app"
    assert keys.owner(f"bearer  {second} ") == "line 4"


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    key, path = generate_key(), tmp_path / "keys"
    path.write_text(f"{hash_key(key).hex()} first\n", encoding="utf-8-sig")
    assert Keys.load(path).owner(f"Bearer {key}") == "first"


@pytest.mark.parametrize(
    ("authorization", "says"),
    [
        ("", "requires an API key"),
        ("Basic dXNlcjpwYXNz", "requires an API key"),
        ("Bearer", "requires an API key"),
        ("Bearer two words", "requires an API key"),
        ("Bearer wrong", "unknown"),
        ("Bearer \udcff", "unknown"),
    ],
)
def test_anything_else_is_unauthorised(authorization: str, says: str) -> None:
    with pytest.raises(Unauthorized, match=says) as caught:
        Keys({hash_key("right"): "owner"}).owner(authorization)
    assert caught.value.headers()["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "there is no API key in"),
        ("# nothing but a comment\n", "there is no API key in"),
        ("\nsecret name\n", "line 2 of .* is not an API key"),
        ("ab" * 31 + "\n", "line 1 of"),
    ],
)
def test_a_file_that_is_none_is_one_clear_error(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "keys"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(KeysError, match=says):
        Keys.load(path)


def test_a_file_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match="cannot be read"):
        Keys.load(tmp_path / "none")


def test_the_command_makes_a_line_that_the_file_takes(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["key", "phone app"])
    assert result.exit_code == 0
    (tmp_path / "keys").write_text(result.stdout, encoding="utf-8")
    assert Keys.load(tmp_path / "keys").owner(f"Bearer {result.stderr.strip()}") == "phone app"
    assert result.stderr.strip() not in result.stdout


@pytest.mark.parametrize("name", ["", " a", "a#b", "x" * 65])
def test_the_command_refuses_names_that_the_file_would_not_keep(name: str) -> None:
    result = CliRunner().invoke(cli, ["key", name])
    assert result.exit_code == 2
    assert result.stdout == ""
