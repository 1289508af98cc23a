"""Dashboard, alert rules and docs/operations.md name the metrics, settings and paths that exist, and all of them."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[2]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboards/maskserve.json").read_text(encoding="utf-8"))
ALERTS = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text(encoding="utf-8"))
NAME = re.compile(r"\b(?:maskserve|process)_[a-z_]+")
SELECTOR = re.compile(r"\b(maskserve_[a-z_]+)\{([^}]*)\}")


@pytest.fixture(scope="module")
def samples() -> dict[str, set[str]]:
    """Every sample that a service exposes → the labels that it has."""
    from tests.app.fakes import PHOTO, FakeEngine, serving

    class OnGpu(FakeEngine):
        def device_memory(self) -> dict[str, int]:
            return {"allocated": 1, "reserved": 2}

    async def run() -> str:
        async with serving(OnGpu(), max_queue_requests=1) as (client, app):
            await client.post("/segment", content=PHOTO)
            service = app.state.service
            service.admission.refused["requests"] += 1
            service.worker.dropped["cancelled"] += 1
            service.decoders.killed["time"] += 1
            return (await client.get("/metrics")).text

    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(asyncio.run(run())):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def expressions() -> list[Any]:
    panels = [
        pytest.param(target["expr"], id=f"panel {panel['title']}")
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
    ]
    rules = [pytest.param(rule["expr"], id=f"alert {rule['alert']}") for rule in ALERTS["groups"][0]["rules"]]
    return panels + rules


@pytest.mark.parametrize("expression", expressions())
def test_every_expression_asks_for_metrics_and_labels_that_exist(
    expression: str, samples: dict[str, set[str]]
) -> None:
    names = set(NAME.findall(expression))
    assert names
    assert names <= samples.keys()
    for name, matchers in SELECTOR.findall(expression):
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)) - {"job", "instance"}
        assert labels <= samples[name], expression


def test_every_metric_is_documented_and_nothing_else_is(samples: dict[str, set[str]]) -> None:
    suffixes = ("_bucket", "_count", "_sum")
    exposed = {name.removesuffix(next((s for s in suffixes if name.endswith(s)), "")) for name in samples}
    section = OPERATIONS.partition("\n## Metrics\n")[2].partition("\n## ")[0]
    documented = set(re.findall(r"`(maskserve_[a-z_]+)`", section))
    assert documented == {name for name in exposed if name.startswith("maskserve_")}


def test_every_metric_is_on_the_dashboard(samples: dict[str, set[str]]) -> None:
    shown = set(NAME.findall(json.dumps(DASHBOARD)))
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in samples}
    missing = {
        name
        for name in families
        if name.startswith("maskserve_") and not any(s.startswith(name) for s in shown)
    }
    # Its requests are.
    assert missing == {"maskserve_waiting_pixels"}


def test_the_tables_are_what_the_code_says() -> None:
    from docs.tables import written

    assert written(OPERATIONS) == OPERATIONS, "run: python docs/tables.py"


def test_every_alert_is_documented() -> None:
    rules = {rule["alert"] for rule in ALERTS["groups"][0]["rules"]}
    assert set(re.findall(r"`(Maskserve\w+)`", OPERATIONS)) == rules


def test_every_endpoint_is_documented() -> None:
    from app.service import PATHS

    section = OPERATIONS.partition("\n## Endpoints\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"`(?:GET|POST) (/[a-z.]*)`", section)) == set(PATHS)


def test_every_row_of_the_fault_table_is_a_test() -> None:
    faults = (ROOT / "tests/service/test_faults.py").read_text(encoding="utf-8")
    table = OPERATIONS.partition("\n## When something breaks\n")[2].partition("\n## ")[0]
    assert table.count("\n| ") - 1 <= faults.count("\ndef test_")
