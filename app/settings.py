"""Every setting of the service: its environment variable, default, bounds and meaning, in one class.

A name that starts with MASKSERVE_ but is no setting stops the start, so that a misspelt one is never ignored.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path  # noqa: TC003 - pydantic reads the annotations
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from model.images.header import MAX_PIXELS
from model.zoo.catalogue import default_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "MASKSERVE_"

MEBIBYTE = 1 << 20

# Kubernetes (and `docker --link`) announce a Service named maskserve, or maskserve-gateway, to the pods
# beside it with variables that look like ours: MASKSERVE_SERVICE_HOST=10.0.0.7, MASKSERVE_PORT=tcp://10.0.0.7:8000,
# MASKSERVE_PORT_8000_TCP_ADDR=… They are no settings and no misspellings of one.
SERVICE_LINK_NAME = re.compile(
    r"MASKSERVE_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?|ENV_\w+|NAME)"
)
SERVICE_LINK_ADDRESS = re.compile(r"(tcp|udp|sctp)://\S+")


class SettingsError(Exception):
    """The settings cannot be used; the message has one line for each that is wrong, and how to mend it."""


class Settings(BaseModel):
    """The settings in effect. `load` reads them from the environment and refuses unknown names."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    # Where to listen
    host: str = Field(
        "127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0 for every interface."
    )
    port: int = Field(8000, ge=0, le=65535, description="TCP port to listen on; 0 takes any free one.")

    # The model
    model: str = Field(
        "auto",
        min_length=1,
        description="The model: a name from `maskserve weights list`, the path of a model file, or "
        "`auto`: the best COCO model that is already in the weights folder, else the bundled one.",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda|cuda:\d+)$",
        description="Device that runs the model: `cpu`, `cuda`, `cuda:1`, or `auto`: a GPU if there is one.",
    )
    precision: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        "auto",
        description="Number format of the forward pass. `auto`: the quickest that the hardware computes in by "
        "itself, bfloat16 or on older GPUs float16, else float32; float16 is for GPUs only. `int8`, for "
        "CPUs with AVX512-VNNI, is quicker still, less exact, and needs a model that `maskserve calibrate` prepared.",
    )
    weights_dir: Path = Field(
        default_factory=default_folder,
        description="Folder of downloaded weights (`maskserve weights fetch NAME`): by default weights/ in "
        "the checkout that maskserve runs from, else maskserve/weights in your cache folder.",
    )
    threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="CPU threads of one forward pass; 0 takes all that the process may use. Services on one "
        "machine should share out its cores with this.",
    )

    # What one request may ask
    max_upload_bytes: int = Field(
        20 * MEBIBYTE,
        ge=1024,
        le=1024 * MEBIBYTE,
        description="Largest image file in bytes; more is refused with 413 while it arrives.",
    )
    max_image_pixels: int = Field(
        50_000_000,
        ge=1024,
        le=MAX_PIXELS,
        description="Largest image in pixels (width × height), read from its header; more is refused with "
        "413 before anything is decoded.",
    )
    max_images: int = Field(
        32,
        ge=1,
        le=1000,
        description="Images in one form; more are refused with 413. Together they may have half of max_queue_bytes.",
    )
    header_timeout: float = Field(
        10.0, gt=0, le=3600, description="Seconds that a request's header may take to arrive (408)."
    )
    body_timeout: float = Field(
        60.0, gt=0, le=3600, description="Seconds that a request's body may take to arrive (408)."
    )
    request_timeout: float = Field(
        60.0,
        gt=0,
        le=3600,
        description="Seconds from the complete body to the answer; what takes longer is given up (504). A client "
        "may ask for less with `X-Request-Timeout-Ms`, which counts from the request's header.",
    )
    url_hosts: str = Field(
        "",
        max_length=4096,
        description='Hosts that images may be fetched from with `{"url": "https://…"}`, separated by commas: '
        "`photos.example.com`, `*.example.com`, `cdn.example.com:8443`, or `*` for any. Empty: none, the "
        "default. Whatever is named, only public addresses are ever asked.",
    )
    api_keys_file: Path | None = Field(
        None,
        description="File of the API keys that /segment, /model and /metrics ask for, one a line as "
        "`maskserve key NAME` writes it. Not set: no key is asked for.",
    )

    # The queue
    max_queue_requests: int = Field(
        256,
        ge=1,
        le=100_000,
        description="Requests that are decoded, waiting or running at once; more get 429.",
    )
    max_queue_pixels: int = Field(
        500_000_000,
        ge=1024,
        le=100_000_000_000,
        description="Pixels of the images of those requests (3 bytes of memory each); more get 429.",
    )
    max_queue_bytes: int = Field(
        256 * MEBIBYTE,
        ge=2048,
        le=1024 * 1024 * MEBIBYTE,
        description="Bytes of bodies that arrive or wait to be decoded; more get 429. At least twice "
        "max_upload_bytes.",
    )
    max_connections: int = Field(
        1024,
        ge=1,
        le=1_000_000,
        description="Connections open at once; for more, the one that has been quiet for longest is closed. "
        "Never more than the process may open files (ulimit -n).",
    )
    max_batch_size: int = Field(
        8,
        ge=1,
        le=256,
        description="Images that run through the model together on a GPU; a CPU takes one at a time.",
    )
    max_batch_pixels: int = Field(
        12_000_000,
        ge=1024,
        le=10_000_000_000,
        description="Input pixels of those images together, after resizing and padding; "
        "one image alone always runs.",
    )
    decode_threads: int = Field(
        2, ge=1, le=256, description="Threads that decode uploaded images; more than a few rarely help."
    )
    encode_threads: int = Field(2, ge=1, le=256, description="Threads that encode masks and write answers.")

    # Life-cycle
    heartbeat_timeout: float = Field(
        300.0,
        ge=2,
        le=86_400,
        description="Seconds without a sign of life from the device after which /healthz turns red and those "
        "who wait get 503; must be longer than the slowest batch. After twice as long the process ends.",
    )
    drain_delay: float = Field(
        0.0,
        ge=0,
        le=3600,
        description="Seconds after SIGTERM in which requests are still taken while /readyz is red, for load "
        "balancers that need time to notice.",
    )
    drain_timeout: float = Field(
        30.0, ge=0, le=3600, description="Seconds after that in which accepted requests have to finish."
    )

    # Logs
    log_format: Literal["auto", "text", "json"] = Field(
        "auto",
        description="One line per event: `text` to read, `json` to collect, `auto`: text on a terminal.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe event that is logged."
    )

    tracing: bool = Field(
        False,
        description="Send a span for each request to an OpenTelemetry collector; where it is, say the OTEL_ variables. "
        "Needs `pip install 'maskserve[tracing]'`.",
    )

    @field_validator("weights_dir", "api_keys_file")
    @classmethod
    def home_is_expanded(cls, path: Path | None) -> Path | None:
        """`~/weights` means the user's own folder also where no shell expanded it."""
        try:
            return path.expanduser() if path is not None else None
        except RuntimeError as error:  # whose text speaks of a home directory without saying whose
            raise ValueError(f"there is no such user's folder: {path}") from error

    @model_validator(mode="after")
    def bytes_hold_two_uploads(self) -> Settings:
        """JSON needs 4/3 of an image's bytes for it; below that, the largest image would never be let in."""
        if self.max_queue_bytes < 2 * self.max_upload_bytes:
            raise ValueError(
                f"MASKSERVE_MAX_QUEUE_BYTES={self.max_queue_bytes} is less than twice "
                f"MASKSERVE_MAX_UPLOAD_BYTES={self.max_upload_bytes}"
            )
        return self


