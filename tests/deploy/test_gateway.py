"""The gateway's configuration: valid for nginx, and its numbers in step with the service's settings."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import crossplane
import pytest

from app.intake.uploads import ENVELOPE_BYTES
from app.server import KEEP_ALIVE_SECONDS
from app.settings import Settings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/gateway"
PAGE = ["~", "^/(page|swagger-ui)/"]
FOR_RAY = ROOT / "deploy/ray/gateway"
DEFAULTS = Settings()


def blocks(file: Path) -> list[dict[str, Any]]:
    """The directives of a configuration with its includes, checked for their names, places and arguments."""
    parsed = crossplane.parse(str(file), combine=True, strict=True)
    # The lines of a map are taken for directives.
    assert [
        e["error"] for e in parsed["errors"] if not re.search(r'directive "(~|default")', e["error"])
    ] == []
    [config] = crossplane.parse(str(file), combine=True)["config"]
    directives: list[dict[str, Any]] = config["parsed"]
    return directives


def within(directives: list[dict[str, Any]], *path: str) -> list[dict[str, Any]]:
    """The directives inside the blocks of that name; `location /metrics` is one of the names."""
    for name in path:
        chosen = [d for d in directives if " ".join([d["directive"], *d["args"]]) == name]
        assert chosen, f"there is no {name}"
        directives = [inner for directive in chosen for inner in directive["block"]]
    return directives


def value(directives: list[dict[str, Any]], name: str) -> list[str]:
    """The arguments of the one directive of that name."""
    [found] = [directive for directive in directives if directive["directive"] == name]
    arguments: list[str] = found["args"]
    return arguments


def seconds(text: str) -> int:
    """Nginx's `60s`."""
    return int(text.removesuffix("s"))


