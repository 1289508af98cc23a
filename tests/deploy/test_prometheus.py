"""Prometheus' own check of its configuration and rules, and the unit tests of the alerts in alerts.yml."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "deploy/prometheus"
TESTS = Path(__file__).with_name("alerts.yml")

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)"
)


def promtool(*arguments: object) -> None:
    """Run it; what it prints is the failure."""
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_accepts_its_configuration_and_the_rules_in_it(tmp_path: Path) -> None:
    shutil.copytree(SHIPPED, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "prometheus.yml"
    # The key must be there, where Compose mounts it.
    text = file.read_text().replace("/run/secrets/metrics_key", str(tmp_path / "no-key"))
    file.write_text(text)
    promtool("check", "config", file)


@needs_promtool
def test_each_alert_fires_when_it_should_and_not_before() -> None:
    promtool("test", "rules", TESTS)


def test_every_alert_has_a_test_in_which_it_fires() -> None:
    rules = yaml.safe_load((SHIPPED / "alerts.yml").read_text())["groups"][0]["rules"]
    checks = [
        check for test in yaml.safe_load(TESTS.read_text())["tests"] for check in test["alert_rule_test"]
    ]
    for outcome in (True, False):
        tested = {check["alertname"] for check in checks if bool(check["exp_alerts"]) == outcome}
        assert tested == {rule["alert"] for rule in rules}
