"""Every setting of the service in one class: environment variable, default, bounds and meaning.

A variable that starts with MASKSERVE_ and is not a setting stops the start, so a misspelt one is never ignored.
"""

from __future__ import annotations

import os
from pathlib import Path  # noqa: TC003 - pydantic reads the annotations
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from app.origins import check_origins
from app.service_links import EnvironmentWithoutLinks, is_service_link
from model.images.formats import MAX_PIXELS
from model.messages import did_you_mean
from model.zoo.catalogue import default_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "MASKSERVE_"

MEBIBYTE = 1 << 20


class SettingsError(Exception):
    """The settings cannot be used; the message has one line for each one that is wrong, and how to fix it."""


class Settings(BaseSettings):
    """The settings in effect: what is passed here, then the environment. `load` also refuses unknown variables."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        # Compose files turn `MASKSERVE_PORT: ${PORT:-}` into an empty value, which means "not set".
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        validate_default=True,
    )

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
        "`auto`: the best COCO model that is already in the weights folder, else the bundled `nuclei`.",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda|cuda:\d+)$",
        description="Device that runs the model: `cpu`, `cuda`, `cuda:1`, or `auto`: a GPU if there is one.",
    )
    precision: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        "auto",
        description="Number format of the forward pass. `auto`: the fastest that the hardware supports natively: "
        "bfloat16 (CPUs with AMX, AMD's with AVX512-BF16, GPUs from Ampere on), float16 on Volta and Turing, else "
        "float32. float16 is for GPUs only. `int8`, for x86 CPUs with AVX2, is faster still, less "
        "exact, and needs a model that `maskserve calibrate` has prepared.",
    )
    weights_dir: Path = Field(
        default_factory=default_folder,
        description="Folder of downloaded weights (`maskserve weights fetch NAME`). By default weights/ in the "
        "checkout that maskserve runs from, or else maskserve/weights in your cache folder.",
    )
    threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="CPU threads of the forward passes; 0 uses all cores that the process may use. Several services on "
        "one machine should divide its cores with this setting.",
    )

    # What one request may ask
    max_upload_bytes: int = Field(
        20 * MEBIBYTE,
        ge=1024,
        le=1024 * MEBIBYTE,
        description="Largest image file in bytes; a larger one is refused with 413 while it arrives.",
    )
    max_image_pixels: int = Field(
        50_000_000,
        ge=1024,
        le=MAX_PIXELS,
        description="Largest image in pixels (width × height) by its header; a larger one is refused with 413 before "
        "it is decoded.",
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
    send_timeout: float = Field(
        20.0,
        gt=0,
        le=3600,
        description="Seconds that a client may take to read each 64 KiB of an answer; then it is cut off.",
    )
    request_timeout: float = Field(
        60.0,
        gt=0,
        le=3600,
        description="Seconds from the complete body to the answer; a request that takes longer fails with 504. A "
        "client may ask for less with `X-Request-Timeout-Ms`, which counts from the request's header.",
    )
    url_hosts: str = Field(
        "",
        max_length=4096,
        description='Hosts that images may be fetched from with `{"url": "https://…"}`, separated by commas: '
        "`photos.example.com`, `*.example.com`, `cdn.example.com:8443`, or `*` for any. Empty, the "
        "default: none. Only public addresses are ever contacted, whatever is named here.",
    )
    cors_origins: Annotated[str, AfterValidator(check_origins)] = Field(
        "",
        max_length=4096,
        description="Origins of web pages that may use this service from the browser (CORS), separated by commas: "
        "`https://app.example.com`, or `*` for any. Empty: none, the default.",
    )
    api_keys_file: Path | None = Field(
        None,
        description="File of the API keys that /segment, /model and /metrics require, one on each line as "
        "`maskserve key NAME` prints it. Not set: no key is required.",
    )

    # The queue
    max_queue_requests: int = Field(
        256,
        ge=1,
        le=100_000,
        description="Requests in flight (being decoded, waiting or running); more get 429.",
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
        "max_upload_bytes. As many bytes of answers may wait to be read; beyond that, the slowest reader is cut off.",
    )
    max_connections: int = Field(
        1024,
        ge=1,
        le=1_000_000,
        description="Connections open at the same time; for one more, the one that has been idle longest is closed. "
        "Limited by the number of files that the process may open (ulimit -n).",
    )
    max_batch_size: int = Field(
        8,
        ge=1,
        le=256,
        description="Images that run through the model at the same time: on a GPU as one batch, on a CPU each on at "
        "least one core.",
    )
    max_batch_pixels: int = Field(
        12_000_000,
        ge=1024,
        le=10_000_000_000,
        description="Input pixels of those images together, after resizing and padding; one image alone may have more.",
    )
    decode_processes: int = Field(
        2,
        ge=1,
        le=256,
        description="Processes that decode uploaded images, about 40 MB each; on GPUs one for 100 photos a second. A "
        "slow image gets another one beside them, up to six.",
    )
    encode_threads: int = Field(2, ge=1, le=256, description="Threads that encode masks and write answers.")

    # Life cycle
    heartbeat_timeout: float = Field(
        300.0,
        ge=2,
        le=86_400,
        description="Seconds without a heartbeat of the device after which /healthz turns red and waiting requests get "
        "503; must be longer than the slowest batch. After twice as long the process ends.",
    )
    drain_delay: float = Field(
        0.0,
        ge=0,
        le=3600,
        description="Seconds after SIGTERM during which requests are still admitted while /readyz is red, for load "
        "balancers that need time to notice.",
    )
    drain_timeout: float = Field(
        30.0, ge=0, le=3600, description="Seconds after that within which admitted requests have to finish."
    )

    # Logs
    log_format: Literal["auto", "text", "json"] = Field(
        "auto",
        description="One line per event: `text` for people, `json` for collectors, `auto`: text on a terminal, "
        "else json.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest severity that is logged."
    )

    tracing: bool = Field(
        False,
        description="Send a span for each request to an OpenTelemetry collector; the OTEL_ variables say where it is. "
        "Needs the extra `tracing`: `pip install '.[tracing]'` in the checkout.",
    )

    @field_validator("weights_dir", "api_keys_file")
    @classmethod
    def expand_home(cls, path: Path | None) -> Path | None:
        """Expand `~`, because a variable of a compose file or a service unit passes no shell that would."""
        try:
            return path.expanduser() if path is not None else None
        except RuntimeError as error:
            # Its own message does not say which user.
            raise ValueError(f"there is no such user's folder: {path}") from error

    @model_validator(mode="after")
    def check_queue_bytes(self) -> Settings:
        """Base64 needs 4/3 of an image's bytes, so the largest image needs more room than its own size."""
        if self.max_queue_bytes < 2 * self.max_upload_bytes:
            raise ValueError(
                f"MASKSERVE_MAX_QUEUE_BYTES={self.max_queue_bytes} is less than twice "
                f"MASKSERVE_MAX_UPLOAD_BYTES={self.max_upload_bytes}"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic's signature, as the next two
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments first, then the environment; neither a .env file nor a folder of secrets is read."""
        return init_settings, EnvironmentWithoutLinks(settings_cls)


def variable(field: str) -> str:
    """The environment variable of a setting: `max_upload_bytes` → `MASKSERVE_MAX_UPLOAD_BYTES`."""
    return PREFIX + field.upper()


def default(field: str) -> Any:
    """The default of a setting, whatever the environment says."""
    return Settings.model_fields[field].get_default(call_default_factory=True)


def load(overrides: Mapping[str, Any] | None = None) -> Settings:
    """The settings from the environment, with `overrides` (from the command line) taking precedence.

    overrides: setting → value; None means "not given", as an empty variable does.
    Raises SettingsError for a value outside its bounds and for a MASKSERVE_ variable that is not a setting.
    """
    unknown = [unknown_name(name) for name, value in sorted(os.environ.items()) if is_unknown(name, value)]
    if unknown:
        raise SettingsError("\n".join(unknown))
    try:
        return Settings(**{field: value for field, value in (overrides or {}).items() if value is not None})
    except ValidationError as error:
        raise SettingsError("\n".join(explain_errors(error))) from None


def is_unknown(name: str, value: str) -> bool:
    """Whether an environment variable claims to be a setting and is not one."""
    name = name.upper()
    return (
        name.startswith(PREFIX)
        and name[len(PREFIX) :].lower() not in Settings.model_fields
        and not is_service_link(name, value, os.environ)
    )


def unknown_name(name: str) -> str:
    """One line that says a variable is not a setting, and which name was probably meant."""
    hint = did_you_mean(name[len(PREFIX) :].lower(), Settings.model_fields, spell=variable)
    hint = hint or "`maskserve serve --help` lists the settings."
    return f"{name} is not a setting; {hint}"


def explain_errors(error: ValidationError) -> list[str]:
    """One line for each value that pydantic refused."""
    lines = []
    for item in error.errors():
        message = item["msg"].removeprefix("Value error, ")
        if item["loc"]:
            message = f"{variable(str(item['loc'][0]))}={item['input']!s}: {message[:1].lower()}{message[1:]}"
        lines.append(message)
    return lines


def format_settings(settings: Settings) -> str:
    """All settings on one line, for the log at start; none of them is secret."""
    return " ".join(f"{field}={getattr(settings, field)}" for field in Settings.model_fields)