def variable(field: str) -> str:
    """The environment variable of a setting: `max_upload_bytes` → `MASKSERVE_MAX_UPLOAD_BYTES`."""
    return PREFIX + field.upper()


def load(
    overrides: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
) -> Settings:
    """The settings from the environment, with `overrides` (from the command line) taking precedence.

    overrides: setting name → value; None means "not given". environment: defaults to the process's; an empty
    value means "not given" too, because that is what compose files make of `MASKSERVE_PORT: ${PORT:-}`.
    Raises SettingsError for a value outside its bounds and for a MASKSERVE_ name that is no setting.
    """
    environment = os.environ if environment is None else environment
    values: dict[str, Any] = {}
    wrong: list[str] = []
    for name, value in sorted(environment.items()):
        if not name.upper().startswith(PREFIX) or is_service_link(name, value):
            continue
        field = name[len(PREFIX) :].lower()
        if field not in Settings.model_fields:
            wrong.append(unknown_name(name))
        elif value:
            values[field] = value
    values |= {field: value for field, value in (overrides or {}).items() if value is not None}
    if wrong:
        raise SettingsError("\n".join(wrong))
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError("\n".join(explain(error))) from None


def is_service_link(name: str, value: str) -> bool:
    """Whether an environment variable is Kubernetes' announcement of a Service rather than a setting."""
    name = name.upper()
    return SERVICE_LINK_NAME.fullmatch(name) is not None or (
        name.endswith("PORT") and SERVICE_LINK_ADDRESS.fullmatch(value) is not None
    )


def unknown_name(name: str) -> str:
    """One line that says an environment variable is no setting, and which name was probably meant."""
    close = difflib.get_close_matches(name[len(PREFIX) :].lower(), Settings.model_fields, n=1)
    hint = f"did you mean {variable(close[0])}?" if close else "`maskserve serve --help` lists the settings."
    return f"{name} is not a setting; {hint}"


def explain(error: ValidationError) -> list[str]:
    """One line for each value that pydantic refused."""
    return [
        f"{variable(str(item['loc'][0]))}={item['input']!s}: {item['msg'][:1].lower()}{item['msg'][1:]}"
        if item["loc"]
        else item["msg"].removeprefix("Value error, ")
        for item in error.errors()
    ]


def effective(settings: Settings) -> str:
    """The settings in effect on one line, for the log at start; none of them is secret."""
    return " ".join(f"{field}={getattr(settings, field)}" for field in Settings.model_fields)
