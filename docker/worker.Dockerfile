# A worker with torch. Build it from the root of the repository:
#   docker build --file docker/worker.Dockerfile --tag evalsvc-worker .
# pip's torch brings CUDA with it: the host needs the driver and NVIDIA's container toolkit. The smaller build for CPUs:
#   docker build --file docker/worker.Dockerfile --tag evalsvc-worker:cpu \
#       --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .
ARG BASE_IMAGE=docker.io/library/python:3.12-slim-trixie

FROM ${BASE_IMAGE} AS build
ARG EXTRAS=worker,features,reference,clean-fid,s3,gs,hf
ARG TORCH_INDEX=
ARG OPEN_LM=
RUN python3 -P -m venv /opt/evalsvc
WORKDIR /src
# The dependencies first and alone: a change to the code does not install them again.
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY evalsvc/__init__.py evalsvc/
RUN mkdir migrations \
    && /opt/evalsvc/bin/pip install --no-cache-dir --constraint constraints.txt \
        ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} ".[${EXTRAS}]" \
    && /opt/evalsvc/bin/pip uninstall --yes evalsvc \
    && find /opt/evalsvc -type d -name tests -prune -exec rm -r {} +
# open_lm is on no package index, and what it requires pins old versions of other packages.
RUN if [ -n "$OPEN_LM" ]; then /opt/evalsvc/bin/pip install --no-cache-dir --no-deps "xformers>=0.0.30" "$OPEN_LM"; fi
ARG REVISION=
COPY migrations migrations
COPY evalsvc evalsvc
RUN echo "${REVISION}" > evalsvc/COMMIT \
    && /opt/evalsvc/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM ${BASE_IMAGE}
ARG REVISION=unknown
LABEL org.opencontainers.image.title="evalsvc-worker" \
      org.opencontainers.image.description="Worker of evalsvc, with torch" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.revision="${REVISION}"
# torch.compile, which makes sampling on a card fast, calls a compiler.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
# A volume gets the owner that its folder has in the image.
RUN groupadd --gid 10001 evalsvc \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin evalsvc \
    && install --directory --owner=10001 --group=10001 --mode=0700 /data /data/spool /data/shared /certificates /credentials \
    && install --directory --owner=10001 --group=10001 /runs
COPY --from=build /opt/evalsvc /opt/evalsvc
RUN --mount=type=bind,from=build,source=/wheel,target=/wheel \
    /opt/evalsvc/bin/pip install --no-cache-dir --no-deps --no-index /wheel/*.whl
# Nothing is written outside of /data and /tmp, so the root may be read-only. What is compiled is loaded from its file,
# which a /tmp in memory does not allow.
ENV PATH=/opt/evalsvc/bin:$PATH \
    HOME=/tmp \
    HF_HOME=/data/huggingface \
    MPLCONFIGDIR=/tmp/matplotlib \
    TORCHINDUCTOR_CACHE_DIR=/data/compiled \
    TRITON_CACHE_DIR=/data/compiled/triton \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    EVALSVC_DATA_DIR=/data
USER 10001:10001
WORKDIR /data
# The command starts again whatever of it ends, and the service knows which workers live.
HEALTHCHECK NONE
ENTRYPOINT ["evalsvc"]
CMD ["worker", "tls://scheduler:8786"]
