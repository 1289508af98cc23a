# maskserve and one model: an image for GPUs, which also runs on CPUs; or, with `--build-arg TORCH=cpu`, a smaller one
# without CUDA. The model is in it: nothing is fetched when it starts. docs/deployment.md has the commands.

# Anything with Python 3.11 or newer, its venv module and glibc 2.28 or newer.
ARG BASE_IMAGE=python:3.12-slim-bookworm


# Everything that the service imports, in /opt/maskserve, at the versions and hashes of requirements.lock.
FROM ${BASE_IMAGE} AS dependencies
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
    UV_NO_CACHE=1 \
    UV_COMPILE_BYTECODE=1 \
    UV_PYTHON_DOWNLOADS=never
WORKDIR /build
COPY requirements-build.lock ./
# For a mirror, or a proxy with a certificate of its own. These secrets do not stay in the image.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca-certificates,target=/etc/ssl/certs/ca-certificates.crt \
    python3 -m venv uv && \
    uv/bin/pip install --quiet --no-cache-dir --only-binary :all: --require-hashes --requirement requirements-build.lock
COPY pyproject.toml requirements.lock ./
# `cuda`: for GPUs and CPUs. `cpu`: without NVIDIA's libraries, and without what PyTorch's own have for them.
ARG TORCH=cuda
COPY deploy/image/without_cuda.py ./
RUN --mount=type=secret,id=uv.toml,target=/etc/uv/uv.toml \
    --mount=type=secret,id=ca-certificates,target=/etc/ssl/certs/ca-certificates.crt \
    set -eu; \
    # Triton compiles kernels for torch.compile, which the service does not use.
    case "${TORCH}" in \
        cuda) unneeded='triton' ;; \
        cpu) unneeded='triton|(cuda|nvidia)-[^=]+' ;; \
        *) echo "TORCH=${TORCH}: it must be cuda or cpu" >&2; exit 1 ;; \
    esac; \
    sed -nE "s/^(${unneeded})==.*/\1 ; sys_platform == 'none'/p" requirements.lock > overrides.txt; \
    python3 -m venv --without-pip /opt/maskserve; \
    uv/bin/uv pip install --quiet --python /opt/maskserve --require-hashes --requirements pyproject.toml \
        --extra serve --extra tracing --constraints requirements.lock --overrides overrides.txt; \
    packages="$(echo /opt/maskserve/lib/python3.*/site-packages)"; \
    test "${TORCH}" = cuda || uv/bin/python without_cuda.py "${packages}"; \
    # Files that only compilers read.
    rm -rf "${packages}"/torch/include "${packages}"/torch/share "${packages}"/torch/bin/protoc* "${packages}"/nvidia/*/include; \
    find "${packages}" -name '*.a' -delete; \
    echo /opt/service > "${packages}/service.pth"


# The package itself in /opt/service, and its model's weights in /opt/weights.
FROM dependencies AS service
COPY README.md LICENSE hatch_build.py ./
COPY app app
COPY maskserve maskserve
COPY model model
COPY examples/nuclei/images examples/nuclei/images
COPY examples/shapes/images examples/shapes/images
COPY weights/catalogue.json weights/nuclei.safetensors weights/shapes.safetensors weights/
RUN uv/bin/uv build --quiet --wheel --offline --no-build-isolation --python uv/bin/python --out-dir dist && \
    uv/bin/uv pip install --quiet --offline --no-deps --python /opt/maskserve --target /opt/service dist/*.whl
# A name from `maskserve weights list`. WEIGHTS_MIRROR is where the files are if their own address cannot be reached.
ARG MODEL=maskrcnn_resnet50_fpn_v2
ARG WEIGHTS_MIRROR=
RUN --mount=type=secret,id=ca-certificates,target=/etc/ssl/certs/ca-certificates.crt \
    set -eu; \
    mkdir /opt/weights; \
    export MASKSERVE_WEIGHTS_DIR=/opt/weights; \
    /opt/service/bin/maskserve weights fetch "${MODEL}" ${WEIGHTS_MIRROR:+--mirror "${WEIGHTS_MIRROR}"}; \
    /opt/service/bin/maskserve weights verify "${MODEL}"; \
    rm -f /opt/weights/*.lock


FROM ${BASE_IMAGE}
# Ordered by how often they change: a new version of the service is a layer of megabytes.
COPY --from=dependencies /opt/maskserve /opt/maskserve
COPY --from=service /opt/weights /opt/weights
COPY --from=service /opt/service /opt/service
ARG MODEL=maskrcnn_resnet50_fpn_v2
ENV PATH=/opt/service/bin:/opt/maskserve/bin:${PATH} \
    HOME=/tmp \
    MASKSERVE_HOST=0.0.0.0 \
    MASKSERVE_LOG_FORMAT=json \
    MASKSERVE_MODEL=${MODEL} \
    MASKSERVE_WEIGHTS_DIR=/opt/weights \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
ARG REVISION=
LABEL org.opencontainers.image.title="maskserve" \
      org.opencontainers.image.description="The REST service for Mask R-CNN, with the model ${MODEL}" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"

# A user without a name. The root file system may be read-only if /tmp is not.
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 CMD ["maskserve", "healthcheck"]
ENTRYPOINT ["maskserve"]
CMD ["serve"]