@pytest.fixture(scope="module", params=[[FOLDER], [FOLDER, FOR_RAY]], ids=["compose", "ray"])
def http(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """As it is shipped, and with the files that take the place of others in front of Ray."""
    folder = tmp_path_factory.mktemp("gateway")
    for source in request.param:
        shutil.copytree(source, folder, dirs_exist_ok=True)
    return within(blocks(folder / "nginx.conf"), "http")


@pytest.fixture(scope="module")
def server(http: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return within(http, "server")


def test_the_largest_body_is_the_largest_that_the_service_takes(server: list[dict[str, Any]]) -> None:
    encoded = DEFAULTS.max_upload_bytes * 4 // 3  # as app/intake/uploads.py bounds JSON
    largest = encoded + encoded // 16 + ENVELOPE_BYTES
    [size] = value(server, "client_max_body_size")
    mebibytes = int(size.removesuffix("m"))
    assert (mebibytes - 1) << 20 < largest <= mebibytes << 20


def test_a_body_may_take_as_long_as_the_service_waits_for_it(
    http: list[dict[str, Any]], server: list[dict[str, Any]]
) -> None:
    assert seconds(*value(http, "client_body_timeout")) == DEFAULTS.body_timeout
    assert seconds(*value(server, "proxy_send_timeout")) == DEFAULTS.body_timeout


def test_the_service_gives_up_first_so_that_its_504_arrives(server: list[dict[str, Any]]) -> None:
    waits = seconds(*value(server, "proxy_read_timeout"))
    assert DEFAULTS.request_timeout < waits <= DEFAULTS.request_timeout + 10


def test_after_a_replica_that_hangs_there_is_time_for_another(server: list[dict[str, Any]]) -> None:
    hangs = seconds(*value(server, "proxy_connect_timeout")) + seconds(*value(server, "proxy_read_timeout"))
    assert seconds(*value(server, "proxy_next_upstream_timeout")) > hangs


def test_idle_connections_are_closed_by_the_gateway_before_the_service_does() -> None:
    replicas = within(parse_alone(FOLDER / "replicas.conf"), "upstream replicas")
    assert seconds(*value(replicas, "keepalive_timeout")) < KEEP_ALIVE_SECONDS
    assert int(*value(replicas, "keepalive")) < 1024


def test_no_connection_to_ray_outlasts_the_replicas_that_its_proxy_knew() -> None:
    replicas = within(parse_alone(FOR_RAY / "replicas.conf"), "upstream replicas")
    assert {directive["directive"] for directive in replicas} == {"zone", "server", "keepalive_requests"}
    assert value(replicas, "keepalive_requests") == ["1"]


def test_what_fails_is_sent_again_and_what_is_refused_for_load_is_not(server: list[dict[str, Any]]) -> None:
    again = value(server, "proxy_next_upstream")
    assert {"error", "timeout", "http_503", "non_idempotent"} <= set(again)
    assert "http_429" not in again
    assert value(server, "proxy_request_buffering") == ["on"]  # else there is nothing to send again
    assert int(*value(server, "proxy_next_upstream_tries")) > 1


def test_answers_of_the_service_pass_through_as_they_are(server: list[dict[str, Any]]) -> None:
    names = {directive["directive"] for directive in server}
    assert "proxy_intercept_errors" not in names
    assert "proxy_hide_header" not in names


def test_the_request_id_is_passed_on_and_logged(
    http: list[dict[str, Any]], server: list[dict[str, Any]]
) -> None:
    headers = dict(d["args"] for d in server if d["directive"] == "proxy_set_header")
    assert headers["X-Request-ID"] == "$id"
    assert '"id":"$id"' in "".join(value(http, "log_format"))


def test_metrics_are_not_for_clients(server: list[dict[str, Any]]) -> None:
    status, document = value(within(server, "location /metrics"), "return")
    assert status == "404"
    assert "proxy_pass" not in document


def test_clients_are_limited_one_by_one_and_probes_are_not(
    http: list[dict[str, Any]], server: list[dict[str, Any]]
) -> None:
    assert value(http, "limit_req_zone")[0] == "$client"
    assert value(http, "limit_req_status") == ["429"]
    assert "zone=clients" in value(server, "limit_req")
    exempt, _ = (d for d in within(http, "map $uri $client"))
    pattern = exempt["directive"].removeprefix("~")
    assert exempt["args"] == [""]
    assert all(re.search(pattern, path) for path in ("/healthz", "/livez", "/readyz"))
    assert not re.search(pattern, "/segment")


def test_one_client_cannot_fill_the_temporary_files(
    http: list[dict[str, Any]], server: list[dict[str, Any]]
) -> None:
    zones = [directive["args"] for directive in http if directive["directive"] == "limit_conn_zone"]
    assert {client for client, _ in zones} == {"$client"}
    assert value(http, "limit_conn_status") == ["429"]
    zone, connections = value(server, "limit_conn")
    assert any(f"zone={zone}:" in size for _, size in zones)
    files = [value(server, name)[0] for name in ("client_max_body_size", "proxy_max_temp_file_size")]
    compose = (ROOT / "docker-compose.yml").read_text()
    [room] = re.findall(
        r'tmpfs: \["/tmp:size=(\d+)m,[^]]*\]\n(?=    cap_drop)', compose.partition("  gateway:")[2]
    )[:1]
    assert int(connections) * max(int(size.removesuffix("m")) for size in files) <= int(room)


def test_a_browser_may_fetch_all_modules_of_the_page_at_once(server: list[dict[str, Any]]) -> None:
    """Over HTTP/2 each request counts as a connection."""
    page = within(server, " ".join(["location", *PAGE]))
    modules = len(list((ROOT / "app" / "page").glob("*.js")))
    assert int(value(page, "limit_conn")[1]) > modules
    # They do not count against those of the API.
    assert value(page, "limit_conn")[0] != value(server, "limit_conn")[0]
    # None of them leaves a temporary file, which the limit is for.
    assert value(page, "client_max_body_size") == ["1k"]


def test_every_refusal_of_the_gateway_is_a_problem_document(server: list[dict[str, Any]]) -> None:
    handled = {int(s) for d in server if d["directive"] == "error_page" for s in d["args"][:-2]}
    assert handled >= {413, 429, 500, 502, 503, 504}
    locations = [
        d for d in server if d["directive"] == "location" and d["args"] not in (["/"], ["@again"], PAGE)
    ]
    assert len(locations) == 5
    for location in locations:
        assert value(location["block"], "default_type") == ["application/problem+json"]
        status, document = value(location["block"], "return")
        assert f'"status":{status}' in document
        assert '"request_id":"$id"' in document


def test_an_id_that_would_break_a_problem_document_is_replaced(http: list[dict[str, Any]]) -> None:
    accepted, default = within(http, "map $http_x_request_id $id")
    pattern = accepted["directive"].removeprefix("~")
    assert re.search(pattern, "0f6c-Ab_9/[x]~!")
    for bad in ('a"b', "a\\b", "a b", "", "x" * 129):
        assert not re.search(pattern, bad), bad
    assert (default["directive"], default["args"]) == ("default", ["$request_id"])


def test_the_https_example_is_a_server_of_the_same_service() -> None:
    names = {d["directive"] for d in within(parse_alone(FOLDER / "tls.conf.example"), "server")}
    assert {"ssl_certificate", "ssl_certificate_key", "ssl_protocols", "limit_req", "error_page"} <= names


def parse_alone(file: Path) -> list[dict[str, Any]]:
    """A file that is meant to be included in `http`."""
    parsed = crossplane.parse(str(file), combine=True, check_ctx=False, check_args=False)
    assert parsed["errors"] == []
    directives: list[dict[str, Any]] = parsed["config"][0]["parsed"]
    return directives


def test_what_is_different_in_front_of_ray_takes_the_place_of_something() -> None:
    assert {file.name for file in FOR_RAY.iterdir()} <= {file.name for file in FOLDER.iterdir()}


@pytest.mark.parametrize("file", sorted([*FOLDER.iterdir(), *FOR_RAY.iterdir()]), ids=lambda file: file.name)
def test_each_file_opens_with_what_it_is_for(file: Path) -> None:
    assert re.match(r"# \S", file.read_text())
